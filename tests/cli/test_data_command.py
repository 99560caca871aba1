"""`colbert-zero data`: what it says a step sees is what training reads."""

import json
from functools import partial

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import ArrowPart
from colbert_zero.files import writing
from colbert_zero.recipe.reading import check_recipe
from colbert_zero.study.inspection import step_rows
from colbert_zero.study.show import Quiet
from colbert_zero.study.study import Study

PARTS = {"large": 75, "small": 40}
NEGATIVES = 3


def row(part, number):
    return {"query": f"{part} query {number}", "document": f"{part} document {number} of words {number * 7}"}


def data(folder):
    contrastive = {
        "representation": "multi-vector", "objective": "contrastive", "sources": ["pairs"], "global_batch_size": 8,
        "learning_rate": 1e-3, "steps": 40,
    }  # fmt: skip
    return {
        "name": "tiny",
        "seed": 3,
        "model": {
            "architecture": {
                "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            "vocabulary": 400, "dim": 8,
        },
        "sources": {
            "pairs": {"kind": "jsonl", "path": str(folder / "*.jsonl")},
            "hard": {"kind": "mined", "of": "pairs", "negatives": NEGATIVES},
            "scored": {"kind": "scored", "of": "hard", "teacher": "bm25"},
        },
        "collections": {"elsewhere": {"kind": "beir", "path": "no such folder"}},
        "teachers": {"bm25": {"bm25_weight": 1.0}},
        "phases": {
            "unsupervised": contrastive,
            "short": {**contrastive, "steps": 5, "seed": 11, "document_tokens": 8},
            "supervised": {**contrastive, "sources": ["hard"], "negatives": 2, "steps": 3},
            "distillation": {**contrastive, "objective": "distillation", "sources": ["scored"], "steps": 3},
        },
        "pipelines": {
            "full": ["unsupervised", "supervised", "distillation"],
            "other": ["short", "distillation"],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe and its rows, in two files."""
    folder = tmp_path_factory.mktemp("data")
    for part, count in PARTS.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row(part, n)) + "\n" for n in range(count)))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data(folder)))
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return Study(check_recipe(data(folder)), folder / "out", Quiet(), folder / "cache")


@pytest.fixture
def look(folder, command):
    """`colbert-zero data` on the recipe."""
    return partial(command, "data", folder / "tiny.yaml", "--out", folder / "out")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40))
def test_rows_and_texts_are_those_of_the_order(study, step):
    seen = step_rows(study, "unsupervised", step)
    order = Order({f"pairs/{part}": count for part, count in PARTS.items()}, 8, seed=3)
    name, numbers = order.batch(step - 1)
    assert f"{seen['source']}/{seen['part']}" == name
    assert seen["rows"] == numbers.tolist()
    assert seen["texts"] == [{**row(seen["part"], n), "negatives": []} for n in seen["rows"]]
    # 9 and 5 whole batches an epoch: every part is read once in 14 steps.
    assert seen["epoch"] == (step - 1) // 14 + 1


def test_the_steps_are_those_of_the_phases_record(study):
    record = study.train(("short",))
    for entry in record["losses"]:
        seen = step_rows(study, "short", entry["step"])
        assert entry["source"] == f"{seen['source']}/{seen['part']}"
    assert len({entry["source"] for entry in record["losses"]}) == 2
    assert seen["steps"] == record["steps"] == len(record["losses"])


def test_training_reads_these_rows(study, monkeypatch):
    read, texts = [], ArrowPart.read

    def recorded(part, numbers):
        read.append((part.name, list(numbers)))
        return texts(part, numbers)

    expected = [step_rows(study, "short", step) for step in range(1, 6)]
    other = Study(study.recipe, study.folder.with_name("again"), Quiet(), study.cache)
    other.prepare_sources({"pairs"})
    other.start()
    monkeypatch.setattr(ArrowPart, "read", recorded)
    other.train(("short",))
    # Before its first step training looks at a sample of each part.
    assert read[-5:] == [(f"{seen['source']}/{seen['part']}", seen["rows"]) for seen in expected]


def test_json_is_one_object_alone_on_standard_output(look, study):
    code, out, _ = look("--phase", "full@unsupervised", "--step", 4, "--json")
    assert code == 0
    assert json.loads(out) == step_rows(study, "unsupervised", 4)


def test_words_name_source_rows_and_a_few_texts(look, study):
    code, out, _ = look("--phase", "unsupervised", "--step", 20, "--set", "phases.unsupervised.global_batch_size=32")
    assert code == 0
    order = Order({f"pairs/{part}": count for part, count in PARTS.items()}, 32, seed=3)
    name, numbers = order.batch(19)
    part = name.split("/")[1]
    assert f"unsupervised, step 20 of 40: 32 rows of pairs, part {part}, in pass 7 over it" in out
    assert f"rows {', '.join(map(str, numbers[:20]))}, … (32 in all)" in out
    assert [n for n in range(PARTS[part]) if f"{row(part, n)['document']}\n" in out] == sorted(numbers[:3])


def test_one_can_look_while_the_study_runs_but_not_prepare_its_data_then(look, study, tmp_path):
    step_rows(study, "unsupervised", 1)
    with writing(study.folder), writing(tmp_path):
        assert look("--phase", "unsupervised", "--step", 1)[0] == 0
        assert "another run" in look("--phase", "unsupervised", "--step", 1, "--out", tmp_path)[2]


@pytest.mark.parametrize("step", [0, -1, 41])
def test_a_step_outside_the_phase_is_told_its_range(look, step):
    code, out, error = look("--phase", "unsupervised", "--step", step, "--json")
    assert (code, out) == (2, "")
    assert f"--step {step}: unsupervised has steps 1 to 40" in error


def test_an_unknown_phase_is_told_the_nearest(look):
    assert "did you mean supervised?" in look("--phase", "supervized", "--step", 1)[2]
    assert "no pipeline has it" in look("--phase", "other@unsupervised", "--step", 1)[2]


def test_hard_negatives_and_scores_are_shown_once_made_and_never_made_by_surprise(look, folder, tmp_path):
    for phase, source, kind in (("supervised", "hard", "mined"), ("distillation", "scored", "scored")):
        code, out, error = look("--phase", phase, "--step", 2, "--json", "--out", tmp_path / "out")
        assert (code, out) == (2, "")
        assert f"sources.{source}: not {kind} yet in {tmp_path / 'out' / 'data'}; `colbert-zero run`" in error
    assert {path.name.split("-")[0] for path in (tmp_path / "out").rglob("*")} & {"hard", "scored", "phases"} == set()

    study = Study(check_recipe(data(folder)), tmp_path / "out", Quiet(), folder / "cache")
    study.prepare_sources({"pairs"})
    study.source("scored")
    seen = json.loads(look("--phase", "supervised", "--step", 2, "--json", "--out", tmp_path / "out")[1])
    assert all(texts["query"].split()[0] == seen["part"] for texts in seen["texts"])
    assert {len(texts["negatives"]) for texts in seen["texts"]} == {2}
    arguments = ("--phase", "distillation", "--step", 2, "--out", tmp_path / "out")
    seen, words = json.loads(look(*arguments, "--json")[1]), look(*arguments)[1]
    for number, texts in zip(seen["rows"], seen["texts"], strict=True):
        assert texts["query"] == row(seen["part"], number)["query"]
        assert texts["documents"][0] == row(seen["part"], number)["document"]
        assert len(texts["documents"]) == len(texts["scores"]) == NEGATIVES + 1
    first = seen["texts"][0]
    assert f"{first['scores'][1]:.4f} {first['documents'][1]}" in words
