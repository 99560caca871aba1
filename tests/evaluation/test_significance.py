import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.significance import (
    bootstrap_means,
    compare,
    equal_within,
    equivalent,
    holm,
    paired_randomisation,
    percentile_interval,
    stratified_randomisation,
)

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
    low, high = percentile_interval(bootstrap_means([a - b], rounds=20_000)[0])
    expected = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    assert (low, high) == pytest.approx(expected.confidence_interval, abs=0.005)
    assert low < np.mean(a - b) < high


strata = st.lists(st.lists(st.integers(-6, 6), min_size=1, max_size=5), min_size=1, max_size=3).filter(
    lambda lists: sum(map(len, lists)) <= 10
)


def exact_stratified_p_value(lists):
    """Every pattern of signs of every query, each collection's mean weighing the same."""

    def statistic(lists):
        return sum(sum(differences) / len(differences) for differences in lists) / len(lists)

    extreme = total = 0
    for signs in itertools.product((-1, 1), repeat=sum(map(len, lists))):
        rest = iter(signs)
        flipped = [[next(rest) * difference for difference in differences] for differences in lists]
        extreme += abs(statistic(flipped)) >= abs(statistic(lists)) - 1e-9
        total += 1
    return extreme / total


@settings(deadline=None, max_examples=60)
@given(strata)
def test_the_test_on_the_mean_is_exact_over_all_patterns_where_few_queries_differ(lists):
    arrays = [np.array(differences) / 7 for differences in lists]
    assert stratified_randomisation(arrays) == pytest.approx(exact_stratified_p_value(lists))


def test_the_sampled_test_on_the_mean_agrees_with_every_pattern():
    generator = np.random.default_rng(3)
    lists = [list(generator.normal(0.5, 1, 4)), list(generator.normal(0.5, 1, 9))]
    exact = exact_stratified_p_value(lists)
    assert 0.02 < exact < 0.6
    # Standard error of a share of 40,000 draws: 0.0025 at most.
    assert stratified_randomisation([np.array(d) for d in lists], rounds=40_000, seed=1) == pytest.approx(
        exact, abs=0.01
    )


def test_a_large_collection_weighs_no_more_than_a_small_one():
    small, large = np.full(8, -1.0), np.full(800, 1.0)
    # Of equal size in the mean, so nothing speaks for either; pooled queries would speak for the large one.
    assert stratified_randomisation([small, large], rounds=999) > 0.9
    assert paired_randomisation(np.concatenate([small, large]), np.zeros(808), rounds=999) == 0.001


def test_with_one_collection_the_test_on_the_mean_is_the_ordinary_one():
    generator = np.random.default_rng(8)
    a, b = generator.random((2, 40))
    assert stratified_randomisation([a - b], rounds=500, seed=4) == paired_randomisation(a, b, rounds=500, seed=4)


def test_true_null_hypotheses_on_the_mean_are_rejected_at_the_nominal_rate():
    generator = np.random.default_rng(0)
    p_values = [
        stratified_randomisation([generator.normal(size=10), generator.normal(0, 3, size=30)], rounds=199, seed=i)
        for i in range(400)
    ]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_the_bootstrap_draws_queries_within_collections(monkeypatch):
    strata = [np.array([0.0, 1.0, 5.0]), np.array([2.0, -1.0])]
    generator = np.random.default_rng(6)
    expected = []
    for differences in strata:
        rounds = []
        for _ in range(50):
            drawn = [differences[i] for i in generator.integers(0, len(differences), len(differences))]
            rounds.append(sum(drawn) / len(drawn))
        expected.append(rounds)
    assert bootstrap_means(strata, rounds=50, seed=6) == pytest.approx(np.array(expected))
    # The same draws, a block of a few rounds at a time.
    monkeypatch.setattr("colbert_zero.evaluation.significance.BLOCK_ELEMENTS", 7)
    assert bootstrap_means(strata, rounds=50, seed=6) == pytest.approx(np.array(expected))


def test_compare_pairs_the_queries_by_id_and_corrects_means_and_details_apart():
    generator = np.random.default_rng(2)
    base = {f"q{i}": float(s) for i, s in enumerate(generator.random(30))}
    scores = {
        "base": {q: {"nDCG@10": s} for q, s in base.items()},
        "better": {q: {"nDCG@10": base[q] + 0.1} for q in reversed(base)},
        "same": {q: {"nDCG@10": s} for q, s in base.items()},
    }
    few = {system: {q: values[q] for q in list(base)[:15]} for system, values in scores.items()}
    pairs = [("better", "base"), ("same", "base")]
    rows = compare({"one": scores, "two": few}, pairs, "nDCG@10", rounds=999)
    assert [(row["a"], row["collection"]) for row in rows] == [
        ("better", None), ("same", None), ("better", "one"), ("better", "two"), ("same", "one"), ("same", "two"),
    ]  # fmt: skip
    better, same, one = rows[:3]
    assert better["difference"] == pytest.approx(0.1)
    assert better["interval"] == pytest.approx([0.1, 0.1])
    assert (better["equal_within"], same["equal_within"]) == (pytest.approx(0.1), 0)
    assert (better["p_value"], better["p_value_holm"], better["queries"]) == (0.001, 0.002, 45)
    assert (same["difference"], same["p_value"], same["p_value_holm"]) == (0, 1, 1)
    assert (one["p_value"], one["p_value_holm"], one["queries"]) == (0.001, 0.004, 30)


def test_a_difference_on_one_of_seven_collections_is_none_of_the_mean():
    generator = np.random.default_rng(4)
    per_query = {}
    for i in range(7):
        half = generator.normal(0, 0.3, 30)
        noise = np.concatenate([half, -half]) + (0.13 if i == 0 else 0.0)
        per_query[f"c{i}"] = {
            "a": {f"q{j}": {"nDCG@10": float(d)} for j, d in enumerate(noise)},
            "b": {f"q{j}": {"nDCG@10": 0.0} for j in range(60)},
        }
    mean, *details = compare(per_query, [("a", "b")], "nDCG@10", rounds=4999)
    assert details[0]["p_value_holm"] < 0.05
    assert mean["p_value_holm"] > 0.05


def test_parts_of_a_collection_are_tested_together_and_count_once():
    generator = np.random.default_rng(3)
    differences = {name: generator.normal(0.1, 0.3, size) for name, size in {"w-x": 3, "w-y": 5, "v": 4}.items()}
    per_query = {
        name: {
            "a": {f"q{i}": {"nDCG@10": float(d)} for i, d in enumerate(values)},
            "b": {f"q{i}": {"nDCG@10": 0.0} for i in range(len(values))},
        }
        for name, values in differences.items()
    }
    rows = compare(per_query, [("a", "b")], "nDCG@10", rounds=500, whole_of=lambda name: name[0])
    assert [row["collection"] for row in rows] == [None, "w", "v"]
    means = {name: values.mean() for name, values in differences.items()}
    whole = (means["w-x"] + means["w-y"]) / 2
    assert rows[1]["difference"] == pytest.approx(whole)
    assert rows[0]["difference"] == pytest.approx((whole + means["v"]) / 2)
    assert [row["queries"] for row in rows] == [12, 8, 4]
    # 12 pairs: all patterns are tried.
    weight = {"w-x": 1 / 2, "w-y": 1 / 2, "v": 1}
    shares = np.concatenate([weight[name] * values / len(values) for name, values in differences.items()])
    assert rows[0]["p_value"] == pytest.approx(exact_p_value(shares, 0 * shares))
    drawn = bootstrap_means(list(differences.values()), 500, 0)
    expected = percentile_interval(((drawn[0] + drawn[1]) / 2 + drawn[2]) / 2)
    assert rows[0]["interval"] == pytest.approx(list(expected))


def test_compare_names_what_is_missing():
    per_query = {"c": {"a": {"q1": {"RR@10": 1.0}}, "b": {"q2": {"RR@10": 1.0}}, "empty": {}}}
    with pytest.raises(ColbertZeroError, match="a and b differ in 2 queries"):
        compare(per_query, [("a", "b")], "RR@10")
    with pytest.raises(ColbertZeroError, match="no system 'c', only 'a', 'b'"):
        compare(per_query, [("a", "c")], "RR@10")
    with pytest.raises(ColbertZeroError, match=r"a has no nDCG@10 for query 'q1', only RR@10"):
        compare(per_query, [("a", "b")], "nDCG@10")
    with pytest.raises(ColbertZeroError, match="empty has no query"):
        compare(per_query, [("empty", "a")], "RR@10")


def test_systems_are_equal_where_both_one_sided_tests_reject():
    """Against the t-test's form of the same: the bootstrap's middle 90 % is nearly the mean ± 1.645 standard errors."""
    differences = np.random.default_rng(5).normal(0.01, 0.2, 400)
    error = differences.std() / 20
    wanted = abs(differences.mean()) + 1.645 * error
    assert equal_within(bootstrap_means([differences]).mean(axis=0)) == pytest.approx(wanted, rel=0.03)
    assert equivalent([differences], 1.1 * wanted)
    assert not equivalent([differences], 0.9 * wanted)


def test_few_queries_show_nothing_to_be_equal():
    """Not significant, and not equal either."""
    differences = np.array([0.5, -0.5, 0.4, -0.4])
    assert paired_randomisation(differences, np.zeros(4)) == 1
    assert not equivalent([differences], 0.1)


@pytest.mark.parametrize("margin", [0, -1, float("nan")])
def test_a_margin_is_above_0(margin):
    with pytest.raises(ValueError, match="a margin is above 0"):
        equivalent([np.zeros(3)], margin)
