"""Is a difference between two systems more than chance? Tests over the per-query scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    differences = _differences(a, b)
    # Pairs that do not differ add 0 under either sign.
    differences = differences[differences != 0]
    # Sums that are equal on paper may differ by rounding; such patterns count as extreme.
    observed = abs(differences.sum()) - 1e-9 * abs(differences).sum()
    if len(differences) <= EXACT_PAIRS:
        bits = np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1
        return float(np.mean(abs((2.0 * bits - 1) @ differences) >= observed))
    generator = np.random.default_rng(seed)
    extreme = 0
    for block in _block_sizes(rounds, len(differences)):
        signs = 2.0 * generator.integers(0, 2, (block, len(differences)), dtype=np.int8) - 1
        extreme += int((abs(signs @ differences) >= observed).sum())
    return (extreme + 1) / (rounds + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in the order given; each is at most 1.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def bootstrap_interval(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, rounds: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean difference a - b, resampling the queries with replacement.

    Raises:
        ValueError: The shapes differ, or a score is not finite.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    differences = _differences(a, b)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            differences[generator.integers(0, len(differences), (block, len(differences)))].mean(axis=1)
            for block in _block_sizes(rounds, len(differences))
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def compare(
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]],
    pairs: Iterable[tuple[str, str]],
    measure: str,
    rounds: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Test chosen pairs of systems on one measure; Holm's correction is over these pairs.

    Args:
        per_query: {system: {query id: {measure: score}}}; the systems of a pair have the same queries.
        pairs: Names of systems, (a, b).
        measure: The one compared.
        rounds: Of randomisation and of the bootstrap.
        seed: Of both; the same for every pair.

    Returns:
        A row a pair: a, b, measure, difference (mean of a - b), interval (95%), p_value, p_value_holm,
        queries (how many).

    Raises:
        ColbertZeroError: A system, a query or the measure is missing on one side.
    """
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        a_scores, b_scores = (_system_scores(per_query, system, measure) for system in (a, b))
        if differing := sorted(a_scores.keys() ^ b_scores.keys()):
            raise ColbertZeroError(
                f"{a} and {b} differ in {len(differing)} queries ({', '.join(differing[:5])}); "
                "evaluate both on the same collection"
            )
        x, y = list(a_scores.values()), [b_scores[query_id] for query_id in a_scores]
        rows.append(
            {
                "a": a,
                "b": b,
                "measure": measure,
                "queries": len(x),
                "difference": float(np.mean(np.subtract(x, y))),
                "interval": list(bootstrap_interval(x, y, rounds, seed)),
                "p_value": paired_randomisation(x, y, rounds, seed),
            }
        )
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value_holm"] = adjusted
    return rows


def _system_scores(
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]], system: str, measure: str
) -> dict[str, float]:
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
    return x - y


def _block_sizes(rounds: int, width: int) -> Iterator[int]:
    block = max(1, BLOCK_ELEMENTS // width)
    for start in range(0, rounds, block):
        yield min(block, rounds - start)
