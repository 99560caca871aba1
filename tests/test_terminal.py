"""What is printed fits the terminal, with every name whole."""

import itertools

import pytest
from rich.console import Console
from rich.text import Text

from colbert_zero import terminal
from colbert_zero.recipe.schema import Phase
from colbert_zero.study.steps import Outline
from colbert_zero.terminal import choice_lines, choice_tables

SYSTEMS = {
    "bm25": ("baseline", None, "lexical"),
    "dense-unsupervised": ("baseline", None, "dense"),
    "dense-unsupervised+dense-supervised": ("baseline", None, "dense"),
    "supervised-kd@supervised": ("pipeline", "supervised", "multi-vector"),
    "kd-only": ("pipeline", None, "multi-vector"),
    "full[red]": ("pipeline", None, "multi-vector"),
}
COLLECTIONS = (
    "nfcorpus", "scifact", "fiqa", "arguana", "scidocs", "trec-covid", "webis-touche2020", "quora", "nq", "msmarco",
    "hotpotqa", "fever", "climate-fever", "dbpedia-entity", "cqadupstack-programmers",
)  # fmt: skip


def results(count):
    systems = {}
    scores = itertools.count(1)
    for name, (kind, after, representation) in SYSTEMS.items():
        systems[name] = {
            "kind": kind,
            "pipeline": None,
            "after": after,
            "representation": representation,
            "phases": [] if representation == "lexical" else [{"id": name}],
            "flops": 0 if representation == "lexical" else 31e15,
            "device_seconds": 1234567.8,
            "scores": {c: {"nDCG@10": next(scores) / 1000} for c in COLLECTIONS[:count]},
        }
    return {"collections": {name: {} for name in COLLECTIONS[:count]}, "systems": systems}


def printed(monkeypatch, capsys, width, count):
    monkeypatch.setattr(terminal, "console", Console(width=width, highlight=False))
    terminal.print_results(results(count))
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("count", [1, 2, 7, 15])
def test_every_name_and_score_is_printed_whole_within_the_width(monkeypatch, capsys, width, count):
    out = printed(monkeypatch, capsys, width, count)
    found = results(count)
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= width
    words = out.split()
    for collection in found["collections"]:
        assert words.count(collection) == 1
    tables = [line.split()[-1] for line in out.splitlines() if "full[red]" in line]
    for name, system in found["systems"].items():
        assert words.count(name) == len(tables)
        for scores in system["scores"].values():
            assert f"{scores['nDCG@10']:.4f}" in words


def test_the_mean_comes_first_and_collections_stand_beside_it_where_they_fit(monkeypatch, capsys):
    wide = printed(monkeypatch, capsys, 200, 7)
    assert wide.splitlines()[1].split()[:6] == ["mean", "nDCG@10", "compute", "device", "time", "nfcorpus"]
    assert wide.count("kd-only") == 1
    narrow = printed(monkeypatch, capsys, 80, 7)
    assert narrow.splitlines()[1].split() == ["mean", "nDCG@10", "compute", "device", "time"]
    assert narrow.count("kd-only") > 1
    one = printed(monkeypatch, capsys, 80, 1)
    assert one.splitlines()[1].split() == ["nfcorpus", "nDCG@10", "compute", "device", "time"]


def test_a_system_has_its_compute_and_its_time_and_one_without_training_has_neither(monkeypatch, capsys):
    rows = {line.split()[0]: line.split()[1:] for line in printed(monkeypatch, capsys, 80, 1).splitlines()[3:]}
    assert rows["full[red]"][1:] == ["31", "PFLOP", "14", "days"]
    assert rows["bm25"][1:] == ["–", "–"]


def test_systems_whose_operations_nobody_counted_have_their_time_alone(monkeypatch, capsys):
    found = results(1)
    for system in found["systems"].values():
        system["flops"] = None
    found["systems"]["bm25"]["flops"] = 0
    monkeypatch.setattr(terminal, "console", Console(width=80, highlight=False))
    terminal.print_results(found)
    assert "compute" not in capsys.readouterr().out
    found["systems"]["kd-only"]["flops"] = 2e12
    terminal.print_results(found)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[3:]}
    assert rows["kd-only"][1:] == ["2.0", "TFLOP", "14", "days"]
    assert rows["full[red]"][1:] == ["–", "14", "days"]


def test_baselines_checkpoints_and_finished_pipelines_stand_apart(monkeypatch, capsys):
    lines = [line.split("  ")[0] or line.split()[0] for line in printed(monkeypatch, capsys, 80, 1).splitlines()[2:]]
    assert lines == [
        "BM25, no training", "bm25", "dense baselines", "dense-unsupervised", "dense-unsupervised+dense-supervised",
        "on the way", "supervised-kd@supervised", "finished pipelines", "kd-only", "full[red]",
    ]  # fmt: skip


def test_a_system_without_a_score_has_no_mean(monkeypatch, capsys):
    found = results(2)
    del found["systems"]["kd-only"]["scores"]["scifact"]
    monkeypatch.setattr(terminal, "console", Console(width=80, highlight=False))
    terminal.print_results(found)
    [row, *_] = [line.split() for line in capsys.readouterr().out.splitlines() if "kd-only" in line]
    assert row[1] == "–"


def test_a_terminal_narrower_than_a_name_folds_it(monkeypatch, capsys):
    out = printed(monkeypatch, capsys, 30, 2)
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 30


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_every_phase_of_a_plan_is_printed_whole_within_the_width(monkeypatch, capsys, width):
    spec = Phase(
        representation="multi-vector", objective="contrastive", sources=["hard"], global_batch_size=2, learning_rate=1
    )
    chains = [("dense-unsupervised", "dense-supervised", "distillation"), ("unsupervised", "supervised")]
    monkeypatch.setattr(terminal, "console", Console(width=width, highlight=False))
    terminal.console.print(terminal.plan_table([Outline(c, spec, 40, 3200, 1_000_000, True) for c in chains], width))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "dense-unsupervised → dense-supervised → distillation" in " ".join(lines) or width == 60
    assert ("multi-vector" in lines[1]) == (width > 80)
    assert ("contrastive" in lines[1]) == (width == 200)
    assert "1,000,000" in lines[1]


def candidate(score, verdict, **more):
    about = {"score": score, "interval": [score - 0.01, score + 0.01], "verdict": verdict, "kind": "dense", "other": {}}
    about |= {"without_layers": 0.2, "parameters": 10**6, "bytes": 4 * 10**6, "documents_per_second": 9, "seconds": 3}
    difference = {"difference": score - 0.9, "interval_of_difference": [score - 0.95, score - 0.85]}
    return about | (difference if verdict != "best" else {}) | more


CHOICE = {
    "by": "multi-vector", "pairs": 1200, "drawn_from": {"a": 1000, "b": 200}, "left_out": 7, "margin": 0.02,
    "bm25": {"score": 0.3, "interval": [0.25, 0.35]}, "best": "m/large", "as_good": ["m/small"],
    "candidates": {
        "m/large": candidate(0.9, "best", other={"dense": {"score": 0.8}}),
        "m/small": candidate(0.895, "as good", bytes=2 * 10**6),
        "m/other": candidate(0.88, "not told apart", without_layers=None),
        "m/flat": candidate(0.25, "worse", without_layers=0.24),
    },
}  # fmt: skip


def test_a_choice_is_told_with_what_is_as_good_smaller_worse_or_no_better_than_words():
    assert choice_lines(CHOICE) == [
        "1,200 pairs (1,000 of a and 200 of b); 7 more left out, since they share a query or a document with these",
        "start from m/large; m/small: as good, within 2 points; m/other: not told apart from it (more pairs may tell: "
        "--pairs-of); m/flat: worse",
        "m/small has half of the bytes of m/large",
        "BM25, which is not trained at all, scores higher than m/flat",
        "m/flat: its layers add +1.00 points, so little that it is not much more than its token embeddings",
    ]


def test_the_tables_of_a_choice_have_every_candidate_best_first_and_bm25():
    scores, cost = choice_tables(CHOICE)
    assert list(scores.columns[0].cells) == [Text(name) for name in CHOICE["candidates"]] + ["BM25"]
    assert [column.header for column in scores.columns][1:3] == ["recall@1, MaxSim", "95 %"]
    assert list(scores.columns[1].cells) == ["90.00", "89.50", "88.00", "25.00", "30.00"]
    assert list(scores.columns[-2].cells)[:2] == ["80.00", "–"]
    assert list(scores.columns[4].cells)[:2] == ["–", "−5.50 to +4.50"]
    assert list(cost.columns[3].cells) == ["4.00 MB", "2.00 MB", "4.00 MB", "4.00 MB"]
