"""The first steps tell when nothing is learned; a training that learns is not spoken of."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.files import read_json
from colbert_zero.study.show import Quiet
from colbert_zero.training.losses import normalised_entropy
from helpers import data, study, write_rows


def test_the_spread_is_the_entropy_over_the_most_it_can_be():
    assert normalised_entropy(torch.zeros(3, 5)) == pytest.approx(1)
    assert normalised_entropy(torch.eye(4) * 1000) == pytest.approx(0)
    three = torch.tensor([[0.0, math.log(2), -math.inf, 0.0]])
    assert normalised_entropy(three) == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(2, 9), st.floats(0.01, 100), st.integers(0, 9))
def test_the_spread_lies_between_one_hot_and_flat(queries, documents, temperature, seed):
    logits = torch.randn(queries, documents, generator=torch.Generator().manual_seed(seed)) / temperature
    assert -1e-6 <= normalised_entropy(logits) <= 1 + 1e-6


def test_a_query_with_its_own_document_alone_has_no_entropy():
    alone = torch.full((2, 3), -math.inf)
    alone[:, 1] = 1.0
    assert normalised_entropy(alone) is None
    alone[1] = 0.0
    assert normalised_entropy(alone) == pytest.approx(1)


def train(tmp_path, phase, **changes):
    """A tiny phase; returns what was said, and its record."""
    write_rows(tmp_path / "pairs.jsonl")
    recipe = data(tmp_path, teachers={"blend": {"bm25_weight": 1.0}})
    recipe["phases"][phase] |= changes
    one, said = study(tmp_path, recipe), []
    one.show.say = said.append
    one.prepare([(phase,)])
    one.train((phase,))
    return said, read_json(one.phase_folder((phase,)) / "phase.json")


NOTHING = {
    "flat": ("dense", {"temperature": 1000.0}, "temperature: this makes every softmax of the first batch flat"),
    "one-hot": (
        "unsupervised",
        {"temperature": 1e-6},
        "temperature: this makes every softmax of the first batch one-h",
    ),
    "a flat teacher": (
        "distillation",
        {"teacher_temperature": 1000.0},
        "teacher_temperature: at 1000 the teacher's softmax is nearly flat in 100%",
    ),
    "a flat student": ("distillation", {"temperature": 1000.0, "teacher_temperature": 0.5}, "temperature: this makes"),
    "a rate too small": ("unsupervised", {"learning_rate": 1e-13, "weight_decay": 0.0}, "learning_rate: 1e-13 leaves"),
}


@pytest.mark.parametrize(("phase", "changes", "message"), NOTHING.values(), ids=NOTHING)
def test_a_training_that_learns_nothing_is_told_once_and_recorded(tmp_path, phase, changes, message):
    said, record = train(tmp_path, phase, **changes)
    assert any(text.startswith(f"phases.{phase}.{message}") for text in record["told"])
    assert all(said.count(text) == 1 for text in record["told"])


@pytest.mark.parametrize(("broken_off", "looked_at"), [(6, True), (12, False)])
def test_a_training_that_goes_on_is_told_of_weights_that_do_not_move_while_its_first_steps_last(
    tmp_path, broken_off, looked_at, monkeypatch
):
    def advance(done, values):
        if done == broken_off:
            raise KeyboardInterrupt

    changes = {"learning_rate": 1e-13, "weight_decay": 0.0, "steps": 13, "checkpoint_every": broken_off - 1}
    monkeypatch.setattr(Quiet, "bar", lambda *_: nullcontext(advance))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "unsupervised", **changes)
    monkeypatch.undo()
    said, record = train(tmp_path, "unsupervised", **changes)
    told = [text for text in record["told"] if "learning_rate: 1e-13 leaves" in text]
    assert len(told) == 1
    assert told[0].endswith(f"as they were after {6 if looked_at else 11} steps; raise it")
    assert (told[0] in said) == looked_at
    assert not any("softmax" in text for text in record["told"])


@pytest.mark.parametrize("phase", ["dense", "unsupervised", "distillation"])
def test_a_training_that_learns_is_told_nothing_but_what_its_layers_add(tmp_path, phase):
    said, record = train(tmp_path, phase)
    assert record["told"] == []
    assert record["layers"]["queries"] == 20
    assert any(text.startswith(f"{phase}: its encoder's layers ") for text in said)
    assert set(record["sampled"]) == {"query", "document"}


def test_layers_are_not_measured_where_the_recipe_says_so_and_the_id_stays(tmp_path):
    write_rows(tmp_path / "pairs.jsonl")
    ids, records = [], []
    for layers in (True, False):
        one = study(tmp_path, data(tmp_path, validation={"layers": layers}))
        one.folder = tmp_path / str(layers)
        one.prepare([("dense",)])
        ids.append(one.phase_id(("dense",)))
        records.append(one.train(("dense",)))
    assert ids[0] == ids[1]
    assert [record["layers"] is None for record in records] == [False, True]
