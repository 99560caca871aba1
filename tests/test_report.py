"""The report: its words in each case, its safety, and that it is a function of the records alone."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.errors import ColbertZeroError
from colbert_zero.records import write_json
from colbert_zero.report import Study, _loss_plot, choice, compare, duration, findings, fraction, headline, write_report

COLLECTIONS = {"scifact": (5183, 300), "nfcorpus": (3633, 323), "fiqa": (57638, 648)}
# name: (kind, pipeline, after, representation, phase ids, scores), scores from the paper's table.
SYSTEMS = {
    "bm25": ("baseline", None, None, "lexical", [], (66.50, 32.50, 23.60)),
    "dense-unsupervised": ("baseline", None, None, "dense", ["du"], (72.30, 35.33, 42.53)),
    "dense-unsupervised+dense-supervised": (
        "baseline",
        None,
        None,
        "dense",
        ["du", "ds"],
        (69.63, 33.40, 40.59),
    ),
    "kd-only": ("pipeline", "kd-only", None, "multi-vector", ["du", "ds", "k1"], (75.04, 37.01, 42.51)),
    "supervised-kd@supervised": (
        "pipeline",
        "supervised-kd",
        "supervised",
        "multi-vector",
        ["du", "s2"],
        (73.78, 35.56, 40.09),
    ),
    "supervised-kd": (
        "pipeline",
        "supervised-kd",
        None,
        "multi-vector",
        ["du", "s2", "k2"],
        (74.90, 36.51, 41.50),
    ),
    "full@unsupervised": ("pipeline", "full", "unsupervised", "multi-vector", ["u3"], (76.76, 36.88, 45.38)),
    "full@supervised": (
        "pipeline",
        "full",
        "supervised",
        "multi-vector",
        ["u3", "s3"],
        (73.71, 35.60, 42.45),
    ),
    "full": ("pipeline", "full", None, "multi-vector", ["u3", "s3", "k3"], (76.50, 37.28, 42.62)),
}
# id: (name, chain, representation, objective, device-seconds)
PHASES = {
    "du": ("dense-unsupervised", ["dense-unsupervised"], "dense", "contrastive", 96.0),
    "ds": ("dense-supervised", ["dense-unsupervised", "dense-supervised"], "dense", "contrastive", 30.0),
    "k1": (
        "distillation",
        ["dense-unsupervised", "dense-supervised", "distillation"],
        "",
        "distillation",
        24.0,
    ),
    "s2": ("supervised", ["dense-unsupervised", "supervised"], "", "contrastive", 66.0),
    "k2": ("distillation", ["dense-unsupervised", "supervised", "distillation"], "", "distillation", 24.0),
    "u3": ("unsupervised", ["unsupervised"], "", "contrastive", 1770.0),
    "s3": ("supervised", ["unsupervised", "supervised"], "", "contrastive", 66.0),
    "k3": ("distillation", ["unsupervised", "supervised", "distillation"], "", "distillation", 24.0),
}


def phase_record(identity: str) -> dict:
    name, chain, representation, objective, seconds = PHASES[identity]
    steps = 60 if objective == "distillation" else 400
    start = 1.2 if objective == "distillation" else 5.5
    noise = random.Random(identity)
    losses = [
        {
            "step": k,
            "loss": start / (1 + k / 40) * noise.uniform(0.7, 1.3),
            "source": "paq",
            "elapsed_seconds": k,
        }
        for k in range(1, steps + 1)
    ]
    return {
        "schema": 1,
        "name": name,
        "id": identity,
        "parent": None,
        "chain": chain,
        "representation": representation or "multi-vector",
        "objective": objective,
        "prompts": {"query": "search_query: ", "document": "search_document: "},
        "markers": {} if representation == "dense" else {"query": "[Q]", "document": "[D]"},
        "query_tokens": 39,
        "document_tokens": 187,
        "steps": steps,
        "global_batch_size": 64,
        "mini_batch_tokens": 16384,
        "learning_rate": 8e-6,
        "temperature": 0.02,
        "negatives": 7,
        "seed": 42,
        "sources": {"paq": {"rows": 25600, "batches": 400, "dropped_rows": 12}},
        "device": "cpu",
        "device_seconds": seconds,
        "texts": int(seconds * 130),
        "tokens": int(seconds * 14_000),
        "flops": seconds * 3e11,
        "peak_memory_bytes": 1_900_000_000,
        "parameters": 4_200_000,
        "losses": losses,
        "final_loss": losses[-1]["loss"],
        "finished_at": "2026-05-01T10:00:00Z",
    }


def result_record(
    pipelines: list[str], p_value: float = 0.2, collections: tuple[str, ...] = tuple(COLLECTIONS)
) -> dict:
    """results.json of the named pipelines with all baselines; every comparison has this p value."""
    systems = {}
    for name, (kind, pipeline, after, representation, ids, scores) in SYSTEMS.items():
        if kind == "pipeline" and pipeline not in pipelines:
            continue
        phases = [
            {
                "name": PHASES[i][0],
                "id": i,
                "device_seconds": PHASES[i][4],
                "texts": 12_000,
                "tokens": 1_400_000,
            }
            for i in ids
        ]
        values = dict(zip(COLLECTIONS, scores, strict=True))
        systems[name] = {
            "kind": kind,
            "pipeline": pipeline,
            "after": after,
            "representation": representation,
            "phases": phases,
            "device_seconds": sum(phase["device_seconds"] for phase in phases),
            "scores": {
                c: {
                    "nDCG@10": values[c] / 100,
                    "R@100": min(1, values[c] / 100 + 0.15),
                    "RR@10": values[c] / 100 - 0.04,
                }
                for c in collections
            },
        }
    comparisons = []
    for measure in ("nDCG@10", "R@100"):
        for i, a in enumerate(pipelines):
            for b in pipelines[i + 1 :]:
                gaps = {c: systems[a]["scores"][c][measure] - systems[b]["scores"][c][measure] for c in collections}
                for c in (None, *collections):
                    gap = sum(gaps.values()) / len(gaps) if c is None else gaps[c]
                    test = {
                        "family": "pipelines",
                        "a": a,
                        "b": b,
                        "collection": c,
                        "measure": measure,
                        "difference": gap,
                    }
                    test |= {
                        "p_value": p_value / 3,
                        "p_value_holm": p_value,
                        "interval": [gap - 0.012, gap + 0.012],
                    }
                    comparisons.append(test)
    sizes = {c: {"documents": COLLECTIONS[c][0], "queries": COLLECTIONS[c][1]} for c in collections}
    return {
        "schema": 1,
        "recipe": "study",
        "collections": sizes,
        "systems": systems,
        "comparisons": comparisons,
    }


ALL = ["kd-only", "supervised-kd", "full"]


def write_records(folder: Path, results: dict, teacher: float | None = 0.58) -> Path:
    """A realistic record folder for these results; a teacher with this nDCG@10 everywhere, or none."""
    write_json(folder / "results.json", results)
    used = {phase["id"] for system in results["systems"].values() for phase in system["phases"]}
    for identity in sorted(used):
        write_json(folder / "phases" / f"{PHASES[identity][0]}-{identity}" / "phase.json", phase_record(identity))
    sources = {
        f"source-{i:02}": {
            "kind": "jsonl",
            "parts": {"train": 1000 * (20 - i)},
            "rows": 1000 * (20 - i),
            "dropped": {"too short": i, "duplicate": 2 * i},
            "held_out": 50,
            "seconds": 1.5,
        }
        for i in range(20)
    }
    known = {
        c: size | {"judgements": 2 * size["queries"], "from": f"beir/{c}"} for c, size in results["collections"].items()
    }
    write_json(folder / "data.json", {"sources": sources, "collections": known})
    environment = {
        "colbert_zero": "0.1.0",
        "python": "3.12.8",
        "torch": "2.13.0",
        "platform": "Linux x86-64",
        "processor": "two cores",
        "cores": 2,
        "memory_bytes": 8_000_000_000,
        "devices": ["cpu"],
        "processes": 1,
        "started_at": "2026-05-01T09:00:00Z",
        "command": "colbert-zero run recipes/study.yaml --out out/study",
    }
    write_json(folder / "environment.json", environment)
    if teacher is not None:
        record = {
            "description": "BM25 and the best dense checkpoint, fused",
            "parts": [{"name": "bm25", "weight": 0.4}, {"name": "dense-supervised", "weight": 0.6}],
            "device_seconds": 12.5,
            "scores": {c: {"nDCG@10": teacher} for c in results["collections"]},
            "queries": 6400,
            "n_ways": 16,
        }
        write_json(folder / "teachers.json", {"fused": record})
    return folder


def study_of(folder: Path, results: dict, teacher: float | None = 0.58) -> Study:
    return Study(write_records(folder, results, teacher))


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and its tables' cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_winner_beyond_chance_is_named_with_interval_and_corrected_p(tmp_path):
    study = study_of(tmp_path, result_record(ALL, p_value=0.004, collections=("scifact",)))
    assert headline(study) == "To pre-train: full is better than every other pipeline."
    score = dict(findings(study))["Best score"]
    assert "1.46 points more than kd-only" in score
    assert "95 % interval +0.26 to +2.66, Holm-corrected p = 0.004: significant" in score


def test_without_a_shown_difference_the_cheapest_is_advised(tmp_path):
    study = study_of(tmp_path, result_record(ALL, p_value=0.2))
    assert headline(study) == "Not to pre-train: no pipeline is shown to be better; take the cheapest: kd-only."
    said = dict(findings(study))
    best = said["Best score"]
    assert "0.61 points more than kd-only, 95 % interval −0.59 to +1.81, Holm-corrected p = 0.200: not signif" in best
    assert "a tenth of the compute (3.1 of 31 device-minutes)" in said["For less"]
    assert "is not shown to buy anything" in said["By budget"]


def test_a_cheaper_pipeline_that_keeps_up_is_advised_over_a_higher_score(tmp_path):
    results = result_record(ALL, p_value=0.2, collections=("scifact",))
    for test in results["comparisons"]:
        if {test["a"], test["b"]} == {"kd-only", "full"}:
            test["p_value_holm"] = 0.01
    study = study_of(tmp_path, results)
    assert headline(study).startswith("To pre-train in part: take supervised-kd; full scores highest but is not")
    assert "With 2.5 min of device time take kd-only; from 31 min" in dict(findings(study))["By budget"]


def test_scores_while_training_stand_beside_the_losses_of_the_phases_that_have_them(tmp_path):
    write_records(tmp_path, result_record(["full"]))
    plain = _loss_plot(Study(tmp_path))
    record = phase_record("u3")
    means = [0.31, 0.52, 0.48]
    record["validation"] = [{"step": 100 * (i + 1), "scores": {"a": m}, "mean": m} for i, m in enumerate(means)]
    write_json(tmp_path / "phases" / "unsupervised-u3" / "phase.json", record)
    judged = _loss_plot(Study(tmp_path))
    assert "nDCG@10" not in plain.shows
    assert "nDCG@10 × 100 on the validation collections: unsupervised: 31.00 to 48.00, at best 52.00." in judged.shows
    assert judged.svg.count("axes_") > plain.svg.count("axes_")


def test_the_test_on_the_mean_decides_alone_and_single_collections_are_told_beside_it(tmp_path):
    results = result_record(["kd-only", "full"], p_value=0.01)
    for test in results["comparisons"]:
        if test["collection"] is None:
            test |= {"difference": -0.006, "p_value_holm": 0.3, "interval": [-0.02, 0.01]}
        else:
            test["difference"] = -0.2 if test["collection"] == "scifact" else 0.01
    shown, words = compare(study_of(tmp_path, results), "full", "kd-only")
    assert not shown
    assert words.startswith("95 % interval −1.00 to +2.00, Holm-corrected p = 0.300: not significant; of 3 collections")
    assert "better on 1 (scifact" in words
    assert "worse on 2 (" in words


def test_an_older_study_without_a_test_on_the_mean_claims_nothing(tmp_path):
    results = result_record(ALL, p_value=0.0001)
    results["comparisons"] = [test for test in results["comparisons"] if test["collection"]]
    study = study_of(tmp_path, results)
    assert compare(study, "full", "kd-only") == (False, "not tested")
    assert "no pipeline is shown to be better" in headline(study)


def test_a_pipeline_that_ends_worse_than_its_own_checkpoint_is_said_to_be_at_fault(tmp_path):
    results = result_record(ALL, p_value=0.2)
    [before] = [n for n, s in results["systems"].items() if s["pipeline"] == "full" and s["after"] == "unsupervised"]
    for scores in results["systems"][before]["scores"].values():
        scores["nDCG@10"] = 0.9
    test = {"family": "checkpoints", "a": "full", "b": before, "collection": None, "measure": "nDCG@10"}
    test |= {"difference": -0.1, "p_value": 0.001, "p_value_holm": 0.001, "interval": [-0.2, -0.05]}
    results["comparisons"].append(test)
    said = dict(findings(study_of(tmp_path, results)))
    assert f"below its own checkpoint {before}, 95 % interval +5.00 to +20.00" in said["Made worse"]
    assert "a fault until understood" in said["Made worse"]


@settings(deadline=None)
@given(
    means=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    costs=st.lists(st.floats(1, 1e6), min_size=3, max_size=3),
    chances=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    bm25=st.floats(0, 1),
)
def test_the_choice_is_the_cheapest_of_all_that_may_be_chosen(means, costs, chances, bm25):
    results = result_record(ALL, collections=("scifact",))
    for name, mean, cost in zip(ALL, means, costs, strict=True):
        results["systems"][name]["scores"]["scifact"]["nDCG@10"] = mean
        results["systems"][name]["device_seconds"] = cost
    results["systems"]["bm25"]["scores"]["scifact"]["nDCG@10"] = bm25
    pairs = [t for t in results["comparisons"] if t["measure"] == "nDCG@10" and t["collection"] is None]
    for test, chance in zip(pairs, chances, strict=True):
        test["p_value_holm"] = chance
        test["difference"] = means[ALL.index(test["a"])] - means[ALL.index(test["b"])]
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "results.json", results)
        study = Study(Path(folder))
    best = study.pipelines()[0]
    lost = {
        name
        for test in pairs
        for name in (test["a"], test["b"])
        if best in (test["a"], test["b"]) and name != best and test["p_value_holm"] < 0.05 and test["difference"]
    }
    allowed = [
        name for name, mean in zip(ALL, means, strict=True) if name == best or (name not in lost and mean > bm25)
    ]
    taken = choice(study, study.pipelines())
    assert taken in allowed
    assert costs[ALL.index(taken)] == min(costs[ALL.index(name)] for name in allowed)


def test_one_pipeline_alone_answers_nothing_and_says_so(tmp_path):
    study = study_of(tmp_path, result_record(["full"]), teacher=None)
    assert headline(study).startswith("Only one pipeline was run, full: this study cannot say")
    assert "Add a second pipeline" in dict(findings(study))["Score"]


def test_pipelines_below_bm25_are_called_so_plainly(tmp_path):
    results = result_record(ALL, p_value=0.001)
    for scores in results["systems"]["bm25"]["scores"].values():
        scores["nDCG@10"] = 0.8
    study = study_of(tmp_path, results)
    assert headline(study).startswith("None of these: BM25, which needs no training, scores 80.00")
    assert "below bm25 (80.00)" in dict(findings(study))["Against BM25"]
    assert "By budget" not in dict(findings(study))


def test_a_cheap_pipeline_below_bm25_is_never_advised(tmp_path):
    results = result_record(ALL, p_value=0.2, collections=("scifact",))
    results["systems"]["bm25"]["scores"]["scifact"]["nDCG@10"] = 0.76
    study = study_of(tmp_path, results)
    assert choice(study, study.pipelines()) == "full"
    assert "take the cheapest above BM25: full" in headline(study)
    assert "kd-only and supervised-kd not" in dict(findings(study))["Against BM25"]


def test_untested_differences_are_never_called_shown(tmp_path):
    study = study_of(tmp_path, result_record(ALL) | {"comparisons": []})
    assert "no pipeline is shown to be better" in headline(study)
    assert "kd-only, not tested" in dict(findings(study))["Best score"]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (0.58, "above every pipeline"),
        (0.52, "full ended above it. A stronger teacher may help"),
        (0.50, "weaker than its student full@supervised already was (50.59), which gained 1.55 points"),
    ],
)
def test_the_teacher_is_judged_against_its_students(tmp_path, teacher, words):
    study = study_of(tmp_path, result_record(ALL), teacher)
    assert words in dict(findings(study))["Teacher"]


def test_a_student_that_lost_to_a_weak_teacher_is_named(tmp_path):
    results = result_record(ALL, collections=("scifact",))
    results["systems"]["full"]["scores"]["scifact"]["nDCG@10"] = 0.70
    said = dict(findings(study_of(tmp_path, results, teacher=0.72)))["Teacher"]
    assert "full@supervised already was (73.71), which lost 3.71 points" in said
    assert "pulls it down" in said


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder with all records, reported once."""
    return write_report(write_records(tmp_path_factory.mktemp("study"), result_record(ALL))).parent


def test_every_system_collection_and_measure_is_in_both_files(reported):
    texts = [Page((reported / "report.html").read_text()).text, (reported / "report.md").read_text()]
    for text in texts:
        for words in (*COLLECTIONS, "bm25", "dense-unsupervised+dense-supervised", *ALL, "fused", "5 others"):
            assert words in text
        for label in ("after unsupervised", "after supervised", "after distillation = full"):
            assert label in text
        for score in ("76.50", "53.01", "R@100 × 100", "RR@10 × 100", "search_document:", "0.02"):
            assert score in text


def test_the_best_of_each_column_is_marked_and_nothing_else(reported):
    html = (reported / "report.html").read_text()
    table = html[html.index("<caption>nDCG@10 × 100") : html.index("<caption>R@100")]
    # The mean, scifact and fiqa are highest after the unsupervised phase, nfcorpus at the end.
    assert re.findall(r'<td class="best">([\d.]+)</td>', table) == ["53.01", "76.76", "45.38", "37.28"]


def test_the_page_loads_nothing_and_runs_nothing(reported):
    html = (reported / "report.html").read_text()
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "img", "object", "embed", "image"}
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "onload"} & set(attributes)
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert target.startswith("#") or (tag == "a" and target == "recipe.json")
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*folder.glob("report.*"), *folder.glob("plots/*")]}


def test_the_same_records_give_the_same_bytes(reported, tmp_path):
    write_report(write_records(tmp_path, result_record(ALL)))
    assert set(files(tmp_path)) == {"report.html", "report.md", "quality.png", "cost.png", "losses.png"}
    assert files(tmp_path) == files(reported)


def test_hostile_names_stay_text(tmp_path):
    hostile = "<script>alert('$x^2$')</script>| [a](http://b) | _名"
    results = result_record(["kd-only", "full"])
    results = json.loads(
        json.dumps(results).replace('"full"', json.dumps(hostile)).replace('"fiqa"', json.dumps(hostile))
    )
    results["recipe"] = hostile
    html = write_report(write_records(tmp_path, results)).read_text()
    assert "<script" not in html
    assert hostile in Page(html).text
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if "after distillation = " in line]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[:2]}) == 1
    assert "[a](" not in "".join(rows)


def test_only_results_are_needed(tmp_path):
    results = result_record(ALL, collections=("scifact",)) | {"comparisons": []}
    write_json(tmp_path / "results.json", results)
    html = write_report(tmp_path).read_text()
    assert "<h2>Teachers</h2>" not in html
    assert "<h2>Comparisons</h2>" not in html
    assert "The answer: no pipeline is shown to be better" in html


def test_a_study_without_a_finished_pipeline_is_still_reported(tmp_path):
    results = result_record([])
    assert "No pipeline is finished yet" in write_report(write_records(tmp_path, results)).read_text()


def test_a_system_without_all_scores_gets_no_mean(tmp_path):
    results = result_record(ALL)
    del results["systems"]["full"]["scores"]["fiqa"]
    study = study_of(tmp_path, results)
    assert study.pipelines() == ["kd-only", "supervised-kd"]
    assert headline(study) == "Not to pre-train: no pipeline is shown to be better; take the cheapest: kd-only."


def test_phases_of_an_earlier_recipe_in_the_folder_are_ignored(tmp_path):
    study = study_of(tmp_path, result_record(["kd-only"]))
    write_json(tmp_path / "phases" / "old-u3" / "phase.json", phase_record("u3"))
    assert list(study.phases) == list(Study(tmp_path).phases)
    assert "u3" not in Study(tmp_path).phases


def test_a_folder_without_results_says_what_to_run(tmp_path):
    with pytest.raises(ColbertZeroError, match=r"no results\.json.*colbert-zero run RECIPE --out"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["results.json", "teachers.json", "data.json", "environment.json"])
@pytest.mark.parametrize("damage", [b'{"systems": ', b"\xff\xfe", b"[1]"])
def test_a_damaged_record_is_named(tmp_path, name, damage):
    write_records(tmp_path, result_record(["full"]))
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ColbertZeroError, match=re.escape(name)):
        write_report(tmp_path)


def test_a_damaged_system_is_named(tmp_path):
    results = result_record(["full"])
    write_records(tmp_path, results)
    del results["systems"]["full"]["phases"]
    write_json(tmp_path / "results.json", results)
    with pytest.raises(ColbertZeroError, match=r"results\.json: full lacks phases"):
        write_report(tmp_path)


def test_a_damaged_phase_is_named(tmp_path):
    write_records(tmp_path, result_record(["full"]))
    write_json(tmp_path / "phases" / "supervised-s3" / "phase.json", {"schema": 1})
    with pytest.raises(ColbertZeroError, match=r"supervised-s3/phase\.json lacks id, name"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (9.94, "9.9 s"), (42, "42 s"), (186, "3.1 min"), (9000, "2.5 h"), (408 * 3600, "17 days")],
)
def test_durations_read_in_their_natural_unit(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.1, "a tenth"), (0.34, "about a third"), (0.5, "half"), (0.42, "42 %"), (0.08, "8 %")],
)
def test_shares_are_words_where_a_word_is_close(ratio, words):
    assert fraction(ratio) == words
