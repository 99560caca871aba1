"""Ensembles as systems of a small study, trained for real."""

from dataclasses import replace

import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ensembles import choose_greedily, fuse
from colbert_zero.evaluation.ranking import rank, rank_bm25
from colbert_zero.evaluation.runs import measure, read_run
from colbert_zero.files import read_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.shrunk import folder_bytes
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.report import write_report
from colbert_zero.study.comparison import run_study
from colbert_zero.study.ensembles import choose_members
from colbert_zero.terminal import results_tables
from helpers import data, study, write_rows

OF = ["dense", "full", "short"]


def recipe_of(folder):
    recipe = data(folder, teachers={})
    for name in ("hard", "scored"):
        del recipe["sources"][name]
    for name in ("supervised", "distillation"):
        del recipe["phases"][name]
    held = {"kind": "held-out", "source": "pairs", "documents": 20, "queries": 15}
    recipe["collections"] = {"test": held, "other": held, "dev": held}
    recipe["pipelines"] = {"full": ["dense", "unsupervised"], "short": ["unsupervised"]}
    recipe["ensembles"] = {
        "both": {"members": {"bm25": 1, "full": 0.5}},
        "best": {"of": OF, "choose": "greedy", "on": "dev", "temperature": 0.2},
        "models": {"members": {"short@unsupervised": 1, "full@dense": 2}},
    }
    return recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensembles")
    write_rows(folder / "pairs.jsonl", 200)
    made = study(folder, recipe_of(folder))
    return folder, made, run_study(made, None, "test")


def runs_of(made, collection, depth=1000):
    chains = {"full": ("dense", "unsupervised"), "dense": ("dense",), "short": ("unsupervised",)}
    runs = {
        name: rank(load_model(made.phase_folder(chain) / "model"), made.collections[collection], depth)
        for name, chain in chains.items()
    }
    return runs | {"bm25": rank_bm25(made.collections[collection], depth)}


def test_fixed_weights_are_the_fused_runs_of_the_members(finished):
    folder, made, results = finished
    for name, weights in {"both": {"bm25": 1, "full": 0.5}, "models": {"short": 1, "dense": 2}}.items():
        system = results["systems"][name]
        assert system["members"] == weights
        assert system["choice"] is None
        for collection in ("test", "other"):
            runs = runs_of(made, collection)
            expected = fuse([(weight, runs[member]) for member, weight in weights.items()], 100)
            written = read_run(folder / "out" / "runs" / f"{name}.{collection}.trec")
            assert {q: [d for d, _ in found] for q, found in written.items()} == {
                q: [d for d, _ in found] for q, found in expected.items()
            }
            scores = measure(expected, made.collections[collection].qrels)[0]
            assert system["scores"][collection] == pytest.approx(scores, abs=1e-9)


def test_a_greedy_choice_is_made_on_its_collection_and_recorded_with_its_path(finished):
    _, made, results = finished
    choice = results["systems"]["best"]["choice"]
    runs, qrels = runs_of(made, "dev"), made.collections["dev"].qrels
    expected = choose_greedily({name: runs[name] for name in OF}, qrels, 0.2, 20)
    assert choice["weights"] == expected.weights == results["systems"]["best"]["members"]
    assert [step["member"] for step in choice["path"]] == [name for name, _ in expected.path]
    assert [step["loss"] for step in choice["path"]] == pytest.approx([loss for _, loss in expected.path], abs=1e-6)
    for name in OF:
        alone = {"loss": expected.single[name], "score": measure(runs[name], qrels)[0]["nDCG@10"]}
        assert choice["members"][name] == pytest.approx(alone, abs=1e-6)
    chosen = fuse([(weight, runs[name]) for name, weight in expected.weights.items()], 1000)
    assert choice["score"] == choice["path"][-1]["score"] == pytest.approx(measure(chosen, qrels)[0]["nDCG@10"])
    best = max(OF, key=lambda name: choice["members"][name]["score"])
    assert choice["best_single"] == {"member": best, "score": choice["members"][best]["score"]}
    assert (choice["on"], choice["temperature"], choice["rounds"]) == ("dev", 0.2, 20)
    assert choice["queries"] + choice["shared"] + choice["unanswered"] == 15


def test_a_collection_for_choosing_is_in_no_mean_no_comparison_and_no_score(finished):
    folder, _, results = finished
    assert list(results["collections"]) == ["test", "other"]
    for system in results["systems"].values():
        assert list(system["scores"]) == ["test", "other"]
    assert {c["collection"] for c in results["comparisons"]} == {None, "test", "other"}
    recorded = read_json(folder / "out" / "data.json")["collections"]
    assert {name: entry.get("for_choosing", False) for name, entry in recorded.items()} == {
        "test": False, "other": False, "dev": True,
    }  # fmt: skip


class Spy(dict):
    """Judgements that tell when they are read."""

    def __init__(self, inner, read):
        super().__init__(inner)
        self.read = read

    def __getitem__(self, key):
        self.read.append(key)
        return super().__getitem__(key)

    def items(self):
        self.read.append("all")
        return super().items()

    def values(self):
        self.read.append("all")
        return super().values()

    def get(self, key, default=None):
        self.read.append(key)
        return super().get(key, default)

    def __iter__(self):
        self.read.append("all")
        return super().__iter__()


def test_a_greedy_choice_reads_no_judgement_of_what_is_compared(finished):
    folder, _, results = finished
    made = study(folder, recipe_of(folder))
    made.prepare([("dense", "unsupervised")])
    read = {name: [] for name in made.collections}
    for name, collection in made.collections.items():
        made.collections[name] = replace(collection, qrels=Spy(collection.qrels, read[name]))
    for reads in read.values():
        reads.clear()
    found = choose_members(made, "best", made.recipe.ensembles["best"])
    assert found == results["systems"]["best"]["choice"]
    assert read["dev"]
    assert not read["test"] + read["other"]


def test_an_ensemble_costs_what_its_members_distinct_phases_did_and_takes_what_all_of_them_take(finished):
    _, made, results = finished
    systems = results["systems"]
    assert [phase["name"] for phase in systems["models"]["phases"]] == ["unsupervised", "dense"]
    assert [phase["name"] for phase in systems["both"]["phases"]] == ["dense", "unsupervised"]
    for key in ("flops", "cpu_seconds", "device_seconds"):
        of_models = systems["short"][key] + systems["dense"][key]
        assert systems["models"][key] == pytest.approx(of_models, abs=0.01)
        assert systems["both"][key] == systems["full"][key]
    assert (systems["bm25"]["model_bytes"], systems["bm25"]["query_flops"]) == (0, 0)
    for key in ("model_bytes", "query_flops"):
        assert systems["both"][key] == systems["full"][key] > 0
        assert systems["models"][key] == systems["short"][key] + systems["dense"][key]
    folder = made.phase_folder(("dense", "unsupervised")) / "model"
    assert systems["full"]["model_bytes"] == folder_bytes(folder)
    model = load_model(folder)
    texts = [text for name in ("test", "other") for text in made.collections[name].queries.values()]
    # Each alone, without padding: what stands before it, its own tokens, and the two ends.
    tokens = [model.preprocess([t], prompt=model.prompts["query"], task="query")["input_ids"].shape[1] for t in texts]
    embeddings = model[0].get_submodule("model").get_input_embeddings().weight.numel()
    parameters = sum(weight.numel() for weight in model.parameters()) - embeddings
    assert systems["full"]["query_flops"] == pytest.approx(2 * parameters * sum(tokens) / len(tokens))


def test_each_ensemble_is_tested_against_its_best_member_and_bm25_in_a_family_of_their_own(finished):
    _, _, results = finished
    systems = results["systems"]

    def mean(name):
        return sum(scores["nDCG@10"] for scores in systems[name]["scores"].values()) / 2

    rows = [c for c in results["comparisons"] if c["family"] == "ensembles" and c["collection"] is None]
    expected = []
    for name in ("both", "best", "models"):
        members = systems[name]["members"]
        if len(members) > 1:
            best = max(members, key=mean)
            expected += [(name, best)] + ([(name, "bm25")] if best != "bm25" else [])
    assert [(row["a"], row["b"]) for row in rows] == expected
    least = min(row["p_value"] for row in rows)
    assert min(row["p_value_holm"] for row in rows) == pytest.approx(min(1, least * len(rows)))
    others = [c for c in results["comparisons"] if c["family"] != "ensembles"]
    assert not {c[side] for c in others for side in "ab"} & {"both", "best", "models"}


def test_running_again_ranks_and_measures_nothing_anew_and_gives_the_same_results(finished, monkeypatch):
    folder, _, results = finished

    def refuse(*args, **kwargs):
        raise AssertionError("again")

    for name in ("study.train_phase", "study.rank", "rankings.rank_bm25", "ensembles.footprint"):
        monkeypatch.setattr(f"colbert_zero.study.{name}", refuse)
    assert run_study(study(folder, recipe_of(folder)), None, "test") == results


def test_a_study_of_some_pipelines_leaves_out_ensembles_of_others_and_says_so(finished):
    folder, _, results = finished
    made = study(folder, recipe_of(folder))
    told = []
    made.show.say = told.append
    found = run_study(made, ["short"], "test")
    assert not {"both", "best", "models"} & set(found["systems"])
    assert "ensembles.both: left out, since its member full is" in told
    assert "ensembles.models: left out, since its member full@dense is" in told
    assert list(found["collections"]) == ["test", "other"]
    assert run_study(study(folder, recipe_of(folder)), None, "test") == results


def test_queries_that_are_compared_on_too_are_not_chosen_by(finished):
    folder, _, _ = finished
    made = study(folder, recipe_of(folder))
    made.prepare([("dense", "unsupervised")])
    ensemble = made.recipe.ensembles["best"]
    dev, test = made.collections["dev"], made.collections["test"]
    shared = {f"x{query}": dev.queries[query] for query in list(dev.queries)[:3]}
    made.collections["test"] = replace(test, queries=test.queries | shared)
    found = choose_members(made, "best", ensemble)
    assert found["shared"] == 3
    assert found["queries"] + found["unanswered"] == 12
    made.collections["test"] = dev
    with pytest.raises(ColbertZeroError, match=r"^ensembles\.best\.on: dev has no query that is not compared on too"):
        choose_members(made, "best", ensemble)


def test_ensembles_change_no_phases_id(finished):
    folder, made, _ = finished
    recipe = recipe_of(folder)
    del recipe["ensembles"]
    without = study(folder, recipe)
    without.prepare([("dense", "unsupervised")])
    assert without.phase_id(("dense", "unsupervised")) == made.phase_id(("dense", "unsupervised"))


def test_a_recipe_written_whole_beside_the_results_is_the_same_recipe(finished):
    folder, made, _ = finished
    assert check_recipe(read_json(folder / "out" / "recipe.json")) == made.recipe


def test_the_report_and_the_terminal_show_ensembles_with_what_they_take(finished):
    folder, _, results = finished
    write_report(folder / "out")
    page = (folder / "out" / "report.md").read_text()
    assert "## Two models or one" in page
    assert "for choosing" in page
    assert "1 × bm25 + 0.5 × full" in page
    tables = results_tables(results, 200)
    assert "ensembles" in [str(cell) for cell in tables[0].columns[0].cells]
    headings = [str(column.header) for column in tables[0].columns]
    assert {"model", "a query"} <= set(headings)
