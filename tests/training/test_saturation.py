"""A teacher that says little at the temperature it is read at is told, with the share of rows."""

import pytest
import torch
from datasets import Dataset

from colbert_zero.data.prepared import ArrowPart
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.losses import entropies
from colbert_zero.training.saturation import saturated, tell_saturated


def told(scores, **changes):
    plain = {"representation": "dense", "sources": ["s"], "global_batch_size": 4, "learning_rate": 1e-3}
    spec = Phase(**(plain | {"objective": "distillation"} | changes))
    rows = [{"query": f"q{n}", "documents": ["a"] * len(row), "scores": row} for n, row in enumerate(scores)]
    said = []
    tell_saturated("kd", spec, {"s/all": ArrowPart("s/all", Dataset.from_list(rows), None)}, said.append)
    return said


SPREAD = [[float(k) for k in range(8)] for _ in range(10)]


def test_a_teacher_that_is_nearly_one_hot_or_flat_is_told_with_the_share_of_rows_and_the_mend():
    [said] = told(SPREAD, temperature=0.01)
    assert said.startswith(
        "phases.kd.temperature: at 0.01 the teacher's softmax is nearly one-hot in 100% of 10 rows of s"
    )
    assert said.endswith("raise it")
    [said] = told(SPREAD, temperature=0.5, teacher_temperature=100)
    assert said.startswith(
        "phases.kd.teacher_temperature: at 100 the teacher's softmax is nearly flat in 100% of 10 rows"
    )
    assert said.endswith("lower it")
    mixed = [[0.0] * 3 + [1.0]] * 6 + [[0.0, 0.9, 0.95, 1.0]] * 4
    [said] = told(mixed, temperature=0.1)
    assert "in 60% of 10 rows" in said


@pytest.mark.parametrize(
    ("scores", "changes"),
    [
        (SPREAD, {}),
        (SPREAD, {"temperature": 0.2}),
        (SPREAD, {"distillation_loss": "margin-mse"}),
        ([*SPREAD, [1.0] * 8], {}),
    ],
)
def test_nothing_is_told_of_a_teacher_that_says_something_or_has_no_softmax(scores, changes):
    assert not told(scores, **changes)


def test_a_contrastive_phase_has_no_teacher():
    assert not told(SPREAD, objective="contrastive")


def test_shares_are_of_the_rows_whose_entropy_is_near_an_end():
    logits = torch.tensor([[0.0, 0, 0], [50, 0, 0], [1, 0, -1]])
    assert entropies(logits)[:2].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert saturated(entropies(logits)) == pytest.approx({"one-hot": 1 / 3, "flat": 1 / 3})
    assert saturated(torch.empty(0)) == {"one-hot": 0.0, "flat": 0.0}
