"""What the report answers, in each case."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.files import write_json
from colbert_zero.report.answer import choice, findings, headline, sentence_about
from colbert_zero.report.records import Records
from example_records import ALL, records_of, result_record


def test_a_winner_beyond_chance_is_named_with_interval_and_corrected_p(tmp_path):
    records = records_of(tmp_path, result_record(ALL, p_value=0.004, collections=("scifact",)))
    assert headline(records) == "To pre-train: full is better than every other pipeline."
    score = dict(findings(records))["Best score"]
    assert "1.46 points more than kd-only" in score
    assert "95 % interval +0.26 to +2.66, Holm-corrected p = 0.004: significant" in score


def test_without_a_shown_difference_the_cheapest_is_advised(tmp_path):
    records = records_of(tmp_path, result_record(ALL, p_value=0.2))
    assert headline(records) == "Not to pre-train: no pipeline is shown to be better; take the cheapest: kd-only."
    said = dict(findings(records))
    best = said["Best score"]
    assert "0.61 points more than kd-only, 95 % interval −0.59 to +1.81, Holm-corrected p = 0.200: not signif" in best
    assert "a tenth of the compute (3.1 of 31 PFLOP)" in said["For less"]
    assert "is not shown to buy anything" in said["By budget"]


def test_a_cheaper_pipeline_that_keeps_up_is_advised_over_a_higher_score(tmp_path):
    results = result_record(ALL, p_value=0.2, collections=("scifact",))
    for test in results["comparisons"]:
        if {test["a"], test["b"]} == {"kd-only", "full"}:
            test["p_value_holm"] = 0.01
    records = records_of(tmp_path, results)
    assert headline(records).startswith("To pre-train in part: take supervised-kd; full scores highest but is not")
    assert "With 2.5 PFLOP take kd-only; from 31 PFLOP supervised-kd" in dict(findings(records))["By budget"]


def test_the_test_on_the_mean_decides_alone_and_single_collections_are_told_beside_it(tmp_path):
    results = result_record(["kd-only", "full"], p_value=0.01)
    for test in results["comparisons"]:
        if test["collection"] is None:
            test |= {"difference": -0.006, "p_value_holm": 0.3, "interval": [-0.02, 0.01]}
        else:
            test["difference"] = -0.2 if test["collection"] == "scifact" else 0.01
    shown, words = sentence_about(records_of(tmp_path, results), "full", "kd-only")
    assert not shown
    assert words.startswith("95 % interval −1.00 to +2.00, Holm-corrected p = 0.300: not significant; of 3 collections")
    assert "better on 1 (scifact" in words
    assert "worse on 2 (" in words


def test_an_older_study_without_a_test_on_the_mean_claims_nothing(tmp_path):
    results = result_record(ALL, p_value=0.0001)
    results["comparisons"] = [test for test in results["comparisons"] if test["collection"]]
    records = records_of(tmp_path, results)
    assert sentence_about(records, "full", "kd-only") == (False, "not tested")
    assert "no pipeline is shown to be better" in headline(records)


def test_a_pipeline_that_ends_worse_than_its_own_checkpoint_is_said_to_be_at_fault(tmp_path):
    results = result_record(ALL, p_value=0.2)
    [before] = [n for n, s in results["systems"].items() if s["pipeline"] == "full" and s["after"] == "unsupervised"]
    for scores in results["systems"][before]["scores"].values():
        scores["nDCG@10"] = 0.9
    test = {"family": "checkpoints", "a": "full", "b": before, "collection": None, "measure": "nDCG@10"}
    test |= {"difference": -0.1, "p_value": 0.001, "p_value_holm": 0.001, "interval": [-0.2, -0.05]}
    results["comparisons"].append(test)
    said = dict(findings(records_of(tmp_path, results)))
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
        results["systems"][name]["flops"] = cost
    results["systems"]["bm25"]["scores"]["scifact"]["nDCG@10"] = bm25
    pairs = [t for t in results["comparisons"] if t["measure"] == "nDCG@10" and t["collection"] is None]
    for test, chance in zip(pairs, chances, strict=True):
        test["p_value_holm"] = chance
        test["difference"] = means[ALL.index(test["a"])] - means[ALL.index(test["b"])]
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "results.json", results)
        records = Records(Path(folder))
    best = records.pipelines()[0]
    lost = {
        name
        for test in pairs
        for name in (test["a"], test["b"])
        if best in (test["a"], test["b"]) and name != best and test["p_value_holm"] < 0.05 and test["difference"]
    }
    allowed = [
        name for name, mean in zip(ALL, means, strict=True) if name == best or (name not in lost and mean > bm25)
    ]
    taken = choice(records, records.pipelines())
    assert taken in allowed
    assert costs[ALL.index(taken)] == min(costs[ALL.index(name)] for name in allowed)


def test_one_pipeline_alone_answers_nothing_and_says_so(tmp_path):
    records = records_of(tmp_path, result_record(["full"]), teacher=None)
    assert headline(records).startswith("Only one pipeline was run, full: this study cannot say")
    assert "Add a second pipeline" in dict(findings(records))["Score"]


def test_pipelines_below_bm25_are_called_so_plainly(tmp_path):
    results = result_record(ALL, p_value=0.001)
    for scores in results["systems"]["bm25"]["scores"].values():
        scores["nDCG@10"] = 0.8
    records = records_of(tmp_path, results)
    assert headline(records).startswith("None of these: BM25, which needs no training, scores 80.00")
    assert "below bm25 (80.00)" in dict(findings(records))["Against BM25"]
    assert "By budget" not in dict(findings(records))


def test_a_cheap_pipeline_below_bm25_is_never_advised(tmp_path):
    results = result_record(ALL, p_value=0.2, collections=("scifact",))
    results["systems"]["bm25"]["scores"]["scifact"]["nDCG@10"] = 0.76
    records = records_of(tmp_path, results)
    assert choice(records, records.pipelines()) == "full"
    assert "take the cheapest above BM25: full" in headline(records)
    assert "kd-only and supervised-kd not" in dict(findings(records))["Against BM25"]


def test_untested_differences_are_never_called_shown(tmp_path):
    records = records_of(tmp_path, result_record(ALL) | {"comparisons": []})
    assert "no pipeline is shown to be better" in headline(records)
    assert "kd-only, not tested" in dict(findings(records))["Best score"]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (0.58, "above every pipeline"),
        (0.52, "full ended above it. A stronger teacher may help"),
        (0.50, "weaker than its student full@supervised already was (50.59), which gained 1.55 points"),
    ],
)
def test_the_teacher_is_judged_against_its_students(tmp_path, teacher, words):
    records = records_of(tmp_path, result_record(ALL), teacher)
    assert words in dict(findings(records))["Teacher"]


def test_a_student_that_lost_to_a_weak_teacher_is_named(tmp_path):
    results = result_record(ALL, collections=("scifact",))
    results["systems"]["full"]["scores"]["scifact"]["nDCG@10"] = 0.70
    said = dict(findings(records_of(tmp_path, results, teacher=0.72)))["Teacher"]
    assert "full@supervised already was (73.71), which lost 3.71 points" in said
    assert "pulls it down" in said


def test_a_system_without_all_scores_gets_no_mean(tmp_path):
    results = result_record(ALL)
    del results["systems"]["full"]["scores"]["fiqa"]
    records = records_of(tmp_path, results)
    assert records.pipelines() == ["kd-only", "supervised-kd"]
    assert headline(records) == "Not to pre-train: no pipeline is shown to be better; take the cheapest: kd-only."


LAYERS = {"queries": 100, "documents": 900, "score": 0.5, "seconds": 2.0}


@pytest.mark.parametrize(
    ("low", "high", "alone"), [(0.02, 0.05, False), (0.0101, 0.04, False), (0.01, 0.04, True), (-0.03, -0.01, True)]
)
def test_a_conclusion_about_embeddings_alone_is_warned_of_in_the_answer(tmp_path, low, high, alone):
    gain = (low + high) / 2
    records = records_of(tmp_path, result_record(ALL, p_value=0.004))
    for phase in records.phases.values():
        phase["layers"] = LAYERS | {"without": 0.5 - gain, "difference": gain, "interval": [low, high]}
    said = dict(findings(records))
    assert ("Embeddings alone" in said, "Layers" in said) == (alone, not alone)
    text = said["Embeddings alone" if alone else "Layers"]
    assert ("take " if gain < 0 else "add ") in text
    assert ("not shown to add a point: token embeddings by themselves may give" in text) == alone


def test_a_phase_that_nobody_asked_what_its_layers_add_is_shown_without_it(tmp_path):
    said = dict(findings(records_of(tmp_path, result_record(ALL, p_value=0.004))))
    assert not {"Embeddings alone", "Layers", "Told in training"} & set(said)


def test_what_was_told_in_training_is_in_the_answer(tmp_path):
    records = records_of(tmp_path, result_record(ALL, p_value=0.004))
    next(iter(records.phases.values()))["told"] = ["phases.dense.temperature: this makes every softmax flat; lower it"]
    told = dict(findings(records))["Told in training"]
    assert told == "phases.dense.temperature: this makes every softmax flat; lower it."
