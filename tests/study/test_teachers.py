"""Teachers that are there already, in small studies."""

import copy

import numpy as np
import pytest
import torch

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import measure
from colbert_zero.files import read_json
from colbert_zero.study.comparison import run_study
from colbert_zero.study.teachers import fusions, members_of, ranker_of
from colbert_zero.teaching.scorers import ByEncoder
from helpers import data, processor_with, study, write_rows


def _with_ready_teacher(folder, **asked):
    recipe = data(folder)
    recipe["teachers"]["blend"] = {"model": str(folder / "model"), **asked}
    return recipe


def test_a_model_that_is_there_teaches_and_is_measured_like_one_that_is_trained(tmp_path, tiny_multi_vector):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl")
    recipe = _with_ready_teacher(tmp_path)
    recipe["pipelines"] = {"full": ["unsupervised", "supervised", "distillation"]}
    made = study(tmp_path, recipe)
    results = run_study(made, None, "test")
    part = next(iter(made.source("scored").tables.values()))
    rows = part.read(range(3))
    numbers = np.arange(part.lengths()[0])[None]
    for query, documents, scores in zip(rows["query"], rows["documents"], rows["scores"], strict=True):
        own = ByEncoder(tiny_multi_vector).scores([query], numbers, documents)[0]
        spread = own.max() - own.min()
        assert scores == pytest.approx((own - own.min()) / spread if spread else own * 0, abs=1e-3)
    teacher = read_json(tmp_path / "out" / "teachers.json")["blend"]
    assert teacher["parts"] == [{"name": str(tmp_path / "model"), "weight": 1.0}]
    run = rank(tiny_multi_vector, made.collections["held-out"])
    assert teacher["scores"]["held-out"] == pytest.approx(measure(run, made.collections["held-out"].qrels)[0], abs=1e-6)
    assert run_study(study(tmp_path, recipe), None, "test") == results


@pytest.mark.parametrize("units", [True, False])
def test_a_teacher_scores_in_what_auto_comes_to_which_is_told_and_recorded(
    tmp_path, tiny_multi_vector, monkeypatch, units
):
    processor_with(monkeypatch, bfloat16=units)
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl")
    arithmetic = "bfloat16" if units else "float32"
    scores, ids = {}, set()
    for asked in ("auto", "float32", "bfloat16"):
        recipe = _with_ready_teacher(tmp_path, precision=asked, bm25_weight=0)
        made, said = study(tmp_path, recipe), []
        monkeypatch.setattr(made.show, "say", said.append)
        made.prepare([("unsupervised", "supervised", "distillation")])
        source = made.source("scored")
        assert source.record["precision"] == (arithmetic if asked == "auto" else asked)
        assert source.record["maxsim"] == "torch"
        told = [text for text in said if "teachers.blend.precision: auto" in text]
        assert [f"which is {arithmetic} here" in text for text in told] == [True] * (asked == "auto")
        scores[asked] = [row for part in source.tables.values() for row in part.read(range(len(part)))["scores"]]
        ids.add(made.source_id("scored"))
    assert scores["auto"] == scores[arithmetic]
    assert scores["float32"] != scores["bfloat16"]
    assert len(ids) == 3


def test_a_teachers_precision_is_in_the_id_of_what_it_scores_and_not_of_its_rankings(tmp_path, tiny_multi_vector):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl")
    chains = [("unsupervised", "supervised", "distillation")]
    recipes = (_with_ready_teacher(tmp_path, bm25_weight=1, precision=asked) for asked in ("float32", "bfloat16"))
    own, half = (study(tmp_path, recipe) for recipe in recipes)
    assert len(fusions(own, chains)) == 1
    assert fusions(own, chains) == fusions(half, chains)
    assert own.source_id("scored") != half.source_id("scored")


def test_a_ready_teacher_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    made = study(tmp_path, _with_ready_teacher(tmp_path))
    with pytest.raises(ColbertZeroError, match=r"teachers\.blend\.model: no such folder"):
        made.prepare([("unsupervised", "supervised", "distillation")])


def test_a_ready_teachers_contents_are_in_the_id_of_what_it_scores_and_its_place_is_not(tmp_path, tiny_multi_vector):
    write_rows(tmp_path / "pairs.jsonl")
    ids = []
    for name in ("model", "elsewhere"):
        tiny_multi_vector.save_pretrained(str(tmp_path / name), create_model_card=False)
        ids.append(study(tmp_path, _with_ready_teacher(tmp_path, model=str(tmp_path / name))).source_id("scored"))
    changed = copy.deepcopy(tiny_multi_vector)
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    changed.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    other = study(tmp_path, _with_ready_teacher(tmp_path, model=str(tmp_path / "other"))).source_id("scored")
    deeper = study(tmp_path, _with_ready_teacher(tmp_path, rerank=7)).source_id("scored")
    assert ids[0] == ids[1] == deeper != other


def test_as_many_are_ranked_anew_as_the_teacher_says_whatever_the_depth_of_a_ranking(tmp_path, tiny_cross_encoder):
    tiny_cross_encoder.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    write_rows(tmp_path / "pairs.jsonl")
    made = study(tmp_path, _with_ready_teacher(tmp_path, rerank=110))
    documents = {f"d{n}": f"lift of wing {n}" for n in range(120)}
    collection = Collection.from_memory("many", documents, {"q": "lift"}, {"q": {"d1": 1}})
    [member] = members_of(made.recipe.teachers["blend"])
    run = ranker_of(made, "blend", member)(collection, 100)
    assert len(run["q"]) == 110
