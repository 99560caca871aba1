import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_zero.data.order import Order, permute

ROWS = {"a": 103, "b": 40, "small": 3, "c": 64}
MIXTURES = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 300), min_size=1, max_size=6)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 4000), st.lists(st.integers(0, 2**64), max_size=3))
def test_a_permutation_reaches_every_row_once(size: int, key: list[int]) -> None:
    assert sorted(permute(np.arange(size), size, *key)) == list(range(size))


@given(st.integers(1, 2**40), st.data())
def test_a_permutation_of_many_rows_stays_inside_and_sends_two_apart(size: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9, unique=True))
    sent = permute(np.array(positions), size, 1, 2)
    assert ((sent >= 0) & (sent < size)).all()
    assert len(set(sent.tolist())) == len(positions)


def test_a_permutation_looks_random() -> None:
    size = 10_000
    sent = permute(np.arange(size), size, 7)
    assert abs(np.corrcoef(np.arange(size), sent)[0, 1]) < 0.05
    assert abs(np.corrcoef(sent[:-1], sent[1:])[0, 1]) < 0.05
    # The mean distance of two random numbers below n is n / 3.
    assert np.abs(np.diff(sent)).mean() == pytest.approx(size / 3, rel=0.05)
    assert (sent == np.arange(size)).sum() < 10


def epoch_rows(order: Order, epoch: int) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {name: [] for name in order.names}
    for step in range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch):
        name, numbers = order.batch(step)
        rows[name] += numbers.tolist()
    return rows


def test_the_order_differs_by_epoch_seed_and_source() -> None:
    order = Order({"a": 64, "b": 64}, 8, seed=1)
    first, second, other = epoch_rows(order, 0), epoch_rows(order, 1), epoch_rows(Order(order.rows, 8, seed=2), 0)
    assert first["a"] != second["a"]
    assert first["a"] != other["a"]
    assert first["a"] != first["b"]
    sources = [[o.source(step)[0] for step in range(s, s + 16)] for o, s in ((order, 0), (order, 16))]
    assert sources[0] != sources[1]


@settings(deadline=None, max_examples=30)
@given(MIXTURES, st.integers(2, 40), st.integers(0, 3), st.integers(0, 2))
def test_every_row_comes_once_an_epoch_but_those_counted_as_dropped(
    rows: dict[str, int], size: int, seed: int, epoch: int
) -> None:
    order = Order(rows, size, seed)
    read = epoch_rows(order, epoch)
    assert set(order.dropped) == set(rows)
    for name, count in rows.items():
        seen = read.get(name, [])
        assert len(seen) == len(set(seen)) == count - order.dropped[name]
        assert all(0 <= row < count for row in seen)
        assert order.dropped[name] < size or name not in order.names
    assert order.batches_per_epoch == sum(count // size for count in rows.values())


def test_a_row_dropped_in_one_epoch_comes_in_another() -> None:
    order = Order({"a": 15}, 8, seed=0)
    assert {row for epoch in range(20) for row in epoch_rows(order, epoch)["a"]} == set(range(15))


def test_a_batch_comes_from_one_source_and_sources_come_in_proportion() -> None:
    order = Order(ROWS, 8, seed=3)
    for epoch in range(3):
        steps = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
        drawn = Counter(order.source(step)[0] for step in steps)
        assert drawn == {"a": 12, "b": 5, "c": 8}
    assert order.dropped == {"a": 7, "b": 0, "small": 3, "c": 0}


@given(st.integers(0, 90))
def test_batches_of_each_source_are_counted_without_looking_at_each(steps: int) -> None:
    order = Order(ROWS, 8, seed=3)
    expected = Counter(order.source(step)[0] for step in range(steps))
    assert order.drawn(steps) == {name: expected[name] for name in ROWS}


def test_alpha_draws_small_sources_more_often() -> None:
    rows = {"large": 16_000, "middle": 4000, "small": 250}
    order = Order(rows, 10, seed=0, alpha=0.5)
    drawn = Counter(order.source(step)[0] for step in range(order.batches_per_epoch))
    weights = {name: count**0.5 for name, count in rows.items()}
    for name in rows:
        assert abs(drawn[name] - 2025 * weights[name] / sum(weights.values())) <= 0.5
    # The small source is read several times over, each time whole before again.
    small = [order.batch(step)[1] for step in range(order.batches_per_epoch * 2) if order.source(step)[0] == "small"]
    assert len(small) > 100
    seen = Counter(np.concatenate(small).tolist())
    assert max(seen.values()) - min(seen.values()) <= 1


@given(st.integers(0, 10**9))
def test_a_step_is_computed_directly(step: int) -> None:
    order, fresh = Order(ROWS, 8, seed=3), Order(ROWS, 8, seed=3)
    for earlier in range(5):
        order.batch(earlier)
    name, numbers = order.batch(step)
    again, same = fresh.batch(step)
    assert name == again
    assert numbers.tolist() == same.tolist()


def test_another_source_leaves_the_rows_of_the_others_as_they_were() -> None:
    def batches(rows: dict[str, int]) -> set[tuple[int, ...]]:
        order = Order(rows, 8, seed=3)
        steps = [order.batch(step) for step in range(order.batches_per_epoch)]
        return {tuple(numbers.tolist()) for name, numbers in steps if name == "b"}

    assert batches({"b": 40}) == batches(ROWS) == batches({"z": 500, **ROWS})


def test_a_mixture_of_a_hundred_million_rows_takes_little_memory() -> None:
    rows = {f"source-{k}": 10**8 * (k + 1) // 435 for k in range(29)}
    tracemalloc.start()
    order = Order(rows, 16_384, seed=1)
    batches = [order.batch(step) for step in (0, 1, 10**4)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(rows.values()) > 9.9e7
    assert peak < 50_000_000
    assert all(numbers.shape == (16_384,) and numbers.max() < rows[name] for name, numbers in batches)


@pytest.mark.parametrize(("alpha", "batches"), [(1.0, 10_000), (0.5, 3000)])
def test_batches_match_the_proportions(alpha: float, batches: int) -> None:
    rows = {f"source-{k}": 1_000_000 * (k + 1) for k in range(8)}
    order = Order(rows, 100, seed=5, alpha=alpha)
    drawn = Counter(order.source(step)[0] for step in range(batches))
    weights = {name: count**alpha for name, count in rows.items()}
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        # Four standard deviations of independent draws; drawing without replacement varies less.
        assert abs(drawn[name] - batches * share) < 4 * (batches * share * (1 - share)) ** 0.5
