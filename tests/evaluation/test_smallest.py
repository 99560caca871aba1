"""What is tried to make a model smaller, and how a loss is measured."""

import doctest

import numpy as np
import pytest

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation import shrinking, smallest
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import measure
from colbert_zero.evaluation.shrinking import (
    agreement,
    documents_per_second,
    loss,
    neighbours,
    scores_of,
    times_faster,
)
from colbert_zero.evaluation.smallest import Combination, combinations, expected_bytes, target_bytes
from colbert_zero.models import axes, shrunk
from colbert_zero.models import shrinking as cuts
from colbert_zero.models.shrinking import Cuts
from colbert_zero.models.shrunk import Uncut, folder_bytes, write_shrunk
from colbert_zero.report import shrinking as shown
from helpers import DOCUMENTS

TEXTS = list(DOCUMENTS.values())


@pytest.mark.parametrize("kind", ["tiny_multi_vector", "tiny_dense"])
def test_a_model_agrees_with_itself_and_scores_as_evaluate_does(kind, request, collection):
    model = request.getfixturevalue(kind)
    found = neighbours(model, TEXTS)
    assert all(len(one) == 10 and place not in one for place, one in enumerate(found))
    assert agreement(found, found).tolist() == [1.0] * len(TEXTS)
    means, _ = measure(rank(model, collection), collection.qrels)
    assert scores_of(model, collection).mean() == pytest.approx(means["nDCG@10"])


def test_a_loss_is_paired_and_its_interval_holds_it():
    before, after = np.array([0.5, 0.7, 0.9, 0.1]), np.array([0.4, 0.6, 0.8, 0.0])
    found = loss(before, after)
    assert found["difference"] == pytest.approx(-0.1)
    assert found["interval"] == pytest.approx([-0.1, -0.1])  # the same of every query: nothing varies
    assert found["queries"] == 4


def test_speed_is_of_all_models_in_turn(tiny_multi_vector):
    found = documents_per_second({"a": tiny_multi_vector, "b": tiny_multi_vector}, TEXTS, 2)
    assert {name: len(speeds) for name, speeds in found.items()} == {"a": 2, "b": 2}
    assert min(*found["a"], *found["b"]) > 0


def test_how_much_faster_is_of_rounds_and_has_its_interval():
    rng = np.random.default_rng(1)
    slow = rng.uniform(20, 60, 12)  # rounds that were disturbed are so for both
    once, interval = times_faster(slow, 1.5 * slow)
    assert (once, *interval) == pytest.approx((1.5, 1.5, 1.5))
    held = 0
    for _ in range(400):
        _, (low, high) = times_faster(slow, 1.5 * slow * np.exp(rng.normal(0, 0.1, 12)))
        held += low < 1.5 < high
    assert 0.92 < held / 400 < 0.98


def test_a_target_is_bytes_or_times():
    assert target_bytes("50MB", 10**8) == 50_000_000
    assert target_bytes("1.5 kb", 10**8) == 1500
    assert target_bytes("4x", 10**8) == 25_000_000
    for wrong in ("50", "0x", "MB", "-2x", "2xx"):
        with pytest.raises(ColbertZeroError, match=f"^--target {wrong}: write bytes, as in 50MB, or how many times"):
            target_bytes(wrong, 10**8)
    with pytest.raises(ColbertZeroError, match=r"^--target 1x: the model takes 100.00 MB already; name less"):
        target_bytes("1x", 10**8)


def test_with_each_number_of_layers_the_most_neurons_that_the_target_leaves_are_tried():
    def expected(one):
        return 50 * (not one.vocabulary) + one.layers * (5 + 10 * one.neurons)

    found = list(combinations(4, 60, True, expected))
    assert found[0] == Combination(4, 1.0, False)
    meeting = [one for one in found if expected(one) <= 60]
    assert Combination(1, 0.5, False) in meeting  # 50 + 10
    assert Combination(4, 1.0, True) in meeting
    assert not any(one.vocabulary and one.layers < 4 for one in found), "fewer layers would only be fewer"
    assert len(set(found)) == len(found)
    assert not any(one.vocabulary for one in combinations(4, 60, False, expected))


def test_expected_bytes_are_near_those_that_are_written(tiny_multi_vector, tmp_path):
    tiny_multi_vector.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    source, before = Uncut(str(tmp_path / "model")), folder_bytes(tmp_path / "model")
    expected = expected_bytes(source, before, None)
    for one in (Combination(2, 1.0, False), Combination(1, 0.5, False), Combination(2, 0.25, False)):
        layers = tuple(range(one.layers))
        record = write_shrunk(source, tmp_path / "out", Cuts(layers, one.neurons), tell=print)
        assert record["bytes"] == pytest.approx(expected(one), rel=0.03)  # names of arrays and settings aside


@pytest.mark.parametrize("module", [axes, cuts, shrunk, shrinking, smallest, shown])
def test_the_examples_of_docstrings_are_true(module):
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed
