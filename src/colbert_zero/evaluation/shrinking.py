"""What a model loses by being cut, and what it gains: scores, agreement with the model before, documents a second."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import embed, rank
from colbert_zero.evaluation.runs import measure
from colbert_zero.evaluation.significance import bootstrap_means, percentile_interval
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import encode
from colbert_zero.report.records import MEASURE

FIRST = 10
"""Documents of a ranking that are compared."""


def scores_of(model: Encoder, collection: Collection) -> np.ndarray:
    """nDCG@10 of each query, (queries,), in the collection's order."""
    per_query = measure(rank(model, collection, FIRST), collection.qrels, (MEASURE,))[1]
    return np.array([per_query[query][MEASURE] for query in collection.qrels])


def neighbours(model: Encoder, texts: list[str]) -> list[set[int]]:
    """The ten texts that each text finds, taken as a query; itself is left out.

    Args:
        model: Dense or multi-vector.
        texts: More than ten.

    Raises:
        ColbertZeroError: There are fewer.
    """
    if len(texts) <= FIRST:
        raise ColbertZeroError(f"the corpus has {len(texts)} texts, and agreement needs more than {FIRST}; name more")
    scores = packed_scores(embed(model, texts, "query"), embed(model, texts, "document")).cpu().numpy()
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :FIRST]
    return [set(row) for row in order.tolist()]


def agreement(before: Sequence[set[int]], after: Sequence[set[int]]) -> np.ndarray:
    """Share of the documents that each text found before which it finds after, (texts,).

    Example:
        >>> agreement([{1, 2}, {3, 4}], [{1, 2}, {4, 5}]).tolist()
        [1.0, 0.5]
    """
    return np.array([len(one & other) / len(one) for one, other in zip(before, after, strict=True)])


def loss(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Mean of both, of the difference after − before, and its 95 % interval by a paired bootstrap over queries."""
    difference = after - before
    interval = percentile_interval(bootstrap_means([difference])[0])
    return {
        "score": float(after.mean()),
        "difference": float(difference.mean()),
        "interval": list(interval),
        "queries": len(difference),
    }


ROUNDS = 5
"""In which speed is measured."""


def documents_per_second(
    models: Mapping[str, Encoder], texts: list[str], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """How many documents each model encodes in a second, in each of some rounds, after one to warm up.

    Args:
        models: By name; they take turns.
        texts: Encoded as documents.
        rounds: At least one.
    """
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            started = time.perf_counter()
            encode(model, texts, "document")
            if number:
                speeds[name].append(len(texts) / (time.perf_counter() - started))
    return speeds


def times_faster(before: Sequence[float], after: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """How many times faster, round by round: the geometric mean, and its 95 % interval by Student's t.

    What slows a whole round down is in both of its numbers, and so not in their ratio.

    Args:
        before: Documents a second in each round, at least two.
        after: The same.

    Example:
        >>> times_faster([10, 20, 30], [20, 40, 60])
        (2.0, (2.0, 2.0))
    """
    logarithms = np.log(np.divide(after, before))
    half = t.ppf(0.975, len(logarithms) - 1) * logarithms.std(ddof=1) / np.sqrt(len(logarithms))
    low, mean, high = (float(np.exp(logarithms.mean() + half * sign)) for sign in (-1, 0, 1))
    return mean, (low, high)
