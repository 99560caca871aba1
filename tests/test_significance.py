import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from colbert_zero.errors import ColbertZeroError
from colbert_zero.significance import bootstrap_interval, compare, holm, paired_randomisation

scores = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=10)


def exact_p_value(a, b):
    differences = np.subtract(a, b)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    return np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)


@settings(deadline=None)
@given(scores)
def test_few_pairs_give_the_exact_p_value(pairs):
    a, b = np.array(pairs).T / 7
    assert paired_randomisation(a, b) == pytest.approx(exact_p_value(a, b))


@settings(deadline=None)
@given(scores)
def test_the_p_value_does_not_depend_on_which_system_comes_first(pairs):
    a, b = np.array(pairs).T / 7
    assert paired_randomisation(a, b) == paired_randomisation(b, a)


def test_many_pairs_agree_with_scipy():
    generator = np.random.default_rng(5)
    a = generator.random(60)
    b = a - 0.01 + 0.2 * generator.standard_normal(60)
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=50_000, rng=1
    ).pvalue
    assert 0.02 < expected < 0.6
    assert paired_randomisation(a, b, rounds=50_000, seed=2) == pytest.approx(expected, abs=0.01)


def test_a_certain_difference_reaches_the_smallest_p_value_and_never_0():
    assert paired_randomisation(np.ones(50), np.zeros(50), rounds=999) == 1 / 1000


def test_equal_systems_have_p_value_1():
    assert paired_randomisation([0.1, 0.5], [0.1, 0.5]) == 1
    assert paired_randomisation(np.tile([0.0, 1.0], 20), np.tile([1.0, 0.0], 20), rounds=200) == 1


def test_the_seed_decides_the_patterns():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 40))
    assert paired_randomisation(a, b, seed=3) == paired_randomisation(a, b, seed=3)
    assert paired_randomisation(a, b, seed=3) != paired_randomisation(a, b, seed=4)


def test_true_null_hypotheses_are_rejected_at_the_nominal_rate():
    generator = np.random.default_rng(0)
    p_values = [paired_randomisation(*generator.random((2, 25)), rounds=199, seed=i) for i in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0], [1.0, 2.0], "shapes"), ([], [], "shapes"), ([float("nan")], [1.0], "finite")],
)
def test_wrong_scores_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_randomisation(a, b)


def test_holm_repeats_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p_values):
    adjusted = holm(p_values)
    for i, p in enumerate(p_values):
        before = [q for q in sorted(p_values) if q <= p]
        expected = max(min(1, (len(p_values) - k) * q) for k, q in enumerate(before))
        assert adjusted[i] == pytest.approx(expected)


def test_the_bootstrap_interval_agrees_with_scipy():
    generator = np.random.default_rng(1)
    a, b = generator.random((2, 80))
    low, high = bootstrap_interval(a, b, rounds=20_000)
    expected = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=0.005)
    assert low < np.mean(a - b) < high


def test_compare_pairs_the_queries_by_id_and_corrects_over_the_pairs():
    generator = np.random.default_rng(2)
    base = {f"q{i}": float(s) for i, s in enumerate(generator.random(30))}
    per_query = {
        "base": {q: {"nDCG@10": s} for q, s in base.items()},
        "better": {q: {"nDCG@10": base[q] + 0.1} for q in reversed(base)},
        "same": {q: {"nDCG@10": s} for q, s in base.items()},
    }
    better, same = compare(per_query, [("better", "base"), ("same", "base")], "nDCG@10", rounds=999)
    assert better["difference"] == pytest.approx(0.1)
    assert better["interval"] == pytest.approx([0.1, 0.1])
    assert (better["p_value"], better["p_value_holm"]) == (0.001, 0.002)
    assert (same["difference"], same["p_value"], same["p_value_holm"], same["queries"]) == (0, 1, 1, 30)


def test_compare_names_what_is_missing():
    per_query = {"a": {"q1": {"RR@10": 1.0}}, "b": {"q2": {"RR@10": 1.0}}, "empty": {}}
    with pytest.raises(ColbertZeroError, match="a and b differ in 2 queries"):
        compare(per_query, [("a", "b")], "RR@10")
    with pytest.raises(ColbertZeroError, match="no system 'c', only 'a', 'b'"):
        compare(per_query, [("a", "c")], "RR@10")
    with pytest.raises(ColbertZeroError, match=r"a has no nDCG@10 for query 'q1', only RR@10"):
        compare(per_query, [("a", "b")], "nDCG@10")
    with pytest.raises(ColbertZeroError, match="empty has no query"):
        compare(per_query, [("empty", "a")], "RR@10")
