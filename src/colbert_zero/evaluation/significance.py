"""Is a difference between two systems more than chance? Tests over the per-query scores."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from colbert_zero.errors import ColbertZeroError

# Up to here all 2^n sign patterns are tried, and the p-value is exact.
EXACT_PAIRS = 12

# Elements of one block of draws, 32 MB of float64.
BLOCK_ELEMENTS = 1 << 22


def paired_randomisation(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, rounds: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of the mean difference under random exchange of a pair's scores.

    Args:
        a: One score a query, (queries,).
        b: The other system's, same queries in the same order.
        rounds: Random sign patterns; with at most 12 differing pairs every pattern is tried instead.
        seed: Of the patterns.

    Returns:
        Share of patterns whose mean is at least as far from 0 as the observed one. That one is a pattern
        too, so a sampled p-value is never below 1 / (rounds + 1).

    Raises:
        ValueError: The shapes differ, or a score is not finite.

    Source: Smucker, Allan, Carterette, "A Comparison of Statistical Significance Tests for Information
        Retrieval Evaluation", CIKM 2007, section 3.1; the +1: Phipson and Smyth, 2010.
    """
    return stratified_randomisation([_differences(a, b)], rounds, seed)


def stratified_randomisation(
    strata: Sequence[np.ndarray], rounds: int = 10_000, seed: int = 0, weights: Sequence[float] | None = None
) -> float:
    """The same test of the mean over collections of each one's mean difference: a collection counts once.

    A pair's scores are exchanged within its own query, hence within its collection; a collection of 50 queries weighs
    as much as one of 5,000. With one collection this is `paired_randomisation`.

    Args:
        strata: A collection's differences each, (queries,), at least one; the numbers of queries may differ.
        rounds: Random sign patterns; with at most 12 differing pairs over all collections every pattern is tried.
        seed: Of the patterns.
        weights: Of the collections; all the same by default.

    Returns:
        As `paired_randomisation`.

    Source: as `paired_randomisation`; that every collection weighs the same is how BEIR reports its mean.
    """
    # Flipping a difference's sign flips its share of the statistic, so all collections' shares are one list.
    shares = np.concatenate([d * w / len(d) for d, w in zip(strata, weights or [1.0] * len(strata), strict=True)])
    # Pairs that do not differ add 0 under either sign.
    shares = shares[shares != 0]
    # Sums that are equal on paper may differ by rounding; such patterns count as extreme.
    observed = abs(shares.sum()) - 1e-9 * abs(shares).sum()
    if len(shares) <= EXACT_PAIRS:
        bits = np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares)) & 1
        return float(np.mean(abs((2.0 * bits - 1) @ shares) >= observed))
    generator = np.random.default_rng(seed)
    extreme = 0
    for block in _block_sizes(rounds, len(shares)):
        signs = 2.0 * generator.integers(0, 2, (block, len(shares)), dtype=np.int8) - 1
        extreme += int((abs(signs @ shares) >= observed).sum())
    return (extreme + 1) / (rounds + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in the order given; each is at most 1.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    in_order: list[float] = adjusted.tolist()
    return in_order


def bootstrap_means(strata: Sequence[np.ndarray], rounds: int = 10_000, seed: int = 0) -> np.ndarray:
    """Each collection's mean difference in every round, (collections, rounds), float64.

    A round draws as many queries from a collection as it has, with replacement, independently of the others. The mean
    over axis 0 is thus a bootstrap of the mean over collections, of queries within collections.

    Args:
        strata: A collection's differences each, (queries,).
        rounds: How often to draw.
        seed: Of the draws.

    Source: Efron and Tibshirani, 1993, chapter 8 (several samples, each resampled by itself).
    """
    generator = np.random.default_rng(seed)
    means = np.empty((len(strata), rounds))
    for row, differences in zip(means, strata, strict=True):
        start = 0
        for block in _block_sizes(rounds, len(differences)):
            drawn = generator.integers(0, len(differences), (block, len(differences)))
            row[start : start + block] = differences[drawn].mean(axis=1)
            start += block
    return means


def percentile_interval(means: np.ndarray) -> tuple[float, float]:
    """What the middle 95% of bootstrapped means lie between."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """What a share of so many lies in with 95 %; where all or none hit it is no single point, as a bootstrap's is.

    Args:
        share: Of hits, 0 to 1; with half hits it is a little too wide.
        count: How many were tried, at least one.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(1.0, 100)]
        [0.963, 1.0]
    """
    z2 = 1.959964**2 / count
    middle, half = share + z2 / 2, (z2 * share * (1 - share) + z2**2 / 4) ** 0.5
    # By rounding the bounds of none and of all may lie a little inside.
    return min(share, (middle - half) / (1 + z2)), max(share, (middle + half) / (1 + z2))


def equal_within(means: np.ndarray) -> float:
    """The smallest margin within which bootstrapped mean differences show two systems to be equal.

    Two one-sided tests at the level .05 say that a difference is above −margin, and below it: both reject where the
    middle 90 % of the means lie between. A p-value that is not small says nothing of the kind.

    Args:
        means: (rounds,).

    Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for assessing the
        equivalence of average bioavailability", 1987; the interval's form: Westlake, 1981.

    Example:
        >>> round(equal_within(np.array([-0.02, 0.0, 0.01])), 3)
        0.018
    """
    low, high = np.percentile(means, [5, 95])
    return float(max(abs(low), abs(high)))


def equivalent(strata: Sequence[np.ndarray], margin: float, rounds: int = 10_000, seed: int = 0) -> bool:
    """Whether two systems are shown to be equal within a margin, on the mean over collections.

    Args:
        strata: A collection's differences each, (queries,).
        margin: Above 0, in the scores' unit; to be chosen before looking.
        rounds: Of the bootstrap.
        seed: Of the draws.

    Raises:
        ValueError: The margin is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"a margin is above 0, not {margin}")
    return equal_within(bootstrap_means(strata, rounds, seed).mean(axis=0)) < margin


# {system: {query id: {measure: score}}}
Scores = Mapping[str, Mapping[str, Mapping[str, float]]]


def compare(
    per_query: Mapping[str, Scores],
    pairs: Iterable[tuple[str, str]],
    measure: str,
    rounds: int = 10_000,
    seed: int = 0,
    whole_of: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """Test chosen pairs of systems on one measure: on the mean over all collections, and on each for the detail.

    Holm's correction is over the pairs' tests on the mean, which are what a study may claim; the tests on single
    collections are corrected among themselves, over all pairs and collections.

    Args:
        per_query: {collection: scores}; the systems of a pair have the same queries on each.
        pairs: Names of systems, (a, b).
        measure: The one compared.
        rounds: Of randomisation and of the bootstrap.
        seed: Of both; the same for every pair.
        whole_of: The name under which a collection counts: parts of one are tested together, and count once.

    Returns:
        A row a pair with collection None, the mean over collections, then a row a pair and collection: a, b,
        collection, measure, difference (mean of a - b), interval (95%), equal_within
        (`equal_within`, not corrected for being several), p_value, p_value_holm, queries (how many).

    Raises:
        ColbertZeroError: A system, a query or the measure is missing on one side.
    """
    means: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    wholes: dict[str, list[int]] = {}
    for place, name in enumerate(per_query):
        wholes.setdefault(whole_of(name), []).append(place)
    # Of a collection's parts each has its share of the collection's weight.
    size = {place: len(places) for places in wholes.values() for place in places}
    shares = [1 / size[place] for place in range(len(per_query))]
    weights = shares if len(wholes) < len(shares) else None
    for a, b in pairs:
        strata = [_paired(scores, a, b, measure) for scores in per_query.values()]
        drawn = bootstrap_means(strata, rounds, seed)

        def row(
            collection: str | None,
            some: list[np.ndarray],
            drawn: np.ndarray,
            weights: list[float] | None = None,
            a: str = a,
            b: str = b,
        ) -> dict[str, Any]:
            averages = np.average(drawn, axis=0, weights=weights)
            return {
                "a": a,
                "b": b,
                "collection": collection,
                "measure": measure,
                "queries": sum(map(len, some)),
                "difference": float(np.average([np.mean(differences) for differences in some], weights=weights)),
                "interval": list(percentile_interval(averages)),
                "equal_within": equal_within(averages),
                "p_value": stratified_randomisation(some, rounds, seed, weights),
            }

        means.append(row(None, strata, drawn, weights))
        details += [row(whole, [strata[p] for p in places], drawn[places]) for whole, places in wholes.items()]
    for rows in (means, details):
        for tested, adjusted in zip(rows, holm([tested["p_value"] for tested in rows]), strict=True):
            tested["p_value_holm"] = adjusted
    return means + details


def _paired(per_query: Scores, a: str, b: str, measure: str) -> np.ndarray:
    """Each query's difference a - b, (queries,)."""
    a_scores, b_scores = (_system_scores(per_query, system, measure) for system in (a, b))
    if differing := sorted(a_scores.keys() ^ b_scores.keys()):
        raise ColbertZeroError(
            f"{a} and {b} differ in {len(differing)} queries ({', '.join(differing[:5])}); "
            "evaluate both on the same collection"
        )
    return _differences(list(a_scores.values()), [b_scores[query_id] for query_id in a_scores])


def _system_scores(per_query: Scores, system: str, measure: str) -> dict[str, float]:
    if system not in per_query:
        raise ColbertZeroError(f"no system {system!r}, only {', '.join(map(repr, per_query)) or 'none'}")
    if not per_query[system]:
        raise ColbertZeroError(f"{system} has no query to compare")
    for query_id, scores in per_query[system].items():
        if measure not in scores:
            raise ColbertZeroError(
                f"{system} has no {measure} for query {query_id!r}, only {', '.join(scores) or 'nothing'}"
            )
    return {query_id: scores[measure] for query_id, scores in per_query[system].items()}


def _differences(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> np.ndarray:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"expected the same queries on both sides, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a score is not finite")
    differences: np.ndarray = x - y
    return differences


def _block_sizes(rounds: int, width: int) -> Iterator[int]:
    block = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rounds, block):
        yield min(block, rounds - start)
