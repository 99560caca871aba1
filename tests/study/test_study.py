"""Small studies on files, trained for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from colbert_zero.data.collection import Collection
from colbert_zero.data.layouts import write_beir
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation import ranking as evaluation
from colbert_zero.evaluation.ensembles import fuse
from colbert_zero.evaluation.runs import measure, read_run
from colbert_zero.files import read_json, write_json
from colbert_zero.recipe import schema as recipes
from colbert_zero.recipe.named import GROUPS, NAMED
from colbert_zero.recipe.reading import check_recipe, load_recipe
from colbert_zero.report import write_report
from colbert_zero.study.comparison import families, run_study
from colbert_zero.study.graph import chain_to, graph
from colbert_zero.study.show import Quiet
from colbert_zero.study.steps import outline
from colbert_zero.study.study import Study
from helpers import DOCUMENTS, QRELS, QUERIES, data, study, with_cross_encoder, write_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_rows(folder / "pairs.jsonl")
    return folder, run_study(study(folder, data(folder)), None, "test")


def test_every_pipeline_checkpoint_and_baseline_is_scored_and_recorded(finished):
    folder, results = finished
    systems = results["systems"]
    assert list(systems) == ["bm25", "dense", "full@unsupervised", "kd-only", "full@supervised", "full"]
    assert {n for n, s in systems.items() if s["kind"] == "pipeline" and s["after"] is None} == {"kd-only", "full"}
    assert [p["name"] for p in systems["full"]["phases"]] == ["unsupervised", "supervised", "distillation"]
    for name, system in systems.items():
        assert set(system["scores"]["held-out"]) == {"nDCG@10", "R@100", "RR@10"}
        assert (folder / "out" / "runs" / f"{name}.held-out.trec").is_file()
        assert len(read_json(folder / "out" / "per_query" / f"{name}.held-out.json")) == 20
    for s in systems.values():
        for key in ("flops", "cpu_seconds", "device_seconds"):
            assert s[key] == pytest.approx(sum(phase[key] for phase in s["phases"]), abs=0.01)
    for phase in systems["full"]["phases"]:
        record = read_json(folder / "out" / "phases" / f"{phase['name']}-{phase['id']}" / "phase.json")
        assert phase == {key: record[key] for key in phase}
        assert {"flops", *COUNTED} < set(phase)
    seen = {"verdict": "documents seen", "queries_seen": 0, "documents_seen": 30}  # the rows' words come in cycles
    assert results["collections"] == {"held-out": {"documents": 30, "queries": 20, "leaks": seen}}
    pairs = [(c["family"], c["a"], c["b"]) for c in results["comparisons"] if c["collection"] is None]
    assert pairs == [
        ("pipelines", "kd-only", "full"),
        ("pipelines", "kd-only", "bm25"),
        ("pipelines", "full", "bm25"),
        ("pipelines", "kd-only", "dense"),
        ("pipelines", "full", "dense"),
        ("checkpoints", "full", "full@unsupervised"),
        ("checkpoints", "full", "full@supervised"),
    ]
    assert [c["collection"] for c in results["comparisons"]].count("held-out") == len(pairs)
    assert read_json(folder / "out" / "results.json") == json.loads(json.dumps(results))
    teacher = read_json(folder / "out" / "teachers.json")["blend"]
    assert teacher["n_ways"] == 4
    assert teacher["queries"] == 64
    assert teacher["flops"] == systems["full@unsupervised"]["flops"]
    assert teacher["scoring_seconds"] > 0


COUNTED = ("padding_flops", "second_pass_flops", "wall_seconds", "cpu_seconds", "threads")


def test_a_finished_study_whose_phases_are_older_is_compared_without_their_counts(finished, tmp_path):
    folder, results = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    [path] = (tmp_path / "out" / "phases").glob("dense-*/phase.json")
    write_json(path, {key: value for key, value in read_json(path).items() if key not in COUNTED})
    again = run_study(study(tmp_path, data(tmp_path)), None, "test")["systems"]
    for name in ("dense", "kd-only"):
        assert (again[name]["flops"], again[name]["cpu_seconds"]) == (None, None)
        assert again[name]["device_seconds"] == results["systems"][name]["device_seconds"]
    assert {again["dense"]["phases"][0][key] for key in ("flops", *COUNTED)} == {None}
    assert again["full"] == results["systems"]["full"]
    assert write_report(tmp_path / "out").is_file()


def system(kind, representation, phases, score):
    return {
        "kind": kind,
        "representation": representation,
        "phases": [{"id": phase} for phase in phases],
        "scores": {"c": {"nDCG@10": score}},
    }


def test_a_shared_checkpoint_is_tested_against_every_pipeline_it_is_part_of_and_each_pair_once():
    systems = {
        "bm25": system("baseline", "lexical", [], 0.3),
        "weak": system("baseline", "dense", ["d"], 0.2),
        "strong": system("baseline", "dense", ["e"], 0.4),
        "one@u": system("pipeline", "multi-vector", ["u"], 0.5),
        "one": system("pipeline", "multi-vector", ["u", "k"], 0.5),
        "two": system("pipeline", "multi-vector", ["u", "s"], 0.5),
        "short": system("pipeline", "multi-vector", ["u"], 0.5),
        "from-dense": system("pipeline", "multi-vector", ["d", "t"], 0.5),
    }
    found = families(systems, ["one", "two", "from-dense"])
    assert found["checkpoints"] == [("one", "short"), ("two", "short")]
    assert ("one", "strong") in found["pipelines"]
    assert not [pair for pair in found["pipelines"] if "weak" in pair]
    # Where the checkpoint is a finished pipeline, its pairs are in the first family already.
    found = families(systems, ["one", "two", "short"])
    assert found["checkpoints"] == []
    assert {("one", "two"), ("one", "short"), ("two", "short")} < set(found["pipelines"])


def test_a_phase_record_accounts_for_every_text_and_token(finished):
    folder, _ = finished
    for phase in (folder / "out" / "phases").glob("*/phase.json"):
        record = read_json(phase)
        per_query = {"dense": 2, "unsupervised": 2, "supervised": 4, "distillation": 5}[record["name"]]
        assert record["texts"] == record["steps"] * record["global_batch_size"] * per_query
        assert record["texts"] * 3 < record["tokens"] < record["texts"] * 30
        assert sum(s["batches"] for s in record["sources"].values()) == record["steps"] == len(record["losses"])
        assert record["device_seconds"] > 0
        assert record["flops"] > 0


def test_held_out_queries_and_documents_are_in_no_training_row(finished):
    folder, _ = finished
    prepared = study(folder, data(folder))
    prepared.prepare([("unsupervised",)])
    source = prepared.sources["pairs"]
    seen = {t for p in source.parts.values() for r in [p.read(range(len(p)))] for t in (*r["query"], *r["document"])}
    collection = prepared.collections["held-out"]
    assert not seen & set(collection.queries.values())
    assert not seen & {text for _, text in collection.documents()}


def test_running_again_trains_and_ranks_nothing_and_gives_the_same_results(finished, monkeypatch):
    folder, results = finished

    def refuse(*args, **kwargs):
        raise AssertionError("recomputed")

    for name in ("study.train_phase", "study.rank", "rankings.rank_bm25", "study.mine_source", "study.score"):
        monkeypatch.setattr(f"colbert_zero.study.{name}", refuse)
    records = [folder / "out" / name for name in ("teachers.json", "data.json")]
    before = [record.read_bytes() for record in records]
    assert run_study(study(folder, data(folder)), None, "test") == results
    assert [record.read_bytes() for record in records] == before


def test_a_checkpoint_with_several_names_is_ranked_once_also_by_a_run_that_was_killed(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    # `dense` is a baseline and a pipeline's end, `unsupervised` a pipeline, a checkpoint and, with BM25, a teacher.
    recipe["pipelines"] |= {"dense-only": ["dense"], "short": ["unsupervised"]}
    made = []

    def counted(name, rank):
        def counting(*args, **kwargs):
            if len(made) == 3 and not killed:
                killed.append(True)
                raise KeyboardInterrupt
            made.append(name)
            return rank(*args, **kwargs)

        return counting

    killed = []
    monkeypatch.setattr("colbert_zero.study.study.rank", counted("model", evaluation.rank))
    monkeypatch.setattr("colbert_zero.study.rankings.rank_bm25", counted("bm25", evaluation.rank_bm25))
    with pytest.raises(KeyboardInterrupt):
        run_study(study(tmp_path, recipe), None, "test")
    results = run_study(study(tmp_path, recipe), None, "test")
    assert made.count("bm25") == 1
    # dense, unsupervised, kd-only, full@supervised, full.
    assert made.count("model") == 5
    systems = results["systems"]
    assert systems["dense"]["scores"] == systems["dense-only"]["scores"]
    assert systems["short"]["scores"] == systems["full@unsupervised"]["scores"]
    # A folder of before has no deep rankings, and needs none.
    shutil.rmtree(tmp_path / "out" / "runs" / "deep")
    assert run_study(study(tmp_path, recipe), None, "test") == results
    assert len(made) == 6


def test_changing_a_number_reruns_exactly_what_depends_on_it(finished):
    folder, _ = finished
    before, changed = study(folder, data(folder)), data(folder)
    changed["phases"]["supervised"]["learning_rate"] = 1e-4
    after = study(folder, changed)
    for s in (before, after):
        s.prepare([("unsupervised", "supervised")])
    same = {c: before.phase_id(c) == after.phase_id(c) for c in graph(before.recipe, chain_map(before.recipe))}
    assert same == {
        ("unsupervised",): True, ("dense",): True, ("dense", "distillation"): True,
        ("unsupervised", "supervised"): False, ("unsupervised", "supervised", "distillation"): False,
    }  # fmt: skip
    checkpoints = data(folder)
    checkpoints["phases"]["supervised"]["checkpoint_every"] = 1
    kept = study(folder, checkpoints)
    kept.prepare([("unsupervised", "supervised")])
    assert kept.phase_id(("unsupervised", "supervised")) == before.phase_id(("unsupervised", "supervised"))


def chain_map(recipe):
    return {name: tuple(chain) for name, chain in recipe.pipelines.items()}


IDS = {
    ("dense",): "347fff03c666",
    ("unsupervised",): "996c6aff2d6d",
    ("unsupervised", "supervised"): "698486a9101f",
    # Asked for outright, the scores that distillation once took without being asked are the same training.
    ("unsupervised", "supervised", "distillation"): "74e402994d93",
}


def test_ids_are_those_of_the_first_version_and_a_new_key_changes_none_until_it_is_used(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["distillation"]["student_scores"] = "raw"

    def ids():
        made = study(tmp_path, recipe)
        made.prepare([("dense",), ("unsupervised",), ("unsupervised", "supervised")])
        return {chain: made.phase_id(chain) for chain in IDS}

    assert ids() == IDS

    class Phase(recipes.Phase):
        depth: Annotated[int, recipes.Neutral(0)] = 0
        """A key that came later; 0 is what the program did before."""

    class Recipe(recipes.Recipe):
        phases: dict[str, Phase]

    monkeypatch.setattr("colbert_zero.recipe.reading.Recipe", Recipe)
    assert ids() == IDS
    recipe["phases"]["supervised"]["depth"] = 1
    changed = ids()
    assert [chain for chain in IDS if changed[chain] != IDS[chain]] == [
        ("unsupervised", "supervised"),
        ("unsupervised", "supervised", "distillation"),
    ]


def test_a_default_that_is_not_neutral_is_written_into_the_id(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    chain = ("unsupervised", "supervised", "distillation")
    assert study(tmp_path, data(tmp_path)).phase_id(chain) != IDS[chain]


def test_a_base_is_known_by_what_is_in_it_not_by_where_it_lies(tmp_path, backbone):
    write_rows(tmp_path / "pairs.jsonl")
    for name in ("here", "there"):
        shutil.copytree(backbone, tmp_path / name)
    starts = []
    for name in ("here", "there"):
        made = study(tmp_path, data(tmp_path, model={"base": str(tmp_path / name), "dim": 16}))
        starts.append(made.start_id())
    assert starts[0] == starts[1]
    weights = load_file(tmp_path / "there" / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "there" / "model.safetensors", {"format": "pt"})
    assert made.start_id() != starts[1]


def test_a_changed_data_file_changes_everything_trained_on_it(finished, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", 161)
    folder, _ = finished
    one, other = study(folder, data(folder)), study(tmp_path, data(tmp_path))
    for s in (one, other):
        s.prepare([("unsupervised",)])
    assert one.phase_id(("unsupervised",)) != other.phase_id(("unsupervised",))


def test_dense_and_multi_vector_arms_see_the_same_rows_in_the_same_order(finished):
    folder, _ = finished
    records = {r["name"]: r for r in map(read_json, (folder / "out" / "phases").glob("*/phase.json"))}
    assert records["dense"]["seed"] == records["unsupervised"]["seed"]
    assert [e["source"] for e in records["dense"]["losses"]] == [e["source"] for e in records["unsupervised"]["losses"]]
    # Markers are the multi-vector arm's own: one more token a text, all else equal.
    assert records["unsupervised"]["tokens"] - records["dense"]["tokens"] == records["dense"]["texts"]


def test_the_same_recipe_and_seed_give_the_same_weights(finished, tmp_path):
    folder, _ = finished
    write_rows(tmp_path / "pairs.jsonl")
    again = study(tmp_path, data(tmp_path))
    again.prepare([("unsupervised",)])
    again.train(("unsupervised",))
    [first] = (folder / "out" / "phases").glob("unsupervised-*/model/model.safetensors")
    assert first.read_bytes() == (again.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes()


def test_a_phase_killed_between_checkpoints_ends_bit_identical(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["unsupervised"] |= {"checkpoint_every": 2, "temperature": {"initial": 1.0}}
    undisturbed = study(tmp_path, recipe)
    undisturbed.prepare([("unsupervised",)])
    expected = undisturbed.train(("unsupervised",))
    weights = (undisturbed.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes()

    killed = Study(undisturbed.recipe, tmp_path / "killed", Quiet(), tmp_path / "cache")
    killed.prepare([("unsupervised",)])

    class Stop(BaseException):
        pass

    class Stopping(Quiet):
        @contextmanager
        def bar(self, name, total):
            def advance(done, values):
                if done == 5:
                    raise Stop

            yield advance

    killed.show = Stopping()
    with pytest.raises(Stop):
        killed.train(("unsupervised",))
    assert not killed.is_done(("unsupervised",))
    unfinished = killed.phase_folder(("unsupervised",)).with_suffix(".unfinished")
    assert [p.name for p in sorted(unfinished.iterdir())] == ["step-2", "step-4"]
    # A flipped byte in the newest checkpoint: it is noticed, the one before it used.
    file = unfinished / "step-4" / "weights.safetensors"
    file.write_bytes(
        file.read_bytes()[:-1] + b"\x00" if file.read_bytes()[-1:] != b"\x00" else file.read_bytes()[:-1] + b"\x01"
    )
    killed.show = Quiet()
    record = killed.train(("unsupervised",))
    assert (killed.phase_folder(("unsupervised",)) / "model" / "model.safetensors").read_bytes() == weights
    for key in ("texts", "tokens", "final_loss", "temperature"):
        assert record[key] == expected[key]
    assert [e["loss"] for e in record["losses"]] == [e["loss"] for e in expected["losses"]]
    assert not unfinished.exists()


def test_a_loss_that_is_not_finite_stops_with_step_source_and_checkpoint(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["unsupervised"] |= {"learning_rate": 1e18, "warmup": 0.0, "max_gradient_norm": 1e30}
    hot = study(tmp_path, recipe)
    hot.prepare([("unsupervised",)])
    with pytest.raises(
        ColbertZeroError, match=r"phases.unsupervised: the loss is \w+ at step \d+ of 6, in a batch of pairs/pairs"
    ):
        hot.train(("unsupervised",))
    assert not hot.is_done(("unsupervised",))


def test_a_gradient_that_is_not_finite_moves_no_weight(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    one = study(tmp_path, data(tmp_path))
    one.prepare([("unsupervised",)])
    norms = iter([1.0, float("nan")])
    monkeypatch.setattr("colbert_zero.training.phase.clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    with pytest.raises(ColbertZeroError, match=r"gradient.s norm is nan at step 2 of 6.*last good checkpoint is"):
        one.train(("unsupervised",))
    assert not one.is_done(("unsupervised",))


def test_a_collection_in_hub_layout_is_ranked_and_compared_under_its_own_name(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    rows = {
        "corpus": [{"_id": str(n), "title": "", "text": f"wing lift {n}"} for n in range(12)],
        "queries": [{"_id": f"q{n}", "text": f"lift {n}"} for n in range(6)],
        "qrels": [{"query-id": f"q{n}", "corpus-id": str(n), "score": 1} for n in range(7)],
    }
    lines = ["---", "configs:"]
    for name, table in rows.items():
        (tmp_path / "nano" / name).mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in table)
        (tmp_path / "nano" / name / "train.jsonl").write_text(text)
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train.jsonl"]
    (tmp_path / "nano" / "README.md").write_text("\n".join([*lines, "---", ""]))
    recipe = data(tmp_path)
    recipe["collections"]["nano"] = {"kind": "hub", "path": str(tmp_path / "nano"), "on_missing": "count"}
    recipe["pipelines"] = {"full": ["unsupervised"], "other": ["dense", "unsupervised"]}
    results = run_study(study(tmp_path, recipe), None, "test")
    assert set(results["systems"]["full"]["scores"]) == {"held-out", "nano"}
    assert any(test["collection"] == "nano" for test in results["comparisons"])
    assert (tmp_path / "out" / "runs" / "full.nano.trec").is_file()
    counted = read_json(tmp_path / "out" / "data.json")["collections"]["nano"]
    assert [counted[key] for key in ("queries", "judgements", "missing", "missing_queries")] == [6, 6, 0, 1]


@pytest.mark.slow
def test_public_collections_are_named_a_group_once_and_change_no_phase(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    for place, named in enumerate([NAMED["beir/scifact"], *GROUPS["beir/cqadupstack"]]):
        few = dict(list(QRELS.items())[: 1 + place % 5])
        write_beir(Collection.from_memory("x", DOCUMENTS, QUERIES, few), tmp_path / "home" / named.folder)
    monkeypatch.setenv("BEIR_HOME", str(tmp_path / "home"))
    recipe = data(tmp_path)
    recipe["pipelines"] = {"full": ["unsupervised"], "other": ["dense", "unsupervised"]}
    before = study(tmp_path, recipe)
    before.prepare([("unsupervised",)])
    recipe["collections"]["scifact"] = {"kind": "named", "name": "beir/scifact"}
    recipe["collections"]["cqa"] = {"kind": "named", "name": "beir/cqadupstack"}
    one = study(tmp_path, recipe)
    results = run_study(one, None, "test")
    assert one.phase_id(("unsupervised",)) == before.phase_id(("unsupervised",))
    parts = [f"cqa-{named.part}" for named in GROUPS["beir/cqadupstack"]]
    assert list(one.collections) == ["held-out", "scifact", *parts]
    assert list(results["collections"]) == ["held-out", "scifact", "cqa"]
    clean = {"verdict": "clean", "queries_seen": 0, "documents_seen": 0}
    known = {"documents": 240, "queries": 35, "name": "beir/cqadupstack", "leaks": clean}
    assert results["collections"]["cqa"] == known
    scores = results["systems"]["full"]["scores"]
    of_parts = [read_json(tmp_path / "out" / "per_query" / f"full.{part}.json").values() for part in parts]
    means = [sum(scores["nDCG@10"] for scores in queries) / len(queries) for queries in of_parts]
    assert scores["cqa"]["nDCG@10"] == pytest.approx(sum(means) / 12)
    whole = sum(of_one["nDCG@10"] for of_one in scores.values()) / 3
    other = sum(of_one["nDCG@10"] for of_one in results["systems"]["other"]["scores"].values()) / 3
    [mean] = [t for t in results["comparisons"] if t["collection"] is None and (t["a"], t["b"]) == ("full", "other")]
    assert mean["difference"] == pytest.approx(whole - other)
    assert {test["collection"] for test in results["comparisons"]} == {None, "held-out", "scifact", "cqa"}
    known = read_json(tmp_path / "out" / "data.json")["collections"]["cqa-tex"]
    assert known["read_from"] == str(tmp_path / "home" / "cqadupstack" / "tex")
    assert known["from"]["name"] == "beir/cqadupstack/tex"
    assert "Published figures" in write_report(tmp_path / "out").read_text()
    again = check_recipe(read_json(tmp_path / "out" / "recipe.json"))
    assert list(again.collections) == list(one.collections)


def test_a_plan_has_the_steps_that_are_trained(tmp_path):
    for name, count in {"a": 160, "b": 161, "c": 162}.items():
        write_rows(tmp_path / f"{name}.jsonl", count)
    recipe = data(tmp_path)
    recipe["sources"] = {
        "pairs": {"kind": "jsonl", "path": str(tmp_path / "*.jsonl")},
        "hard": {"kind": "mined", "of": "pairs", "negatives": 2, "queries": 97},
    }
    recipe["teachers"], recipe["pipelines"] = {}, {"only": ["supervised"]}
    phase = recipe["phases"]["supervised"] | {"sources": ["hard"], "global_batch_size": 33, "epochs": 1}
    recipe["phases"] = {"supervised": {k: v for k, v in phase.items() if k != "steps"}}
    one = study(tmp_path, recipe)
    one.prepare([("supervised",)])
    try:
        (planned,) = outline(one, [("supervised",)])
    except ColbertZeroError as error:
        pytest.fail(str(error))
    assert planned.steps == one.train(("supervised",))["steps"]


def test_data_that_cannot_serve_a_phase_is_named_before_training(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    big, few = data(tmp_path), data(tmp_path)
    big["phases"]["unsupervised"]["global_batch_size"] = 500
    few["phases"]["unsupervised"]["negatives"] = 1
    wrong = study(tmp_path, big)
    wrong.prepare([("unsupervised",)])
    with pytest.raises(ColbertZeroError, match=r"global_batch_size: 500.*largest, pairs/pairs, has 130 rows"):
        wrong.train(("unsupervised",))
    with pytest.raises(ColbertZeroError, match=r"negatives: 1.*only 0"):
        study(tmp_path, few).prepare([("unsupervised",)])


@pytest.mark.parametrize("kind", ["beir", "hub"])
def test_a_collection_that_is_not_there_is_told_before_sources_are_prepared(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["collections"]["mine"] = {"kind": kind, "path": str(tmp_path / "nowhere")}
    one = study(tmp_path, recipe)
    with pytest.raises(ColbertZeroError, match="nowhere"):
        one.prepare([("unsupervised",)])
    assert not one.data.exists()


def test_collections_stay_in_the_recipes_order(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    write_beir(Collection.from_memory("mine", DOCUMENTS, QUERIES, QRELS), tmp_path / "mine")
    recipe = data(tmp_path)
    recipe["collections"]["mine"] = {"kind": "beir", "path": str(tmp_path / "mine")}
    recipe["collections"]["other"] = {**recipe["collections"]["held-out"], "documents": 20}
    one = study(tmp_path, recipe)
    one.prepare([("unsupervised",)])
    assert list(one.collections) == ["held-out", "mine", "other"]


LATER = {
    "pairs for distillation": ({"objective": "distillation"}, "has pairs, distillation needs candidates with scores"),
    "negatives that are not there": ({"objective": "contrastive", "negatives": 2}, "negatives: 2.*only 0"),
}


@pytest.mark.parametrize(("phase", "message"), LATER.values(), ids=LATER)
def test_data_that_cannot_serve_a_later_phase_are_told_before_the_first_is_trained(tmp_path, phase, message):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path, teachers={})
    recipe["sources"] = {"pairs": recipe["sources"]["pairs"]}
    recipe["phases"] = {
        "first": recipe["phases"]["unsupervised"],
        "later": {"representation": "multi-vector", "sources": ["pairs"], "global_batch_size": 8, "learning_rate": 1e-3}
        | phase,
    }
    recipe["pipelines"] = {"one": ["first", "later"]}
    with pytest.raises(ColbertZeroError, match=f"phases.later.*{message}"):
        study(tmp_path, recipe).prepare([("first",), ("first", "later")])


def test_a_phase_that_starts_differently_in_several_pipelines_must_be_told_apart(tmp_path):
    recipe = check_recipe(data(tmp_path))
    assert chain_to(recipe, "supervised") == ("unsupervised", "supervised")
    assert chain_to(recipe, "full@distillation") == ("unsupervised", "supervised", "distillation")
    with pytest.raises(ColbertZeroError, match="kd-only@distillation, full@distillation"):
        chain_to(recipe, "distillation")
    with pytest.raises(ColbertZeroError, match="no pipeline has it"):
        chain_to(recipe, "nothing")


def test_other_prompts_in_a_later_phase_are_refused_before_it_trains(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["phases"]["supervised"]["prompts"] = {"query": "other: ", "document": "d: "}
    with pytest.raises(ColbertZeroError, match="allow_prompt_mismatch"):
        check_recipe(recipe)
    for phase in ("supervised", "distillation"):
        recipe["phases"][phase]["allow_prompt_mismatch"] = True
    assert check_recipe(recipe)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_smoke_recipe_killed_five_times_ends_with_the_scores_of_an_undisturbed_run(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def command(out, *more):
        return [sys.executable, "-m", "colbert_zero", "run", "smoke", "--out", str(tmp_path / out), *more]

    started = time.monotonic()
    subprocess.run(command("whole"), check=True, env=environment, capture_output=True)
    seconds = time.monotonic() - started
    again = subprocess.run(command("whole"), check=True, env=environment, capture_output=True, text=True)
    assert "loss" not in again.stdout
    for k in range(5):
        process = subprocess.Popen(
            command("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds * (0.2 + 0.61803 * k % 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), check=True, env=environment, capture_output=True)
    whole, killed = (read_json(tmp_path / name / "results.json") for name in ("whole", "killed"))
    assert {n: s["scores"] for n, s in whole["systems"].items()} == {
        n: s["scores"] for n, s in killed["systems"].items()
    }
    assert whole["comparisons"] == killed["comparisons"]
    report = (tmp_path / "killed" / "report.html").read_text()
    assert "full" in report


def test_the_resolved_recipe_of_a_run_runs_again(finished):
    folder, _ = finished
    resolved = load_recipe(folder / "out" / "recipe.json")
    assert resolved == check_recipe(data(folder))


def test_the_command_line_runs_a_recipe_file_and_says_what_it_did(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path)
    recipe["pipelines"] = {"full": ["unsupervised"]}
    recipe["name"] = "mine"
    Path(tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    command = [
        sys.executable,
        "-m",
        "colbert_zero",
        "run",
        "mine.yaml",
        "--out",
        "out",
        "--set",
        "phases.unsupervised.steps=2",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    assert result.returncode == 0, result.stderr
    assert "unsupervised: 2 in" in result.stdout
    assert "Report: out/report.html" in result.stdout
    assert read_json(tmp_path / "out" / "results.json")["recipe"] == "mine"
    dry = subprocess.run([*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert "done" in dry.stdout


DOCSTRINGS = {"kind": "docstrings", "packages": ["json"], "min_rows": 1}


def without_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])  # as for a user whom the system does not know


def read_only(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)


def without_a_parent(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("place", [without_home, read_only, without_a_parent])
def test_docstrings_are_kept_in_the_study_where_the_users_cache_cannot_be_written(place, tmp_path, monkeypatch):
    place(monkeypatch, tmp_path)
    one, told = study(tmp_path, data(tmp_path, sources={**data(tmp_path)["sources"], "docs": DOCSTRINGS})), []
    one.cache, one.show.say = None, told.append
    assert one._docstring_cache({"pairs", "docs"}) == one.data / "docstrings"
    assert len(told) == 1
    assert "the user's cache cannot be written (XDG_CACHE_HOME names another)" in told[0]
    one._docstring_cache({"pairs"})  # which has none
    assert len(told) == 1


def test_docstrings_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = study(tmp_path, data(tmp_path))
    one.cache = None
    assert one._docstring_cache({"pairs"}) == tmp_path / "cache" / "colbert-zero" / "docstrings"


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", {"base": "~/model", "dim": 16}), ("collections", {"mine": {"kind": "beir", "path": "~/collection"}})],
)
def test_a_path_in_a_home_that_nobody_knows_is_not_there(key, value, tmp_path, monkeypatch):
    without_home(monkeypatch, tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    with pytest.raises(ColbertZeroError, match="~/"):
        study(tmp_path, data(tmp_path, **{key: value})).prepare([("unsupervised",)])


# ---- Mining with models


def _with_miners(folder, **asked):
    recipe = data(folder)
    recipe["sources"]["hard"] |= {"miners": "bm25", **asked}
    return recipe


def test_a_source_mined_by_a_model_is_made_told_and_trained_on(tmp_path, tiny_multi_vector):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl")
    told = []
    made = study(tmp_path, _with_miners(tmp_path, miners=f"bm25:60,{tmp_path}/model:40", max_relative=0.99))
    made.show.say = told.append
    made.prepare([("unsupervised", "supervised")])
    record = made.train(("unsupervised", "supervised"))
    assert record["steps"] == 3
    assert any(line.startswith("sources.hard: bm25: ") for line in told)
    mined = made.sources["hard"].record
    assert (mined["of"], mined["judge"], mined["rows"]) == ("pairs", f"{tmp_path}/model", 64 - mined["left_out"])
    assert not list((tmp_path / "out" / "data").glob("*.unfinished"))


@pytest.mark.parametrize(
    "asked", [{"max_relative": 0.9}, {"judge": "bm25"}, {"miners": "bm25:80,random:20"}, {"corpus": "corpus.jsonl"}]
)
def test_a_mined_sources_id_follows_what_is_asked_of_the_miners(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "pairs.jsonl")
    (tmp_path / "corpus.jsonl").write_text('{"text": "a document"}\n')
    ids = [
        study(tmp_path, recipe).source_id("hard")
        for recipe in (data(tmp_path), _with_miners(tmp_path), _with_miners(tmp_path, **asked))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_a_streamed_source_is_mined_and_its_negatives_trained_on(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    rows = list(map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    documents = Collection("c", lambda: iter(DOCUMENTS.items()), len(DOCUMENTS), QUERIES, QRELS, "f")
    write_beir(documents, tmp_path / "c")
    recipe = data(tmp_path, collections={"c": {"kind": "beir", "path": str(tmp_path / "c")}})
    recipe["sources"]["pairs"] = {"kind": "parquet", "path": str(tmp_path / "pairs.parquet"), "streaming": True}
    made = study(tmp_path, recipe)
    chain = ("unsupervised", "supervised", "distillation")
    made.prepare([chain])
    assert made.train(chain)["steps"] == 3
    mined = made.source("hard")
    assert (mined.record["rows"], mined.record["dropped"]) == (64, {})
    queries = {query for part in mined.tables.values() for query in part.read(range(len(part)))["query"]}
    assert queries <= {row["query"] for row in rows}


CHAIN = ("unsupervised", "supervised")


def test_a_phase_of_the_recipe_mines_what_its_folder_mines_and_once(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs.jsonl")
    asked = {"miners": "bm25:40,@unsupervised:60", "max_relative": 0.99}
    made = study(tmp_path, _with_miners(tmp_path, **asked))
    nodes = graph(made.recipe, {"kd": ("dense", "distillation"), "sup": CHAIN})
    assert nodes == [("dense",), CHAIN[:1], ("dense", "distillation"), CHAIN]
    made.prepare([("dense", "distillation"), CHAIN])
    mined = made.source("hard")
    assert made.is_done(CHAIN[:1])  # trained on the way
    assert mined.record["judge"] == "@unsupervised"
    assert mined.record["models"] == {"@unsupervised": made.phase_id(CHAIN[:1])}
    folder = made.phase_folder(CHAIN[:1]) / "model"
    by_folder = study(tmp_path, _with_miners(tmp_path, **asked | {"miners": f"bm25:40,{folder}:60"}))
    by_folder.prepare([CHAIN])
    other = by_folder.source("hard")
    for part, same in zip(mined.tables.values(), other.tables.values(), strict=True):
        assert part.read(range(len(part))) == same.read(range(len(same)))
    monkeypatch.setattr("colbert_zero.study.study.mine_source", None)
    monkeypatch.setattr("colbert_zero.study.study.train_phase", None)
    again = study(tmp_path, _with_miners(tmp_path, **asked))
    again.prepare([CHAIN])
    assert again.source("hard").record == mined.record


def test_a_change_of_the_phase_that_mines_mines_again(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")

    def source_id(miners, **phases):
        recipe = _with_miners(tmp_path, miners=miners)
        for name, changes in phases.items():
            recipe["phases"][name] |= changes
        return study(tmp_path, recipe).source_id("hard")

    for miners in ("@unsupervised", "bm25:50,@unsupervised:50"):
        before = source_id(miners)
        assert source_id(miners, unsupervised={"steps": 7}) != before
        assert source_id(miners, dense={"steps": 7}, supervised={"steps": 7}) == before
    assert source_id("bm25", unsupervised={"steps": 7}) == source_id("bm25")


def test_a_phase_mines_in_a_run_whose_dry_run_and_plan_train_nothing(tmp_path, command):
    write_rows(tmp_path / "pairs.jsonl")
    recipe = _with_miners(tmp_path, miners="blend@unsupervised", negatives=2) | {"pipelines": {"short": ["supervised"]}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    words = (tmp_path / "my.yaml", "--out", tmp_path / "out")
    code, out, err = command("run", *words, "--dry-run")
    assert code == 0, err
    assert out.index("unsupervised") < out.index("supervised", out.index("unsupervised") + len("unsupervised"))
    code, _, err = command("plan", *words)
    assert code == 0, err
    assert not list((tmp_path / "out").glob("phases/*"))
    assert not list((tmp_path / "out" / "data").glob("hard-*"))
    code, _, err = command("run", *words)
    assert code == 0, err
    results = read_json(tmp_path / "out" / "results.json")
    assert "short" in results["systems"]
    assert len(list((tmp_path / "out").glob("phases/unsupervised-*/phase.json"))) == 1
    assert "hard" in read_json(tmp_path / "out" / "data.json")["sources"]


def test_a_model_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    made = study(tmp_path, _with_miners(tmp_path, miners="./no-model"))
    with pytest.raises(ColbertZeroError, match=r"sources.hard: no such folder './no-model'"):
        made.prepare([("unsupervised", "supervised")])


# ---- A teacher that ends in a cross-encoder


@pytest.fixture(scope="module")
def reranked(tmp_path_factory):
    """A study whose teachers, one of them with BM25, end in a cross-encoder."""
    folder = tmp_path_factory.mktemp("reranked")
    write_rows(folder / "pairs.jsonl")
    recipe = two_teachers(folder)
    return folder, recipe, run_study(study(folder, recipe), None, "test")


def two_teachers(folder, rerank=5):
    recipe = with_cross_encoder(folder, {"steps": 3}, {"rerank": rerank})
    recipe["teachers"]["fused"] = {**recipe["teachers"]["blend"], "bm25_weight": 0.5}
    recipe["sources"]["fused"] = {**recipe["sources"]["scored"], "teacher": "fused"}
    recipe["phases"]["distillation"] |= {"sources": ["scored", "fused"], "steps": 2}
    return recipe


RERANKER = ("dense", "reranker")


def logits(one, pairs):
    scorer = CrossEncoder(str(one.phase_folder(RERANKER) / "model"))
    return scorer.predict(pairs, activation_fn=torch.nn.Identity()).tolist()


def test_a_cross_encoder_teaches_by_the_min_max_of_its_logits(reranked):
    folder, recipe, _ = reranked
    one = study(folder, recipe)
    one.prepare([RERANKER])
    [part] = one.source("scored").parts.values()
    rows = part.read(range(len(part)))
    assert len(rows["query"]) == 64
    for query, documents, scores in list(zip(rows["query"], rows["documents"], rows["scores"], strict=True))[:10]:
        found = logits(one, [(query, document) for document in documents])
        low, high = min(found), max(found)
        assert scores == pytest.approx([(value - low) / (high - low) for value in found], abs=1e-4)


def test_a_cross_encoders_score_is_that_of_bm25s_best_ranked_anew_alone_or_fused(reranked):
    folder, recipe, results = reranked
    one = study(folder, recipe)
    one.prepare([RERANKER])
    collection = one.collections["held-out"]
    texts, first = dict(collection.documents()), evaluation.rank_bm25(collection, 5)
    anew = {}
    for query, ranked in first.items():
        documents = [document for document, _ in ranked]
        scores = logits(one, [(collection.queries[query], texts[document]) for document in documents]) if ranked else []
        anew[query] = sorted(zip(documents, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
    records = read_json(folder / "out" / "teachers.json")
    expected = {"blend": anew, "fused": fuse([(0.5, evaluation.rank_bm25(collection, 1000)), (1.0, anew)], 100)}
    for name, run in expected.items():
        kept = read_run(folder / "out" / "runs" / f"teacher-{name}.held-out.trec")
        assert {q: [d for d, _ in ranked] for q, ranked in kept.items() if ranked} == {
            q: [d for d, _ in ranked] for q, ranked in run.items() if ranked
        }
        assert records[name]["scores"]["held-out"] == pytest.approx(measure(run, collection.qrels)[0])
        assert "; a cross-encoder, measured on BM25's best 5 of each query" in records[name]["description"]
    assert not [name for name in results["systems"] if "reranker" in name]


def test_the_report_says_that_a_teacher_is_a_cross_encoder_and_what_it_reranked(reranked):
    folder, _, _ = reranked
    page = write_report(folder / "out")
    for text in (page.read_text(encoding="utf-8"), page.with_name("report.md").read_text(encoding="utf-8")):
        assert "a cross-encoder, measured on BM25" in text
        assert "best 5 of each query" in text
        assert "reranker" in text


def test_a_second_run_with_a_cross_encoder_trains_and_ranks_nothing(reranked, monkeypatch):
    folder, recipe, results = reranked

    def refuse(*args, **kwargs):
        raise AssertionError("recomputed")

    for name in (
        "study.train_phase",
        "study.rank",
        "teachers.rerank",
        "teachers.rank",
        "study.score",
        "study.mine_source",
    ):
        monkeypatch.setattr(f"colbert_zero.study.{name}", refuse)
    monkeypatch.setattr("colbert_zero.study.rankings.rank_bm25", refuse)
    assert run_study(study(folder, recipe), None, "test") == results


def test_how_many_are_reranked_changes_no_id_and_is_measured_anew(reranked, tmp_path, monkeypatch):
    folder, recipe, results = reranked
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    more = two_teachers(folder, 20)
    before, after = study(folder, recipe), study(folder, more)
    for one in (before, after):
        one.prepare([RERANKER])
    for chain in graph(before.recipe, chain_map(before.recipe)):
        assert before.phase_id(chain) == after.phase_id(chain)
    for name in recipe["sources"]:
        assert before.source_id(name) == after.source_id(name)
    monkeypatch.setattr("colbert_zero.study.study.train_phase", None)
    monkeypatch.setattr("colbert_zero.study.study.score", None)
    again = Study(check_recipe(more), tmp_path / "out", Quiet(), tmp_path / "cache")
    assert run_study(again, None, "test")["systems"] == results["systems"]
    for name in ("blend", "fused"):
        assert "BM25's best 20" in read_json(tmp_path / "out" / "teachers.json")[name]["description"]
    run = read_run(tmp_path / "out" / "runs" / "teacher-blend.held-out.trec")
    assert 5 < max(map(len, run.values())) <= 20


def test_other_prompts_are_no_other_cross_encoder(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    ids = []
    for prompts in ({"query": "q: ", "document": "d: "}, {"query": "x: ", "document": "y: "}):
        one = study(tmp_path, with_cross_encoder(tmp_path, {}, {"pipeline": ["reranker"]}, prompts=prompts))
        one.prepare([("reranker",)])
        ids.append((one.phase_id(("reranker",)), one.phase_id(("unsupervised",))))
    assert ids[0][0] == ids[1][0]
    assert ids[0][1] != ids[1][1]


def test_a_trained_cross_encoder_is_a_teacher_on_the_command_line(reranked, command, tmp_path):
    folder, recipe, _ = reranked
    one = study(folder, recipe)
    one.prepare([RERANKER])
    model = one.phase_folder(RERANKER) / "model"
    row = {"query": "key1 wing", "documents": ["lift of a wing", "blood of a heart", "wing drag key1"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ("--candidates", tmp_path / "c.jsonl", "--teacher", model, "--out", tmp_path / "taught")
    code, _, error = command("teach", *arguments)
    assert code == 0, error
    [found] = pq.read_table(tmp_path / "taught" / "train_unnormalized" / "0.parquet").to_pylist()
    assert found["scores"] == pytest.approx(logits(one, [(row["query"], d) for d in row["documents"]]), abs=1e-5)


def test_an_interrupted_cross_encoder_goes_on_and_ends_bit_identical(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    changes = {
        "checkpoint_every": 2,
        "steps": 5,
        "negatives": "2 of 3",
        "temperature": {"initial": 0.5, "learnable": True},
    }
    recipe = with_cross_encoder(tmp_path, changes, {"pipeline": ["reranker"]})
    recipe["model"]["architecture"]["hidden_dropout_prob"] = 0.1
    undisturbed, chain = study(tmp_path, recipe), ("reranker",)
    undisturbed.prepare([chain])
    expected = undisturbed.train(chain)

    class Stop(BaseException):
        pass

    class Stopping(Quiet):
        @contextmanager
        def bar(self, name, total):
            def advance(done, values):
                if done == 3 and name == "reranker":
                    raise Stop

            yield advance

    killed = Study(undisturbed.recipe, tmp_path / "killed", Stopping(), tmp_path / "cache")
    killed.prepare([chain])
    with pytest.raises(Stop):
        killed.train(chain)
    killed.show = Quiet()
    torch.rand(7)  # whatever random numbers this process has used meanwhile
    record = killed.train(chain)
    assert [e["loss"] for e in record["losses"]] == [e["loss"] for e in expected["losses"]]
    assert record["temperature"] == expected["temperature"] != 0.5
    weights = [one.phase_folder(chain) / "model" / "model.safetensors" for one in (undisturbed, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
