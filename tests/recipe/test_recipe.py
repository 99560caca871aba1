import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import check_recipe, load_recipe, shipped_recipes
from colbert_zero.recipe.schema import Recipe, Temperature
from helpers import ROOT

JARGON = (
    "Input should",
    "union_tag",
    "function-before",
    "Annotated",
    "Field",
    "pydantic",
    "Traceback",
    "validation error",
)


def valid() -> dict[str, Any]:
    """A recipe that has one of everything."""
    return {
        "name": "tiny",
        "model": {"architecture": {"model_type": "bert"}},
        "prompts": {"query": "q: "},
        "sources": {
            "pairs": {"kind": "jsonl", "path": "pairs.jsonl", "columns": {"query": "question"}},
            "hard": {"kind": "mined", "of": "pairs"},
            "scored": {"kind": "scored", "of": "hard", "teacher": "blend"},
        },
        "collections": {"held": {"kind": "held-out", "source": "pairs", "documents": 10}},
        "teachers": {"blend": {"bm25_weight": 1.0}},
        "phases": {
            "dense": phase(representation="dense", steps=3),
            "contrastive": phase(),
            "distillation": phase(objective="distillation", sources=["scored"]),
        },
        "pipelines": {"full": ["dense", "contrastive", "distillation"]},
    }


def phase(**changes: Any) -> dict[str, Any]:
    plain = {
        "representation": "multi-vector",
        "objective": "contrastive",
        "sources": ["pairs"],
        "global_batch_size": 8,
        "learning_rate": 0.001,
    }
    return plain | changes


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid recipe with one key set, or taken away with ...."""
    data: Any = valid()
    inner = data
    *parents, last = path.split(".")
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return data


def mistakes(data: dict[str, Any]) -> list[str]:
    """What is told about a recipe, one entry a mistake."""
    with pytest.raises(ColbertZeroError) as caught:
        check_recipe(data, "r.yaml")
    first, *rest = str(caught.value).splitlines()
    assert first == f"r.yaml: {'one mistake' if len(rest) == 1 else f'{len(rest)} mistakes'}"
    assert not any(word in str(caught.value) for word in JARGON), str(caught.value)
    return [line.removeprefix("  ") for line in rest]


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> Recipe:
    file = tmp_path / "r.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(file, overrides)


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ColbertZeroError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_a_valid_recipe_passes_and_fills_in_the_defaults() -> None:
    recipe = check_recipe(valid())
    assert recipe.document_tokens is None
    assert recipe.sources["pairs"].model_dump()["path"] == ["pairs.jsonl"]
    assert recipe.longest(recipe.phases["dense"]) == {"query": None, "document": None}


BROKEN: list[tuple[str, Any, str]] = [
    # Unknown keys, at each level.
    ("phasess", {}, "phasess: unknown key, did you mean phases?"),
    ("model.dims", 3, "model.dims: unknown key, did you mean dim?"),
    ("phases.dense.temprature", 1, "phases.dense.temprature: unknown key, did you mean temperature?"),
    ("phases.dense.prompts", {"querry": ""}, "phases.dense.prompts.querry: unknown key, did you mean query?"),
    (
        "phases.dense.temperature",
        {"initial": 1, "learnabel": True},
        "phases.dense.temperature.learnabel: unknown key, did you mean learnable?",
    ),
    ("sources.hard.negative", 3, "sources.hard.negative: unknown key, did you mean negatives?"),
    ("sources.pairs.columns.querie", "x", "sources.pairs.columns.querie: unknown key, did you mean query?"),
    ("sources.pairs.min_rows", 3, "sources.pairs.min_rows: unknown key (there are: on_bad_rows, limit, "),
    ("collections.held.document", 3, "collections.held.document: unknown key, did you mean documents?"),
    ("teachers.blend.bm25weight", 1, "teachers.blend.bm25weight: unknown key, did you mean bm25_weight?"),
    ("markers.queri", "x", "markers.queri: unknown key, did you mean query?"),
    # Missing keys.
    ("name", ..., "name: missing; this key is required"),
    ("phases.dense.learning_rate", ..., "phases.dense.learning_rate: missing; this key is required"),
    ("sources.hard.of", ..., "sources.hard.of: missing; this key is required"),
    ("sources.pairs.kind", ..., "sources.pairs.kind: missing; this key is required"),
    # Wrong types.
    ("phases.dense.steps", "ten", 'phases.dense.steps: should be a whole number, found "ten"'),
    ("phases.dense.steps", 1.5, "phases.dense.steps: should be a whole number, found 1.5"),
    ("phases.dense.steps", True, "phases.dense.steps: should be a number, found true"),
    ("phases.dense.steps", [1], "phases.dense.steps: should be a whole number, found a list"),
    ("phases.dense.learning_rate", "fast", 'phases.dense.learning_rate: should be a number, found "fast"'),
    ("phases.dense.learning_rate", None, "phases.dense.learning_rate: should be a number, found null"),
    ("phases.dense.temperature", "hot", 'phases.dense.temperature: should be a number, found "hot"'),
    (
        "phases.dense.temperature",
        {"initial": 0},
        "phases.dense.temperature.initial: should be greater than 0",
    ),
    ("phases.dense.sources", "pairs", 'phases.dense.sources: should be a list, found "pairs"'),
    ("phases.dense.sources", [], "phases.dense.sources: should be one entry or more, found an empty list"),
    ("phases.dense.sources", [7], "phases.dense.sources[0]: should be text, found 7; put it in quotes"),
    ("phases.dense", None, "phases.dense: should be a mapping of keys, found null"),
    ("phases", [], "phases: should be a mapping of keys, found an empty list"),
    ("model", "bert", 'model: should be a mapping of keys, found "bert"'),
    ("model.trust_remote_code", "maybe", 'model.trust_remote_code: should be true or false, found "maybe"'),
    ("description", 7, "description: should be text, found 7; put it in quotes"),
    ("markers.query", ["Q"], "markers.query: should be text, found a list; put it in quotes"),
    ("sources.pairs", 5, "sources.pairs: should be a mapping of keys, found 5"),
    ("sources.pairs.path", 5, "sources.pairs.path: should be a list, found 5"),
    # Unknown values.
    ("sources.pairs.kind", "json", 'sources.pairs.kind: "json" is unknown, did you mean jsonl?'),
    ("sources.pairs.kind", ["jsonl"], "sources.pairs.kind: a list is unknown"),
    (
        "collections.held.kind",
        "trec",
        'collections.held.kind: "trec" is unknown (there are: held-out, beir, hub, named)',
    ),
    (
        "phases.dense.representation",
        "multivector",
        'should be one of dense, multi-vector, cross-encoder, found "multivector", did you mean multi-vector?',
    ),
    (
        "phases.dense.objective",
        "contrast",
        "one of contrastive, distillation, contrastive + distillation, listwise, binary, found",
    ),
    ("sources.pairs.on_bad_rows", "ignore", 'on_bad_rows: should be one of error, skip, found "ignore"'),
    # Values out of bounds.
    ("phases.dense.learning_rate", -1, "phases.dense.learning_rate: should be at least 0, found -1"),
    ("phases.dense.learning_rate", float("inf"), "learning_rate: should be a finite number, found Infinity"),
    ("phases.dense.warmup", 1.5, "phases.dense.warmup: should be a share of the steps below 1, or their whole number"),
    ("phases.dense.decay", 0.5, "phases.dense.decay: only `schedule: wsd` has a share of the steps to fall in"),
    ("phases.dense.horizon", 2, "phases.dense.horizon: 2 steps, but the phase has 3; a schedule is at least as long"),
    ("phases.dense.warmup", 9, "phases.dense.warmup: 9 steps of a schedule of 3; lower it, or give a `horizon`"),
    (
        "phases.contrastive",
        phase(schedule="wsd", decay=0.9, warmup=0.2),
        "phases.contrastive.decay: 0.9 of the steps, but 0.2 are the warm-up; together they are at most 1",
    ),
    ("phases.dense", phase(optimiser="muon", low_rank={}), "phases.dense.low_rank: muon makes whole matrices' updates"),
    ("phases.dense.low_rank", {"rnak": 4}, "phases.dense.low_rank.rnak: unknown key, did you mean rank?"),
    ("phases.dense.low_rank", {"targets": []}, "phases.dense.low_rank.targets: should be one entry or more, found"),
    ("phases.dense.low_rank", 16, "phases.dense.low_rank: should be a mapping of keys, found 16"),
    ("phases.dense.gradient_checkpointing", 2, "gradient_checkpointing: should be true or false, found 2"),
    ("phases.dense.betas", [0.9], "phases.dense.betas[1]: missing; this entry is required"),
    ("phases.dense.betas", 0.9, "phases.dense.betas: should be a list, found 0.9"),
    ("phases.dense.betas", [0.9, 0.9, 0.9], "phases.dense.betas: should be at most 2 entries, found"),
    ("phases.dense.betas", [0.9, 1], "phases.dense.betas[1]: should be less than 1, found 1"),
    ("phases.dense.optimiser", "adam", 'should be one of adamw, muon, found "adam", did you mean adamw?'),
    ("phases.dense.alpha", 2, "phases.dense.alpha: should be at most 1, found 2"),
    ("phases.dense.global_batch_size", 1, "global_batch_size: should be at least 2, found 1"),
    ("seed", -1, "seed: should be at least 0, found -1"),
    # Names.
    ("name", "my study", 'name: "my study" cannot be a name; use at most 60 letters, digits'),
    ("phases.a b", phase(), 'phases: the name "a b" cannot be used; use at most 60 letters'),
    ("name", "x" * 61, "cannot be a name; use at most 60 letters"),
    # Keys that do not go together.
    ("phases.dense.epochs", 2, "phases.dense: give `steps` or `epochs`, not both"),
    ("model", {}, "model: give exactly one of `base` (a Hub id or folder) and `architecture`"),
    ("model.base", "bert", "model: give exactly one of `base` (a Hub id or folder) and `architecture`"),
    ("model.pool", 0, "model.pool: should be at least 1, found 0"),
    ("model.pool", 1.5, "model.pool: should be a whole number, found 1.5"),
    ("model.skip_list", "commas", 'model.skip_list: should be one of punctuation, found "commas"'),
    ("model.skip_list", [1], "model.skip_list[0]: should be text, found 1"),
    ("model.query_expansion", True, "model.query_expansion: should be one of attend, ignore, false, found true"),
    (
        "model.query_expansion",
        "attended",
        'should be one of attend, ignore, false, found "attended", did you mean attend?',
    ),
    (
        "model",
        {"base": "b", "query_expansion": "ignore", "attention": "flash_attention_2"},
        "model.query_expansion: ignore, but flash_attention_2 encodes without padding",
    ),
    ("lengths", "texts", 'lengths: should be one of text, all, found "texts", did you mean text?'),
    ("model.head", "old", 'model.head: should be one of new, found "old"'),
    ("model.head", [], "model.head: should be one entry or more, found"),
    ("model.head", [{}], "model.head[0].width: missing; this key is required"),
    ("model.head", [{"width": 8, "activations": "gelu"}], "model.head[0].activations: unknown key, did you mean act"),
    ("model.head", [{"width": 8, "activation": "gelo"}], 'found "gelo", did you mean gelu?'),
    ("model.architecture", {"layers": 2}, "model.architecture: needs `model_type`"),
    (
        "phases.dense.negatives",
        "some",
        "phases.dense.negatives: should be a number, all, or a draw such as 7 of 50, found",
    ),
    ("phases.dense.negatives", "9 of 7", "phases.dense.negatives: 9 cannot be drawn of 7"),
    ("phases.dense", phase(sources=["hard"], negatives="9 of 20"), "phases.dense.negatives: 9 of 20, but 'hard' has 7"),
    ("phases.distillation.negatives", "all", "phases.distillation.negatives: distillation uses all candidates"),
    ("phases.distillation.negatives", 2, "phases.distillation.negatives: distillation uses all candidates"),
    (
        "phases.dense.student_scores",
        "raw",
        "phases.dense.student_scores: only distillation has a teacher; leave it out",
    ),
    ("phases.dense.teacher_temperature", 0.2, "phases.dense.teacher_temperature: only distillation has a teacher"),
    ("phases.dense.distillation_loss", "margin-mse", "phases.dense.distillation_loss: only distillation has a teacher"),
    ("phases.distillation.distillation_loss", "mse", 'should be one of kl, margin-mse, found "mse"'),
    ("phases.dense.contrastive_weight", 2, "contrastive_weight: only of `objective: contrastive + distillation`"),
    ("phases.distillation.contrastive_temperature", 2, "contrastive_temperature: only of `objective: contrastive + "),
    ("phases.distillation.mask_duplicates", False, "mask_duplicates: distillation compares a query's own candidates"),
    ("phases.dense", phase(objective="contrastive + distillation", sources=["hard"]), "'hard' has no teacher scores"),
    ("phases.distillation.max_relative", 0.9, "max_relative: distillation compares a query's own candidates alone"),
    (
        "phases.dense",
        phase(sources=["scored"], max_relative=0.9),
        "phases.dense.max_relative: is of hard negatives, and the phase takes none; add `negatives`, or leave it out",
    ),
    (
        "phases.dense",
        phase(sources=["hard"], max_relative=0.9, negatives=3),
        "phases.dense.sources: 'hard' has no recorded scores for `max_relative`; use a source of kind scored",
    ),
    ("phases.dense", phase(sources=["scored"], max_relative=0.9, negatives=9), "negatives: 9, but 'scored' has 7"),
    (
        "phases.dense",
        phase(sources=["scored"], max_relative=1.2, negatives=3),
        "phases.dense.max_relative: should be at most 1, found 1.2",
    ),
    ("phases.dense.objective", "contrastive+distillation", "did you mean contrastive + distillation?"),
    (
        "phases.distillation",
        phase(objective="distillation", distillation_loss="margin-mse", temperature=0.5, sources=["scored"]),
        "phases.distillation.temperature: margin-mse has no temperature; leave it out",
    ),
    (
        "phases.distillation.temperature",
        {"initial": 0.5},
        "phases.distillation.temperature: learned, it would flatten both sides",
    ),
    ("phases.distillation.student_scores", "x", 'student_scores: should be one of min-max, raw, found "x"'),
    (
        "phases.distillation.length_normalised",
        True,
        "phases.distillation.length_normalised: scales each query's scores, and so does `student_scores: min-max`; "
        "leave it out, or set `student_scores: raw`",
    ),
    ("phases.distillation.student_scores", "minmax", 'should be one of min-max, raw, found "minmax", did you mean min'),
    ("sources.pairs.train", "t.jsonl", "sources.pairs: give either `path`, or all three of `train`"),
    (
        "sources.new",
        {"kind": "hub", "path": "a/b", "train": "t"},
        "sources.new: give either `configs`, or all",
    ),
    (
        "sources.new",
        {"kind": "hub", "path": "a/b", "splits": ["s"], "configs": ["c", "d"]},
        "sources.new.splits: are parts of one configuration; name one in `configs`, or none",
    ),
    (
        "sources.new",
        {"kind": "hub", "path": "a/b", "splits": ["s"], "split": "dev"},
        "sources.new: give `split` or `splits`, not both",
    ),
    ("teachers.blend", {}, "teachers.blend: needs a `pipeline`, a `model`"),
    # Names that point nowhere.
    ("phases.dense.sources", ["pair"], "phases.dense.sources: no source 'pair', did you mean pairs?"),
    ("sources.hard.of", "pair", "sources.hard.of: no source 'pair', did you mean pairs?"),
    ("sources.scored.teacher", "bland", "sources.scored.teacher: no teacher 'bland', did you mean blend?"),
    ("collections.held.source", "pair", "collections.held.source: no source 'pair', did you mean pairs?"),
    ("pipelines.full", ["dens"], "pipelines.full: no phase 'dens', did you mean dense?"),
    (
        "teachers.blend.pipeline",
        ["x"],
        "teachers.blend.pipeline: no phase 'x' (there are: dense, contrastive",
    ),
    # Entries that do not go together.
    ("phases.distillation.sources", ["hard"], "'hard' has no teacher scores for distillation"),
    ("phases.contrastive.sources", ["scored"], "'scored' is for distillation; use 'hard' here"),
    ("phases.contrastive.sources", ["pairs", "pairs"], "phases.contrastive.sources: 'pairs' stands twice"),
    ("sources.hard.of", "hard", "sources.hard.of: 'hard' has no plain pairs (mined); mine a source of pairs"),
    ("sources.scored.of", "pairs", "sources.scored.of: 'pairs' has no mined negatives; point it at a source"),
    ("sources.hard.negatives", 51, "sources.hard.depth: 50 documents hold no 51 negatives; raise it"),
    ("sources.hard.miners", "bm25:50,random:40", "sources.hard.miners: should be miners with shares that sum to 100"),
    ("sources.hard.miners", "bm25:x", "'bm25:x' is not a miner and its share"),
    ("sources.hard", {"kind": "mined", "of": "pairs", "miners": "bm25", "judge": "random"}, "random scores nothing"),
    (
        "sources.hard.miners",
        "@dens",
        "sources.hard.miners: @dens: no pipeline has the phase 'dens', did you mean dense?",
    ),
    ("sources.hard.miners", "ful@dense", "sources.hard.miners: ful@dense: no pipeline 'ful', did you mean full?"),
    (
        "sources.hard.judge",
        "full@dens",
        "sources.hard.judge: full@dens: no pipeline has the phase 'dens', did you mean",
    ),
    ("sources.hard.miners", "@distillation", "sources.hard.miners: @distillation: learns from this very source"),
    ("sources.hard.judge", "full@distillation", "sources.hard.judge: full@distillation: learns from this very source"),
    ("collections.held.source", "hard", "collections.held.source: 'hard' has no plain pairs (mined)"),
    ("collections.held.queries", 11, "collections.held.queries: 11 is more than the 10 pairs held out"),
    ("phases.contrastive", phase(sources=["hard"], negatives=9), "negatives: 9, but 'hard' has 7"),
    ("pipelines.full", ["contrastive", "dense"], "a dense phase cannot follow a multi-vector one"),
    ("pipelines.full", ["dense", "dense"], "pipelines.full: the phase 'dense' stands twice"),
    ("pipelines.full", [], "pipelines.full: should be one entry or more, found an empty list"),
    ("phases.distillation.prompts", {}, "prompts: '' and '', but its start 'contrastive' is trained with 'q: ' and ''"),
    ("pipelines.bm25", ["contrastive"], "pipelines.bm25: the name of the lexical baseline; choose another"),
    ("pipelines.dense", ["dense", "contrastive"], "pipelines.dense: the name of the dense phase alone"),
    ("phases.dense.select", "best", "phases.dense.select: best needs `evaluate_every`, the steps between evaluations"),
    ("phases.dense.select", "first", 'phases.dense.select: should be one of last, best, found "first"'),
    ("phases.dense.evaluate_every", 0, "phases.dense.evaluate_every: should be at least 1, found 0"),
    ("phases.dense.keep_checkpoints", 0, "phases.dense.keep_checkpoints: should be at least 1, found 0"),
    ("validation.documents", 0, "validation.documents: should be at least 1, found 0"),
    ("validation.querys", 3, "validation.querys: unknown key, did you mean queries?"),
    ("reporters", ["tensorbord"], 'reporters[0]: should be one of tensorboard, wandb, found "tensorbord", did you'),
    ("teachers.blend.pipeline", ["distillation"], "one of its phases learns from this very teacher"),
]


@pytest.mark.parametrize(("path", "value", "message"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_mistake_is_one_message_that_names_the_key_the_value_and_the_mend(
    path: str, value: Any, message: str
) -> None:
    told = mistakes(changed(path, value))
    assert len(told) == 1, told
    assert message in told[0]


def with_reranker(**changes: Any) -> dict[str, Any]:
    """The valid recipe whose teacher ends in a cross-encoder; `...` takes a key of that phase away."""
    data = valid()
    reranker = phase(representation="cross-encoder", objective="listwise", sources=["hard"], negatives=2) | changes
    data["phases"]["reranker"] = {key: value for key, value in reranker.items() if value is not ...}
    data["teachers"]["blend"] = {"pipeline": ["dense", "reranker"], "bm25_weight": 1.0}
    return data


def test_a_teacher_may_end_in_a_cross_encoder() -> None:
    for changes in (
        {"temperature": {"initial": 0.5, "learnable": True}, "mask_duplicates": False, "query_tokens": 16},
        {"objective": "binary", "negatives": "2 of 3", "temperature": 1, "mask_duplicates": False},
        {"negatives": "all", "gradient_checkpointing": True, "precision": "bfloat16", "select": "last"},
    ):
        recipe = check_recipe(with_reranker(**changes))
        assert recipe.phases["reranker"].reads_pairs
        assert check_recipe(recipe.model_dump()) == recipe
    data = with_reranker()
    data["phases"]["second"] = {**data["phases"]["reranker"], "objective": "binary"}
    data["teachers"]["blend"] |= {"pipeline": ["contrastive", "reranker", "second"], "rerank": 20}
    assert check_recipe(data).teachers["blend"].rerank == 20


WRONG_PAIRS: list[tuple[dict[str, Any], str]] = [
    *(
        ({"objective": objective}, f"objective: a cross-encoder has none but listwise and binary, found {objective}")
        for objective in ("contrastive", "distillation", "contrastive + distillation")
    ),
    *(
        ({key: value}, f"{key}: a cross-encoder has no use for it; leave it out")
        for key, value in {
            "length_normalised": True,
            "max_relative": 0.9,
            "prompts": {"query": "q: "},
            "allow_prompt_mismatch": True,
            "low_rank": {"rank": 4},
            "evaluate_every": 5,
            "select": "best",
            "student_scores": "raw",
            "teacher_temperature": 0.5,
            "distillation_loss": "margin-mse",
            "contrastive_temperature": 0.5,
            "contrastive_weight": 0.5,
        }.items()
    ),
    ({"negatives": ...}, "negatives: a cross-encoder learns from a query's hard negatives; say how many"),
    ({"negatives": 0}, "negatives: a cross-encoder learns from a query's hard negatives; say how many"),
    ({"negatives": "3 of 2"}, "negatives: 3 cannot be drawn of 2"),
    ({"negatives": 9}, "negatives: 9, but 'hard' has"),
    ({"objective": "binary", "temperature": 0.5}, "temperature: only a softmax has one, of `objective: listwise`"),
    ({"objective": "binary", "temperature": {"initial": 1}}, "temperature: only a softmax has one"),
    ({"sources": ["scored"]}, "sources: 'scored' is for distillation; use 'hard' here"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_PAIRS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_cross_encoders_mistake_is_one_message(changes: dict[str, Any], message: str) -> None:
    data = with_reranker(**changes)
    if changes.get("sources"):
        data["sources"]["scored"]["teacher"], data["teachers"]["other"] = "other", {"bm25_weight": 1.0}
        data["phases"]["distillation"]["sources"] = ["scored"]
    told = mistakes(data)
    assert len(told) == 1, told
    assert f"phases.reranker.{message}" in told[0]


@pytest.mark.parametrize("objective", ["listwise", "binary"])
@pytest.mark.parametrize("representation", ["dense", "multi-vector"])
def test_a_cross_encoders_objective_is_no_encoders(representation: str, objective: str) -> None:
    data = valid()
    data["phases"]["contrastive"] |= {"representation": representation, "objective": objective}
    assert mistakes(data) == [
        f"phases.contrastive.objective: {objective} is a cross-encoder's; take `representation: cross-encoder`, or "
        "contrastive"
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pipelines.other", ["dense", "reranker"], "pipelines.other: 'reranker' is a cross-encoder, which has no vec"),
        ("pipelines.other", ["reranker"], "put it into a teacher's pipeline"),
        ("pipelines.other", ["reranker", "contrastive"], "pipelines.other: 'reranker' is a cross-encoder"),
        ("teachers.blend.pipeline", ["reranker", "dense"], "only a cross-encoder can follow 'reranker'; put it last"),
        ("teachers.blend.pipeline", ["reranker", "contrastive"], "teachers.blend.pipeline: only a cross-encoder can"),
        ("teachers.blend.rerank", 0, "teachers.blend.rerank: should be at least 1, found 0"),
        ("teachers.blend.rerank", 2000, "teachers.blend.rerank: should be at most 1000, found 2000"),
        ("teachers.other", {"bm25_weight": 1, "rerank": 20}, "teachers.other.rerank: only of a cross-encoder"),
        ("teachers.other", {"bm25_weight": 1, "precision": "auto"}, "teachers.other.precision: only of a model, and"),
        (
            "teachers.other",
            {"pipeline": ["contrastive"], "rerank": 20},
            "teachers.other.rerank: only of a cross-encoder",
        ),
        (
            "teachers.other",
            {"pipeline": ["dense", "reranker"], "pipeline_weight": 0, "bm25_weight": 1, "rerank": 20},
            "teachers.other.rerank: only of a cross-encoder",
        ),
    ],
)
def test_a_cross_encoder_stands_last_and_in_teachers_alone(path: str, value: Any, message: str) -> None:
    data: Any = with_reranker()
    section, name, *key = path.split(".")
    if key:
        data[section][name][key[0]] = value
    else:
        data[section][name] = value
    told = mistakes(data)
    assert len(told) == 1, told
    assert message in told[0]


def _mined_by(miners: str) -> dict[str, Any]:
    """A recipe with a teacher, whose pipeline ends in a cross-encoder, and two pipelines."""
    data = valid()
    data["sources"]["hard"]["miners"] = miners
    pairs = {"sources": ["own"], "negatives": 2, "objective": "listwise"}
    data["sources"]["own"] = {"kind": "mined", "of": "pairs"}
    data["phases"]["reader"] = phase(representation="cross-encoder", **pairs)
    data["teachers"]["reader"] = {"pipeline": ["contrastive", "reader"]}
    data["pipelines"]["short"] = ["contrastive"]
    return data


@pytest.mark.parametrize("miners", ["bm25:50,@dense:50", "short@contrastive", "reader@contrastive"])
def test_a_phase_of_a_pipeline_or_of_a_teacher_mines(miners: str) -> None:
    assert check_recipe(_mined_by(miners)).sources["hard"].phases  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("miners", "told"),
    [
        ("@contrastive", "'contrastive' starts differently in several pipelines; say which: full@contrastive, "),
        ("@reader", "a cross-encoder, which has no vectors to find documents by; name a dense or multi-vector phase"),
    ],
)
def test_a_phase_that_cannot_mine_is_told(miners: str, told: str) -> None:
    [mistake] = mistakes(_mined_by(miners))
    assert mistake.startswith(f"sources.hard.miners: {miners}: {told}")


def test_phases_that_mine_for_each_other_are_told() -> None:
    data = _mined_by("@second")
    data["sources"]["own"]["miners"] = "@first"
    data["phases"] |= {name: phase(sources=[of]) for name, of in (("first", "hard"), ("second", "own"))}
    data["pipelines"] |= {"one": ["first"], "two": ["second"]}
    told = mistakes(data)
    assert [line.split(": ")[:2] for line in told] == [
        ["sources.hard.miners", "@second"],
        ["sources.own.miners", "@first"],
    ]
    assert all("learns from this very source, or from what is made of it" in line for line in told)


def test_teachers_that_learn_from_each_other_are_refused() -> None:
    data = valid()
    data["sources"]["scored2"] = {"kind": "scored", "of": "hard", "teacher": "other"}
    data["teachers"]["blend"]["pipeline"] = ["second"]
    data["teachers"]["other"] = {"pipeline": ["distillation"]}
    data["phases"]["second"] = phase(objective="distillation", sources=["scored2"])
    assert mistakes(data) == [
        f"teachers.{name}.pipeline: one of its phases learns from this very teacher" for name in ("blend", "other")
    ]


def test_a_phase_may_repeat_the_prompts_of_the_recipe() -> None:
    recipe = check_recipe(changed("phases.contrastive.prompts", {"query": "q: "}))
    assert recipe.phases["contrastive"].prompts == recipe.prompts


def test_all_mistakes_are_told_at_once() -> None:
    data = valid()
    data["seed"] = "x"
    data["model"]["base"] = "bert"
    data["phases"]["dense"] |= {"epochs": 2, "temprature": 1}
    data["pipelines"]["other"] = ["contrastiv"]
    data["sources"]["scored"]["teacher"] = "nobody"
    told = mistakes(data)
    assert len(told) == 6
    for start in (
        "seed",
        "model",
        "phases.dense: give",
        "phases.dense.temp",
        "pipelines.other",
        "sources.scored",
    ):
        assert sum(line.startswith(start) for line in told) == 1, start


def test_a_broken_entry_is_not_also_told_as_missing() -> None:
    data = changed("sources.pairs.limit", -1)
    assert mistakes(data) == ["sources.pairs.limit: should be at least 1, found -1"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PATHS = [path for path, _, _ in BROKEN] + [
    "sources",
    "collections",
    "teachers",
    "pipelines",
    "model.architecture",
]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(PATHS), JSON)
def test_whatever_stands_under_a_key_gives_a_recipe_or_plain_words(path: str, value: Any) -> None:
    told, recipe = "", None
    try:
        recipe = check_recipe(changed(path, value))
    except ColbertZeroError as error:
        told = str(error)
    assert not any(word in told for word in JARGON)
    assert recipe is None or check_recipe(recipe.model_dump()) == recipe


@settings(deadline=None, max_examples=100)
@given(JSON | st.dictionaries(st.sampled_from(list(Recipe.model_fields)), JSON))
def test_any_yaml_file_gives_plain_words(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    assert refusal(tmp_path_factory.mktemp("r"), yaml.safe_dump(value)).startswith("r.yaml")


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=30) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_plain_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    assert refusal(tmp_path_factory.mktemp("r"), content).startswith("r.yaml")


def test_a_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    data = valid()
    data["phases"]["dense"]["learning_rate"] = "RATE"
    data["model"]["architecture"]["layer_norm_eps"] = "RATE"
    text = yaml.safe_dump(data).replace("RATE", "1e-3")
    recipe = load(tmp_path, text, "phases.contrastive.learning_rate=2e-5", "phases.dense.steps=1e2")
    assert recipe.phases["dense"].learning_rate == 1e-3
    assert recipe.model.architecture == {"model_type": "bert", "layer_norm_eps": 1e-3}
    assert recipe.phases["contrastive"].learning_rate == 2e-5
    assert recipe.phases["dense"].steps == 100


def test_a_date_stays_text(tmp_path: Path) -> None:
    text = yaml.safe_dump(valid()) + "description: 2026-01-01\n"
    assert load(tmp_path, text).description == "2026-01-01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\nb: 2\na: 3\n",
            "r.yaml, line 3, column 1: not valid YAML: the key 'a' stands twice, first in line 1",
        ),
        (
            "a:\n  b: 1\n  b: 2\n",
            "r.yaml, line 3, column 3: not valid YAML: the key 'b' stands twice",
        ),
        ("a: [1, 2\nb: 3\n", "r.yaml, line 2, column 2: not valid YAML: expected ',' or ']'"),
        ("a:\n\t- 1\n", "r.yaml, line 2, column 1: not valid YAML: found character '\\t'"),
        ("a: *b\n", "r.yaml, line 1, column 4: not valid YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "r.yaml, line 2, column 1: not valid YAML: but found another document"),
        ("a: \0", "r.yaml: not valid YAML: unacceptable character #x0000"),
        ("", "r.yaml: a recipe is a mapping of keys (name, model, sources, …), found an empty file"),
        ("- 1\n", "r.yaml: a recipe is a mapping of keys (name, model, sources, …), found a list"),
        ("just words", 'found "just words"'),
        (b"name: \xff\xfe", "r.yaml: not UTF-8 text (byte 6); save the file as UTF-8"),
        ("a: " + "[" * 5000, "r.yaml: not a recipe: nested too deep"),
        ("a: " + "9" * 5000, "r.yaml: not valid YAML: Exceeds the limit"),
        ("{[1]: 2}", "r.yaml, line 1, column 2: not valid YAML: found unhashable key"),
    ],
)
def test_broken_yaml_is_refused_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    told = refusal(tmp_path, text)
    assert told.startswith(message) or told.endswith(message)
    assert "\n" not in told


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    told = refusal(tmp_path, f"name: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    assert "line 1, column 7: not valid YAML: could not determine a constructor" in told
    assert not (tmp_path / "ran").exists()


def test_a_mapping_that_holds_itself_is_refused(tmp_path: Path) -> None:
    assert "mistake" in refusal(tmp_path, "name: &a {b: *a}\n")


def test_a_folder_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ColbertZeroError, match="is a folder; name the YAML file in it"):
        load_recipe(tmp_path)
    with pytest.raises(ColbertZeroError, match=r"no such file.*did you mean quickstart"):
        load_recipe("quickstat")


def test_anchors_and_merge_keys_work_and_an_override_changes_one_entry_only(tmp_path: Path) -> None:
    data = valid()
    del data["phases"]
    text = yaml.safe_dump(data) + (
        "phases:\n"
        "  dense: &base {representation: dense, objective: contrastive, sources: [pairs], global_batch_size: 8,\n"
        "                learning_rate: 0.1, prompts: {query: a, document: b}}\n"
        "  contrastive: {<<: *base, representation: multi-vector, learning_rate: 0.2}\n"
        "  distillation: {<<: *base, representation: multi-vector, objective: distillation, sources: [scored]}\n"
        "  copy: *base\n"
    )
    recipe = load(tmp_path, text, "phases.copy.prompts.query=c", "phases.copy.learning_rate=0.3")
    rates = {name: phase.learning_rate for name, phase in recipe.phases.items()}
    assert rates == {"dense": 0.1, "contrastive": 0.2, "distillation": 0.1, "copy": 0.3}
    prompts = {name: phase.prompts.query for name, phase in recipe.phases.items() if phase.prompts}
    assert prompts == {"dense": "a", "contrastive": "a", "distillation": "a", "copy": "c"}


def test_overrides_reach_every_key(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        yaml.safe_dump(valid()),
        "prompts.document=d",
        'markers.query="[X]"',
        "pipelines.short=[contrastive]",
        "model.architecture.hidden_size=8",
        "phases.dense.temperature={initial: 0.1}",
    )
    assert recipe.prompts.document == "d"
    assert recipe.pipelines["short"] == ["contrastive"]
    assert recipe.model.architecture == {"model_type": "bert", "hidden_size": 8}
    assert recipe.phases["dense"].temperature == Temperature(initial=0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.dense", "--set phases.dense: write KEY.PATH=VALUE"),
        ("=3", "--set =3: write KEY.PATH=VALUE"),
        ("phases..x=3", "--set phases..x=3: write KEY.PATH=VALUE"),
        ("phases.dens.steps=3", "no phase 'dens', did you mean dense?"),
        ("name.x=3", '--set name.x=3: name is "tiny", without keys'),
        ("pipelines.full.0=x", "pipelines.full is a list, without keys"),
        ("name=[", "--set name=[: the value is not valid YAML; put text in quotes"),
        ("phases.dense.stepps=3", "phases.dense.stepps: unknown key, did you mean steps?"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(tmp_path, yaml.safe_dump(valid()), override)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_loads_and_its_resolved_form_loads_again_equal(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe == load_recipe(shipped_recipes()[name])
    assert recipe.name == name.removeprefix("others/").replace("/", "-")
    assert recipe.description
    assert check_recipe(json.loads(recipe.model_dump_json())) == recipe
    assert check_recipe(json.loads(json.dumps(recipe.model_dump()))) == recipe


def test_a_recipe_extends_another_by_file_or_name_key_by_key_and_null_takes_away(tmp_path: Path) -> None:
    (tmp_path / "under.yaml").write_text(yaml.safe_dump(valid()))
    changes = {
        "extends": "under.yaml",
        "name": "over",
        "prompts": {"document": "d: "},
        "phases": {"dense": {"learning_rate": 0.5}, "distillation": None},
        "sources": {"scored": None, "hard": {"negatives": 3}},
        "pipelines": {"full": ["dense", "contrastive"]},
    }
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(changes))
    recipe = load_recipe(tmp_path / "over.yaml", ["phases.dense.steps=9"])
    assert (recipe.name, recipe.prompts.query, recipe.prompts.document) == ("over", "q: ", "d: ")  # type: ignore[union-attr]
    assert (recipe.phases["dense"].learning_rate, recipe.phases["dense"].steps) == (0.5, 9)
    assert set(recipe.phases) == {"dense", "contrastive"}
    assert recipe.sources["hard"].negatives == 3  # type: ignore[union-attr]
    (tmp_path / "smoke").mkdir()
    other = {"extends": "under.yaml", "sources": {"pairs": {"kind": "tsv", "path": "pairs.tsv"}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    assert load_recipe(tmp_path / "other.yaml").sources["pairs"].columns.query == "query"  # type: ignore[union-attr]
    (tmp_path / "third.yaml").write_text("extends: smoke\nname: third\n")
    assert load_recipe(tmp_path / "third.yaml").phases == load_recipe("smoke").phases


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "nowhere"}, "a.yaml: extends: nowhere: no such file beside it, no shipped recipe of that name"),
        ({"a": "smok"}, "no such file beside it, no shipped recipe of that name, did you mean smoke?"),
        ({"a": ["smoke"]}, "a.yaml: extends: should be a file or the name of a recipe, found"),
        ({"a": "b.yaml", "b": "a.yaml"}, "b.yaml: extends: a.yaml extends this very recipe; leave one of them out"),
        ({"a": "a.yaml"}, "a.yaml: extends: a.yaml extends this very recipe"),
    ],
)
def test_a_recipe_that_cannot_be_extended_is_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    for name, extended in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"extends": extended, "name": name}))
    with pytest.raises(ColbertZeroError) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert message in str(caught.value)


def test_the_schema_describes_every_key() -> None:
    schema = Recipe.model_json_schema()
    objects = [schema, *(d for d in schema["$defs"].values() if d.get("type") == "object")]
    assert len(objects) >= 15
    for entry in objects:
        assert entry["description"], entry["title"]
        assert entry["additionalProperties"] is False
        for key, value in entry["properties"].items():
            assert value.get("description"), f"{entry['title']}.{key}"


def test_the_command_line_prints_the_mistakes_alone_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: tiny\nmodle: {}\n")
    source = ROOT / "src"
    command = [sys.executable, "-m", "colbert_zero", "run", "broken.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"colbert-zero: broken.yaml: ")
    assert b"\n  modle: unknown key, did you mean model?\n" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_group_of_public_collections_is_written_out_an_entry_each():
    collections = {
        "b": {"kind": "named", "name": "beir", "exclude_self": True},
        "c": {"kind": "named", "name": "beir/nq"},
    }
    recipe = check_recipe(changed("collections", collections))
    assert len(recipe.collections) == 27
    assert recipe.collections["b-scifact"].model_dump(exclude_none=True) == {
        "kind": "named", "name": "beir/scifact", "exclude_self": True,
    }  # fmt: skip
    assert len({recipe.whole_of(name) for name in recipe.collections}) == 16
    assert recipe.whole_of("b-cqadupstack-tex") == "b-cqadupstack"
    assert check_recipe(recipe.model_dump()) == recipe
    one = {"x-tex": {"kind": "named", "name": "beir/cqadupstack/tex"}}
    assert check_recipe(changed("collections", one)).whole_of("x-tex") == "x-tex", "a part alone is not the whole"


@pytest.mark.parametrize(
    ("collections", "message"),
    [
        ({"b": {"kind": "named", "name": "beir/scifct"}}, 'did you mean beir/scifact?, found "beir/scifct"'),
        ({"b": {"kind": "named", "name": "mteb:SciFact"}}, "`evaluate` alone hands tasks to mteb"),
        ({"b": {"kind": "named"}}, "collections.b.name: missing; this key is required"),
        ({"b": {"kind": "named", "name": "beir/nq", "splt": 1}}, "collections.b.splt: unknown key"),
        (
            {"b": {"kind": "named", "name": "beir"}, "b-nq": {"kind": "named", "name": "beir/nq"}},
            "collections: should be entries of different names, but a group has b-nq too",
        ),
    ],
)
def test_a_mistake_in_a_public_collection_is_one_message(collections, message):
    told = mistakes(changed("collections", collections))
    assert len(told) == 1, told
    assert message in told[0]


def test_a_pipeline_and_a_teacher_of_one_name_do_not_hide_each_others_phases() -> None:
    data = _mined_by("@dense")
    data["teachers"]["full"] = {"pipeline": ["contrastive"]}
    assert "full" in data["pipelines"]
    recipe = check_recipe(data)
    assert recipe.chains_to("@dense") == {("dense",): "full"}
