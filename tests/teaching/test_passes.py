import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.teaching.passes import NOBODY, best, of_keys, to_keys

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_keys_sort_like_scores_and_equal_scores_by_number(scores: list[float]) -> None:
    keys = to_keys(np.float32(scores), np.arange(len(scores)))
    documents, found = of_keys(np.sort(keys)[::-1])
    assert documents.tolist() == sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    assert found.tolist() == [scores[n] for n in documents]
    assert (keys > NOBODY).all()


@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1])
def test_numbers_of_any_size_come_back(number: int) -> None:
    documents, scores = of_keys(to_keys(np.float32([-0.0]), np.array([number])))
    assert (documents[0], scores[0]) == (number, 0)


@given(st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(0, 9))
def test_the_best_are_the_highest(rows: list[list[int]], depth: int) -> None:
    found = best(np.array(rows, np.int64), depth)
    assert [sorted(row) for row in found.tolist()] == [sorted(row)[max(0, 6 - depth) :] for row in rows]
