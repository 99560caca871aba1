"""What a recipe may say of phases that are not trained, and what it may not, in whose words."""

import pytest
from pydantic import ValidationError

from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import check_recipe, load_recipe
from colbert_zero.recipe.untrained import Adapt, Compress, Merge
from colbert_zero.study.graph import chains_of, graph, way_to
from colbert_zero.study.study import Study
from helpers import data

IDS = {
    "smoke": {
        "dense-unsupervised": "ae7381f41c71",
        "dense-unsupervised dense-supervised": "7c79f50c0285",
        "unsupervised": "f6e4c268a13b",
        "unsupervised teacher": "dfd3ec86d118",
        "dense-unsupervised dense-supervised distillation": "4dab9fb2768c",
        "dense-unsupervised supervised": "dd4ce8489645",
        "dense-unsupervised supervised distillation": "e27f00ef3e05",
        "unsupervised supervised": "b018d6c8b266",
        "unsupervised supervised distillation": "7abec942fb54",
    },
    "quickstart": {
        "dense-unsupervised": "bbd2c10d8b3b",
        "dense-unsupervised dense-supervised": "7b017174ae43",
        "unsupervised": "6bce0288a7d6",
        "unsupervised supervised": "f94d659161ac",
        "dense-unsupervised dense-supervised distillation": "be26763baa31",
        "dense-unsupervised supervised": "374a6b1196b8",
        "dense-unsupervised supervised distillation": "02b77a5812df",
        "unsupervised supervised distillation": "893fcc784f36",
    },
}
"""Of before there were kinds, with the sources' names in place of their contents, which differ between machines."""

SMALL = {"kind": "compress", "neurons": 0.5}


def recipe(tmp_path, phases=None, pipelines=None, **changes):
    made = data(tmp_path, **changes)
    made["phases"] |= phases or {}
    made["pipelines"] |= pipelines or {}
    return made


def mistakes(made):
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(made)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("name", IDS)
def test_phases_that_were_finished_before_there_were_kinds_stay_finished(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "source_id", lambda self, source: source)
    study = Study(load_recipe(name), tmp_path)
    nodes = graph(study.recipe, chains_of(study.recipe, None))
    assert {" ".join(chain): study.phase_id(chain) for chain in nodes} == IDS[name]


def test_train_is_what_a_phase_is_of_which_nothing_is_said(tmp_path):
    said = data(tmp_path)
    said["phases"] = {name: {"kind": "train", **phase} for name, phase in said["phases"].items()}
    assert check_recipe(said) == check_recipe(data(tmp_path))
    phase = check_recipe(said).phases["dense"]
    assert "kind" not in phase.asked()


def test_a_resolved_recipe_with_all_kinds_is_a_recipe_again(tmp_path):
    phases = {
        "small": {**SMALL, "layers": 1, "corpus": ["pairs"], "zeros": 0.5, "bits": 8},
        "soup": {"kind": "merge", "with": ["full"], "weights": [1, 2]},
        "legal": {"kind": "adapt", "sources": ["pairs"], "decorrelate": True},
    }
    made = check_recipe(recipe(tmp_path, phases, {"a": ["unsupervised", "soup", "small", "legal"]}))
    assert check_recipe(made.model_dump()) == made
    small, soup, legal = (made.phases[name] for name in phases)
    assert isinstance(small, Compress)
    assert isinstance(soup, Merge)
    assert isinstance(legal, Adapt)
    assert (small.sources, soup.sources, legal.sources) == (["pairs"], [], ["pairs"])
    assert (soup.others, soup.asked()["with"]) == (["full"], ["full"])
    assert made.representation_after(("unsupervised", "soup", "small")) == "multi-vector"
    assert made.representation_after(("small",)) is None
    assert made.chain_named("full@supervised") == ("unsupervised", "supervised")


def test_what_is_merged_comes_before_the_merge_and_costs_with_it(tmp_path):
    made = check_recipe(
        recipe(tmp_path, {"soup": {"kind": "merge", "with": ["full@supervised"]}}, {"a": ["unsupervised", "soup"]})
    )
    nodes = graph(made, {"a": ("unsupervised", "soup")})
    assert nodes == [("unsupervised",), ("unsupervised", "supervised"), ("unsupervised", "soup")]
    assert way_to(made, ("unsupervised", "soup")) == nodes


WRONG = {
    "kind": (
        {"x": {"kind": "shrink"}},
        {},
        ['phases.x.kind: "shrink" is unknown (there are: train, compress, merge, adapt)'],
    ),
    "keys": (
        {"x": {"kind": "compress", "layres": 2, "neurons": 0, "zeros": 1, "bits": 6}},
        {},
        [
            "phases.x.layres: unknown key, did you mean layers?",
            "phases.x.neurons: should be greater than 0, found 0",
            "phases.x.zeros: should be less than 1, found 1",
            "phases.x.bits: should be one of 8, 4, found 6",
        ],
    ),
    "keys of a merge": (
        {"x": {"kind": "merge", "wiht": ["full"]}},
        {},
        ["phases.x.wiht: unknown key, did you mean with?", "phases.x.with: missing; this key is required"],
    ),
    "nothing": (
        {"x": {"kind": "compress"}},
        {},
        ["phases.x: nothing is cut; give some of `layers`, `neurons`, `zeros`, `bits` and `vocabulary`"],
    ),
    "which layers": (
        {"x": {"kind": "compress", "layers": 2}, "y": {"kind": "compress", "layers": [2, 0]}},
        {},
        [
            "phases.x.layers: 2: which ones hurt least is measured on texts; add `corpus` (a path, or a list of "
            "sources), or name those that are kept, as [0, 1]",
            "phases.y.layers: [2, 0] is not ascending; name each layer that is kept once, in order",
        ],
    ),
    "texts": (
        {"x": {**SMALL, "vocabulary": ["pears"]}, "y": {"kind": "adapt", "sources": ["scored"]}},
        {},
        [
            "phases.x.vocabulary: no source 'pears', did you mean pairs?",
            "phases.y.sources: 'scored' has scored candidates, for distillation, and no pairs",
        ],
    ),
    "weights": (
        {"x": {"kind": "merge", "with": ["full"], "weights": [1]}},
        {},
        ["phases.x.weights: 1, and 2 models are merged, its start and those of `with`; give one each"],
    ),
    "methods": (
        {
            "x": {"kind": "merge", "with": ["full", "kd-only"], "method": "slerp"},
            "y": {"kind": "merge", "with": ["full"], "method": "karcher", "weights": [1, 2]},
            "z": {"kind": "merge", "with": ["full", "full"]},
        },
        {},
        [
            "phases.x.method: slerp is between two models, and 3 are merged; take multislerp",
            "phases.y.weights: karcher takes all models alike; leave them out, or take multislerp",
            "phases.z.with: 'full' stands twice; give it a larger weight",
        ],
    ),
    "a projection that is none": (
        {"x": {"kind": "adapt", "sources": ["pairs"], "decorrelate": True, "projection": 10}},
        {},
        ["phases.x.projection: `decorrelate` has no random features; leave one out"],
    ),
    "one checkpoint by two names": (
        {"x": {"kind": "merge", "with": ["full", "full@distillation"]}},
        {"a": ["unsupervised", "x"]},
        ["phases.x.with: full and full@distillation are one checkpoint; name one of them"],
    ),
    "no such merge": (
        {"x": {"kind": "merge", "with": ["ful", "full@distil"]}},
        {"a": ["unsupervised", "x"]},
        [
            "phases.x.with: no pipeline 'ful', did you mean full?",
            "phases.x.with: full@distil: 'full' has no phase 'distil' (there are: unsupervised, supervised, "
            "distillation)",
        ],
    ),
    "merged with itself": (
        {"x": {"kind": "merge", "with": ["a@unsupervised", "b"]}, "y": {"kind": "merge", "with": ["a"]}},
        {"a": ["unsupervised", "x"], "b": ["unsupervised", "supervised", "y"]},
        [
            "phases.x.with: a@unsupervised is its start in 'a', merged with itself; name another",
            "phases.x.with: b is made with this very merge in 'a'; name PIPELINE@PHASE before it",
            "phases.y.with: a is made with this very merge in 'b'; name PIPELINE@PHASE before it",
        ],
    ),
    "merged with what is not alike": (
        {
            "x": {"kind": "merge", "with": ["b", "c", "d"]},
            "legal": {"kind": "adapt", "sources": ["pairs"]},
            "small": SMALL,
        },
        {
            "a": ["unsupervised", "supervised", "x"],
            "b": ["dense", "small"],
            "c": ["unsupervised", "small"],
            "d": ["unsupervised", "legal"],
        },
        [
            "phases.x.with: b is dense, and its start in 'a' is multi-vector; merge what is alike",
            "phases.x.with: c is cut by 'small', and its start is not; merge what has the same shapes, or merge before "
            "cutting",
            "phases.x.with: d is adapted, with modules for queries alone; merge what it was made of, and adapt that",
        ],
    ),
    "merged with what is cut otherwise": (
        {
            "x": {"kind": "merge", "with": ["b", "c", "d"]},
            "small": SMALL,
            "part": {**SMALL, "neurons": 0.8},
            "rest": {**SMALL, "neurons": 0.625},
            "smaller": {**SMALL, "neurons": 0.25},
            "twin": SMALL,
        },
        {
            "a": ["unsupervised", "supervised", "small", "x"],
            "b": ["unsupervised", "smaller"],
            "c": ["unsupervised", "twin"],
            "d": ["unsupervised", "part", "rest"],
        },
        [
            "phases.x.with: b is cut by 'smaller', and its start in another way, by 'small'; merge what has the same "
            "shapes",
        ],
    ),
    "adapted twice": (
        {
            "legal": {"kind": "adapt", "sources": ["pairs"]},
            "linear": {"kind": "adapt", "sources": ["pairs"], "projection": 0},
            "again": {"kind": "adapt", "sources": ["pairs"]},
            "other": {"kind": "adapt", "sources": ["hard"]},
            "third": {"kind": "adapt", "sources": ["pairs"]},
        },
        {
            "a": ["unsupervised", "legal", "linear"],
            "b": ["unsupervised", "legal", "again"],
            "c": ["unsupervised", "legal", "other", "third"],
        },
        [
            "pipelines.a: 'legal' (decorrelate, 0 features, seed 1) and 'linear' (linear, 0 features, seed 1) adapt "
            "otherwise, and sums of two kinds cannot be added; give both the same",
            "pipelines.b: 'again' adapts to 'pairs', and so did 'legal'; leave one out",
            "pipelines.c: 'third' adapts to 'pairs', and so did 'legal'; leave one out",
        ],
    ),
    "after an adapter": (
        {"legal": {"kind": "adapt", "sources": ["pairs"]}, "small": SMALL},
        {"a": ["unsupervised", "legal", "small"], "b": ["unsupervised", "legal", "supervised"]},
        [
            "pipelines.a: 'small' compresses what 'legal' adapted: modules for queries alone, fitted to the model as "
            "it was; put 'legal' last",
            "pipelines.b: 'supervised' trains what 'legal' adapted: modules for queries alone, fitted to the model as "
            "it was; put 'legal' last",
        ],
    ),
    "a dense start": (
        {"legal": {"kind": "adapt", "sources": ["pairs"]}},
        {"a": ["dense", "legal"]},
        ["pipelines.a: 'legal' adapts a multi-vector model's queries, and its start is dense; put a multi-vector phase "
         "before it"],
    ),
    "nothing is trained": (
        {"small": SMALL},
        {"a": ["small"]},
        ["pipelines.a: none of its phases is trained, and random weights rank nothing; add one that is"],
    ),
    "a dense phase after a cut multi-vector one": (
        {"small": SMALL},
        {"a": ["unsupervised", "small", "dense"]},
        ["pipelines.a: a dense phase cannot follow a multi-vector one; put it before"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_told_with_its_place_and_the_mend(what, tmp_path):
    phases, pipelines, expected = WRONG[what]
    assert sorted(mistakes(recipe(tmp_path, phases, pipelines))) == sorted(expected)


def test_a_cross_encoder_is_not_cut(tmp_path):
    made = recipe(tmp_path, {"small": SMALL})
    made["phases"]["reranker"] = {
        "representation": "cross-encoder", "objective": "listwise", "sources": ["hard"], "negatives": 3,
        "global_batch_size": 8, "learning_rate": 1e-3,
    }  # fmt: skip
    made["teachers"] = {"blend": {"pipeline": ["dense", "reranker", "small"]}}
    assert mistakes(made) == [
        "teachers.blend.pipeline: 'small' compresses a cross-encoder; only encoders are; leave it out"
    ]


def test_a_teacher_made_by_a_merge_with_its_student_is_refused(tmp_path):
    made = recipe(tmp_path, {"soup": {"kind": "merge", "with": ["full"]}})
    made["teachers"] = {"blend": {"pipeline": ["unsupervised", "soup"]}}
    assert "teachers.blend.pipeline: one of its phases learns from this very teacher" in mistakes(made)


def test_an_entry_of_another_kind_is_another_entry(tmp_path):
    (tmp_path / "under.yaml").write_text("extends: smoke\nphases: {supervised: {kind: compress, neurons: 0.5}}\n")
    made = load_recipe(tmp_path / "under.yaml")
    assert made.phases["supervised"] == Compress(kind="compress", neurons=0.5)
    (tmp_path / "again.yaml").write_text("extends: smoke\nphases: {supervised: {kind: train, steps: 3}}\n")
    assert load_recipe(tmp_path / "again.yaml").trained["supervised"].steps == 3


def test_an_entry_is_frozen():
    with pytest.raises(ValidationError):
        Compress(kind="compress").neurons = 0.5
