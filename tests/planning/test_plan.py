"""What is planned is what is done: tokens, operations and bytes of phases, before and after they are trained."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from colbert_zero.cli import app
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import read_json
from colbert_zero.planning import data as planning_data
from colbert_zero.planning import words
from colbert_zero.planning.asked import Asked
from colbert_zero.planning.calibration import Pace
from colbert_zero.planning.model import Size
from colbert_zero.planning.operations import hours_on, memory_of, operations_of
from colbert_zero.planning.plan import Machine, PlannedPhase, machine_named, this_machine
from colbert_zero.planning.published import device_named, published, rows_of
from colbert_zero.planning.work import Counts, Devices
from colbert_zero.recipe.data import Hub
from colbert_zero.recipe.reading import check_recipe, load_recipe
from colbert_zero.recipe.schema import LowRank
from colbert_zero.report import write_report
from colbert_zero.report.card import is_card
from colbert_zero.study.comparison import run_study
from colbert_zero.study.graph import chains_of, graph
from helpers import data, processor_with, study, with_cross_encoder, write_rows

CPU = Machine(Devices(1, "cpu"))


def nodes_of(recipe):
    return graph(recipe, chains_of(recipe, None))


def planned(folder, recipe, machine=CPU, seconds=None, tmp="samples"):
    one = study(folder, recipe)
    asked = Asked(one, nodes_of(one.recipe), machine, folder / tmp)
    return asked, {phase.chain: phase for phase in asked.phases(seconds)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study that was planned from a sample, planned again and prepared its sources, and trained."""
    folder = tmp_path_factory.mktemp("planned")
    write_rows(folder / "pairs.jsonl", 400)
    recipe = data(folder)
    recipe["phases"]["unsupervised"]["mini_batch_tokens"] = 300  # a batch is encoded twice
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning_data, "SMALL", 0)
        asked, sampled = planned(folder, recipe)
    before = sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []
    one = study(folder, recipe)
    again, prepared = planned(folder, recipe)
    one.prepare(nodes_of(one.recipe))
    kept = again.keep(list(prepared.values()))
    plan = read_json(kept)["phases"]
    run_study(one, None, "test")
    records = {chain: read_json(one.phase_folder(chain) / "phase.json") for chain in nodes_of(one.recipe)}
    return {"folder": folder, "sampled": sampled, "prepared": prepared, "records": records, "before": before,
            "told": asked.told, "plan": plan}  # fmt: skip


def test_of_prepared_sources_every_token_is_counted_before_it_is_read(trained):
    for chain, record in trained["records"].items():
        phase = trained["prepared"][chain]
        assert phase.counted == "whole"
        assert (phase.steps, phase.counts.texts, phase.tokens) == (record["steps"], record["texts"], record["tokens"])
        assert phase.counts.repeated == record["second_pass_tokens"]
        assert phase.counts.padding == pytest.approx(record["padding_tokens"], rel=0.02, abs=5)
        assert phase.operations.recorded == pytest.approx(record["flops"], rel=0.001)
    assert trained["prepared"][("unsupervised",)].counts.repeated > 0


def test_a_sample_of_what_is_not_prepared_comes_within_three_percent(trained):
    for chain, record in trained["records"].items():
        assert trained["sampled"][chain].tokens == pytest.approx(record["tokens"], rel=0.03)
        assert trained["sampled"][chain].operations.recorded == pytest.approx(record["flops"], rel=0.03)
        assert trained["sampled"][chain].steps == record["steps"]


def test_a_checkpoint_is_as_large_as_planned(trained):
    for chain, record in trained["records"].items():
        files = (trained["folder"] / "out" / "phases" / f"{chain[-1]}-{record['id']}" / "model").rglob("*")
        own = [file for file in files if file.is_file() and not is_card(file)]
        assert record["model_bytes"] == sum(file.stat().st_size for file in own)
        # Of a model this small a tenth is sentence-transformers' own files; of a real one nothing to speak of.
        assert trained["prepared"][chain].model_bytes == pytest.approx(record["model_bytes"], rel=0.1)


def test_a_sample_leaves_nothing_in_the_study_and_is_told(trained):
    assert trained["before"] == ["data", "fingerprints.json"]  # of the files, which are read once
    assert trained["told"] == ["source pairs: the first 2,048 usable rows of each part are looked at"]


def test_the_report_shows_what_was_planned_beside_what_was_taken(trained):
    page = write_report(trained["folder"] / "out").with_name("report.md").read_text(encoding="utf-8")
    table = page[page.index("### Planned and taken") :].split("\n\n")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) == len(trained["records"])
    for row in rows:
        differences = re.findall(r"[+−]\d+\.\d %", row)
        assert len(differences) == 3
        assert differences[:2] == ["+0.0 %", "+0.0 %"]


def test_a_report_without_a_plan_has_no_such_table(trained, tmp_path):
    shutil.copytree(trained["folder"] / "out", tmp_path / "out")
    (tmp_path / "out" / "plan.json").unlink()
    assert "Planned and taken" not in write_report(tmp_path / "out").with_name("report.md").read_text(encoding="utf-8")


def test_what_is_finished_is_planned_as_it_was_done(trained):
    one = study(trained["folder"], data(trained["folder"]) | {})
    one = type(one)(check_recipe(read_json(trained["folder"] / "out" / "recipe.json")), one.folder, one.show, one.cache)
    asked = Asked(one, nodes_of(one.recipe), CPU, trained["folder"] / "none")
    phases = asked.phases(None)
    assert all(phase.done for phase in phases)
    assert [phase.tokens for phase in phases] == [record["tokens"] for record in trained["records"].values()]
    assert asked.keep(phases) is None
    assert [phase.operations.recorded for phase in phases] == [
        record["flops"] for record in trained["records"].values()
    ]
    assert words.hours_of(phases) == (0, 0)
    assert set(asked.own_scores()) >= {"kd-only", "full"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_cross_encoder_is_planned_as_it_is_trained(tmp_path, whole, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl", 400)
    recipe = with_cross_encoder(tmp_path, {"mini_batch_tokens": 300, "negatives": "2 of 3"}, {"pipeline": ["reranker"]})
    chain = ("reranker",)
    one = study(tmp_path, recipe)
    if whole:
        one.prepare([chain])
        one.source("hard")
    else:
        monkeypatch.setattr(planning_data, "SMALL", 0)
    phase = planned(tmp_path, recipe)[1][chain]
    one.prepare([chain])
    record = one.train(chain)
    assert phase.counted == ("whole" if whole else "sampled")
    assert (phase.steps, phase.counts.texts) == (record["steps"], record["texts"])
    near = {"rel": 0 if whole else 0.05}
    assert phase.tokens == pytest.approx(record["tokens"], **near)
    assert phase.operations.recorded == pytest.approx(record["flops"], rel=0.001 if whole else 0.05)
    assert phase.counts.repeated > 0
    assert phase.model_bytes == pytest.approx(record["model_bytes"], rel=0.1)
    if whole:
        assert phase.counts.repeated == record["second_pass_tokens"]


def test_a_cross_encoders_steps_are_measured_and_give_hours(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", 400)
    recipe = with_cross_encoder(tmp_path, {}, {"pipeline": ["reranker"]})
    phase = planned(tmp_path, recipe, seconds=0.5)[1][("reranker",)]
    least, most = phase.hours
    assert 0 < least <= phase.pace.median / 3600 <= most


def test_rows_that_only_a_sample_was_read_of_count_as_the_file_has_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(planning_data, "SAMPLED_ROWS", 50)
    monkeypatch.setattr(planning_data, "SMALL", 0)
    write_rows(tmp_path / "pairs.jsonl", 400)
    recipe = data(tmp_path)
    recipe["phases"] = {"unsupervised": {**recipe["phases"]["unsupervised"], "steps": None, "epochs": 2}}
    recipe["pipelines"] = {"full": ["unsupervised"]}
    del recipe["teachers"], recipe["sources"]["scored"], recipe["sources"]["hard"]
    _, phases = planned(tmp_path, recipe)
    assert phases[("unsupervised",)].counted == "sampled"
    assert phases[("unsupervised",)].steps == 2 * ((400 - 30) // 16)


def test_a_phase_on_two_devices_encodes_the_same_tokens(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    one, two = (planned(tmp_path, data(tmp_path), Machine(Devices(n, "cpu")), tmp=str(n))[1] for n in (1, 2))
    for chain, phase in one.items():
        assert two[chain].counts.texts == phase.counts.texts
        assert two[chain].tokens == pytest.approx(phase.tokens, rel=0.1)
        assert two[chain].operations.maxsim == pytest.approx(phase.operations.maxsim, rel=0.2)


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    with pytest.raises(ColbertZeroError, match="16 queries cannot be shared out evenly among 3 devices"):
        planned(tmp_path, data(tmp_path), Machine(Devices(3, "cpu")))


def test_steps_are_measured_and_give_hours(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    asked, phases = planned(tmp_path, data(tmp_path), seconds=2)
    for phase in phases.values():
        least, most = phase.hours
        assert 0 < least <= phase.pace.median / 3600 <= most
        assert phase.pace.rounds >= 3
        assert phase.pace.queries == phase.spec.global_batch_size
    kept = read_json(asked.keep(list(phases.values())))["phases"].values()
    assert all(entry["seconds"] and entry["host"] for entry in kept)


def test_what_is_measured_besides_is_told_with_its_seconds_once_steps_are_measured(tmp_path):
    recipe = check_recipe(data(tmp_path, validation={"documents": 30, "queries": 20, "nanobeir": False}))
    judged = spec_of(tmp_path, evaluate_every=4)
    # A pass over a token takes 2 s, and a text has 5 tokens, so 50 texts take 500 s.
    pace = Pace(least=1, median=216, most=400, queries=16, rounds=3)
    phase = PlannedPhase(("a",), judged, 10, COUNTS, operations_of(judged, COUNTS, SIZE), pace=pace)
    layers, validation, leaks = words.diagnostics(recipe, [phase, replace(phase, chain=("b",))])
    assert "After each of 2 phases what the encoder's layers add is measured" in layers
    assert "on at most 50 texts, about 17 min in all; `validation.layers: false`" in layers
    assert "judges 6 times while training, on at most 50 texts, about 50 min in all" in validation
    assert "`leaks: false` leaves it out" in leaks
    assert "about" not in words.diagnostics(recipe, [replace(phase, pace=None)])[0]
    assert words.diagnostics(recipe, [replace(phase, done=True)]) == []
    silent = check_recipe(data(tmp_path, validation={"layers": False}, leaks=False))
    assert words.diagnostics(silent, [replace(phase, spec=spec_of(tmp_path))]) == []


SIZE = Size(parameters=1000, computing=600, trained=1000, width=8, layers=2, dim=4, model_bytes=4000)
COUNTS = Counts(texts=6, tokens=30, padding=6, repeated=0, squares=220, products=48, best=12)


def spec_of(tmp_path, **more):
    return check_recipe(data(tmp_path)).phases["unsupervised"].model_copy(update=more)


def test_operations_are_those_of_the_formulas(tmp_path):
    once = operations_of(spec_of(tmp_path), COUNTS, SIZE)
    assert once.encoding == (6 * 600 * 30, 6 * 600 * 6, 0, 0)
    # Both products of attention, 2 operations an element, in a forward and a backward of twice that, in two layers.
    assert once.attention == 2 * 2 * 3 * 2 * 8 * 220
    assert once.maxsim == 2 * 4 * 48 + 4 * 4 * 12
    twice = operations_of(spec_of(tmp_path), replace(COUNTS, repeated=36), SIZE)
    assert (twice.encoding.second_pass, twice.attention) == (2 * 600 * 36, 2 * 2 * 4 * 2 * 8 * 220)


def test_what_is_recomputed_counts_and_frozen_weights_have_no_gradient(tmp_path):
    again = operations_of(spec_of(tmp_path, gradient_checkpointing=True), COUNTS, SIZE)
    assert (again.encoding.recomputed, again.attention) == (2 * 600 * 36, 2 * 2 * 4 * 2 * 8 * 220)
    frozen = operations_of(spec_of(tmp_path, low_rank=LowRank(rank=2)), COUNTS, replace(SIZE, trained=50))
    assert frozen.encoding[:2] == ((4 * 600 + 2 * 50) * 30, (4 * 600 + 2 * 50) * 6)


def test_memory_is_states_embeddings_and_one_chunk(tmp_path):
    counts = Counts(texts=6, tokens=300, padding=0, repeated=300, squares=0, products=0, best=0)
    found = memory_of(spec_of(tmp_path, mini_batch_tokens=20), counts, 10, SIZE, Devices(1, "cpu"), has=100_000)
    assert found.states == 16 * 1000
    assert found.embeddings == 2 * 4 * 4 * 30
    assert found.chunk == 66 * 2 * 8 * 20
    assert found.largest_chunk == (90_000 - found.states - found.embeddings) // (66 * 2 * 8)
    deep = replace(SIZE, layers=20)
    whole, less = (
        memory_of(spec_of(tmp_path, gradient_checkpointing=on), counts, 10, deep, Devices(1, "cpu"), None)
        for on in (False, True)
    )
    assert less.chunk < whole.chunk / 4
    assert memory_of(spec_of(tmp_path), counts, 10, replace(SIZE, trained=50), Devices(1, "cpu"), None).states == 4600


def test_hours_are_operations_by_shares_of_the_peak():
    phase = load_recipe("paper/full").phases["unsupervised"]
    size = replace(SIZE, computing=10**8, layers=0, dim=128)
    counted = operations_of(phase, Counts(tokens=1e9, products=1e12), size)
    least, most = hours_on(device_named("h100"), phase, counted, 8)
    encoding, scoring = 6e17, 2.56e14
    assert least == pytest.approx((encoding / 0.4 + scoring / 0.33) / (8 * 989e12 * 3600))
    assert most == pytest.approx((encoding / 0.2 + scoring / 0.12) / (8 * 989e12 * 3600))


@pytest.mark.parametrize("units", [True, False])
def test_auto_is_planned_as_what_it_will_come_to(tmp_path, monkeypatch, units):
    """On GPUs bfloat16, whatever this machine is; on this machine what its processor is faster in."""
    processor_with(monkeypatch, bfloat16=units)
    counts = Counts(texts=6, tokens=300, padding=0, repeated=300, squares=0, products=0, best=0)

    def planned(precision, kind):
        spec = spec_of(tmp_path, precision=precision)
        hours = hours_on(device_named("h100"), spec, operations_of(spec, counts, SIZE), 8)
        return memory_of(spec, counts, 10, SIZE, Devices(1, kind), None), hours if kind == "cuda" else None

    assert planned("auto", "cuda") == planned("bfloat16", "cuda") != planned("float32", "cuda")
    assert planned("auto", "cpu") == planned("bfloat16" if units else "float32", "cpu")


@pytest.mark.parametrize(
    ("text", "count", "name"), [("8xH100", 8, "H100"), ("gh200", 1, "GH200"), ("16xA100", 16, "A100")]
)
def test_devices_are_named_by_their_number_and_name(text, count, name):
    machine = machine_named(text)
    assert (machine.on.count, machine.device["name"], machine.on.kind) == (count, name, "cuda")


def test_processes_of_this_machine_are_named_here():
    assert machine_named("2xhere").on == Devices(2, "cuda" if torch.cuda.is_available() else "cpu")
    assert machine_named("here").device is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--devices", "8xH101"], "did you mean H100"),
        (["--devices", "0xH100"], "write how many and which"),
        (["--budget", "ten"], "write device-hours, as 40gpuh or 40"),
        (["--budget", "0"], "write device-hours"),
        (["--budget", "40gpuh"], "needs hours; add --calibrate"),
        (["--calibrate", "--devices", "8xH100"], "leave one out"),
        (["--calibrate", "--devices", "2xhere"], "leave one out"),
        (["--only", "nothing"], "no such pipeline"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    (tmp_path / "my.yaml").write_text(json.dumps(data(tmp_path)))
    done = CliRunner().invoke(app, ["plan", "my.yaml", *options])
    assert isinstance(done.exception, ColbertZeroError)
    assert told in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("asked", "taken"), [("sdpa", 0), (None, 1)])
def test_steps_are_measured_with_the_attention_that_is_asked_for(asked, taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    recipe, faster = data(tmp_path), []
    recipe["phases"]["unsupervised"]["precision"] = "bfloat16"
    recipe["pipelines"] = {"full": ["unsupervised"]}
    if asked:
        recipe["model"]["attention"] = asked
    (tmp_path / "my.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr("colbert_zero.planning.calibration.attend_fast", lambda _, found: faster.append(found))
    done = CliRunner().invoke(app, ["plan", "my.yaml", "--calibrate", "--seconds", "1"])
    assert done.exit_code == 0, done.output
    assert faster == ["bfloat16"] * taken


@pytest.mark.skipif(torch.cuda.is_available(), reason="where it may be had")
def test_attention_that_cannot_be_had_here_is_not_measured_as_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["model"]["attention"] = "flash_attention_2"
    (tmp_path / "my.yaml").write_text(json.dumps(recipe))
    assert CliRunner().invoke(app, ["plan", "my.yaml", "--devices", "2xA100"]).exit_code == 0
    done = CliRunner().invoke(app, ["plan", "my.yaml", "--calibrate", "--seconds", "1"])
    assert "FlashAttention2 has been toggled on, but it cannot be used" in str(done.exception)
    assert isinstance(done.exception, ColbertZeroError)


def test_a_plan_is_printed_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    (tmp_path / "my.yaml").write_text(json.dumps(data(tmp_path)))
    done = CliRunner().invoke(app, ["plan", "my.yaml", "--devices", "2xA100", "--price", "3"])
    assert done.exit_code == 0, done.output
    for said in ("tiny on 2 x A100", "kd-only", "money", "all, each phase once", "20 to 40 % of its peak"):
        assert said in done.output
    assert len(read_json(tmp_path / "out" / "tiny" / "plan.json")["phases"]) == 5
    printed = CliRunner().invoke(app, ["plan", "my.yaml", "--json"])
    assert [row["counted"] for row in json.loads(printed.output.splitlines()[-1])["phases"]] == ["whole"] * 5


# ---- What is published


@pytest.mark.parametrize("name", ["paper/full", "paper/supervised-kd", "paper/kd-only", "paper/equal"])
def test_the_papers_recipes_are_planned_from_what_is_published(name, tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["plan", name, "--devices", "8xGH200", "--budget", "500gpuh"])
    assert done.exit_code == 0, done.output
    assert "cannot be read here" in done.output
    assert "≤" in done.output
    assert not (tmp_path / "out").exists()
    if name == "paper/full":
        assert "published 368 GH200-hours" in done.output
        assert "published 408 GH200-hours" in done.output
        assert "14,578" in done.output  # the paper counts 14,587: whole batches of splits whose sizes are not published
        assert (
            "within 500 device-hours the best is full: nDCG@10 0.5543 (arXiv 2602.16609, table of BEIR)" in done.output
        )


def test_published_sizes_sum_to_the_papers():
    recipe = load_recipe("paper/full")
    for name, rows in {"pairs": 238_998_494, "hard": 1_695_819, "scored": 640_000}.items():
        found = rows_of(name, recipe.sources[name])
        assert sum(found.values()) == pytest.approx(rows, abs=len(found))
        assert len(found) == len(recipe.sources[name].splits or [1])


def test_a_split_that_a_data_set_has_not_is_named_and_one_without_a_size_counts_alone():
    pairs = load_recipe("paper/full").sources["pairs"]
    (quora,) = rows_of("pairs", pairs.model_copy(update={"splits": ["quora"]})).values()
    assert quora == 2_243_500 // 15 or quora == pytest.approx(149_566, abs=5)
    with pytest.raises(ColbertZeroError, match=r"sources.pairs: .* has no 'paqq', did you mean paq"):
        rows_of("pairs", pairs.model_copy(update={"splits": ["paqq"]}))


def test_what_was_measured_stays_until_it_is_measured_anew(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    asked, phases = planned(tmp_path, data(tmp_path), seconds=1)
    measured = read_json(asked.keep(list(phases.values())))
    again, others = planned(tmp_path, data(tmp_path), machine_named("4xH100"))
    assert read_json(again.keep(list(others.values()))) == measured


def test_a_damaged_plan_is_told(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    asked, phases = planned(tmp_path, data(tmp_path))
    asked.keep(list(phases.values())).write_text("{")
    with pytest.raises(ColbertZeroError, match=r"plan.json: damaged \(.*; delete it"):
        asked.keep(list(phases.values()))


def test_a_recipes_own_mistake_is_told_and_no_published_base_stands_for_it(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    monkeypatch.setattr("colbert_zero.study.study.Study.check", lambda *_: (_ for _ in ()).throw(ColbertZeroError("x")))
    with pytest.raises(ColbertZeroError, match=r"^x$"):
        planned(tmp_path, data(tmp_path))


def test_select_best_is_told_and_nothing_is_written_of_it(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["unsupervised"] |= {"select": "best", "evaluate_every": 3}
    asked, phases = planned(tmp_path, recipe)
    assert any("`select: best` (unsupervised)" in line for line in asked.told)
    assert len(read_json(asked.keep(list(phases.values())))["phases"]) == 1  # the dense phase alone has an id
    assert not (tmp_path / "out" / "validation").exists()


def test_a_data_set_of_which_nothing_is_published_is_named():
    with pytest.raises(ColbertZeroError, match=r"sources.mine.path: you/yours cannot be read here.*local folder"):
        rows_of("mine", Hub(kind="hub", path="you/yours"))


def test_every_published_entry_has_a_source():
    for section in ("data", "hours", "devices"):
        assert all(entry["source"] for entry in published()[section].values())


def test_a_budget_names_the_best_pipeline_that_fits_with_its_evidence():
    hours = {"full": (60.0, 120.0), "supervised-kd": (10.0, 30.0), "kd-only": (5.0, 9.0), "mine": (1.0, 50.0)}
    said = words.within(40, hours, words.published_scores("paper-full"))
    assert (
        said[0] == "within 40 device-hours the best is supervised-kd: nDCG@10 0.5512 (arXiv 2602.16609, table of BEIR)"
    )
    assert said[1] == "  also kd-only: 0.5409"
    assert "  mine may fit: 1.0 to 50 h" in said
    assert "  full does not fit: 60 to 120 h" in said
    assert said[-1] == "  unknown: how they compare on your data"
    own = words.within(40, hours, {"kd-only": (0.7, words.OWN), "supervised-kd": (0.6, words.OWN)})
    assert own[0] == "within 40 device-hours the best is kd-only: nDCG@10 0.7000 (your own study)"
    assert "  full fits, of which no score is known" in words.within(500, hours, words.published_scores("mine"))
    assert words.within(1, hours, {})[0] == "within 1 device-hours no pipeline surely fits"


@pytest.mark.parametrize(
    ("hours", "times", "said"),
    [((1.0, 2.0), 1, "1.0 to 2.0 h"), ((0.01, 0.02), 1, "36 to 72 s"), ((0.5, 1.0), 1, "30 to 60 min"),
     ((30, 60), 8, "240 to 480 h"), ((2, 2), 1, "2.0 h")],
)  # fmt: skip
def test_a_span_has_one_unit(hours, times, said):
    assert words.span(hours, times) == said


def test_this_machine_is_planned_for_by_default():
    assert this_machine().device is None
    assert this_machine().words == "this machine"
    assert this_machine(2).words == "this machine, 2 processes"
