"""Several systems as one: the weighted sum of their scores, each min-max normalised, and which of them to take.

What is normalised differs by what there is: of a query's candidates every member scores all (`weighted_sum`, which is
what a teacher's scores are); of a run a member has what it retrieved, and a document that it did not has 0 in it
(`fuse`). The order that an ensemble ranks in does not change where all weights are multiplied by one number.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.runs import Run
from colbert_zero.maxsim.scores import min_max

FUSION_DEPTH = 1000
"""Documents per query of each member that an ensemble's ranking is made from, a teacher's too."""

FUSED = "one hit counts"
"""Part of what a fused ranking is known by: rankings of before one hit counted are made anew."""

_FLAT = 1e-9
"""Scores of a query that span less are all the same."""


def weighted_sum(members: Iterable[tuple[float, np.ndarray]], shape: tuple[int, ...]) -> Tensor:
    """Scores of queries' candidates by several members, (queries, n_ways) float32.

    Args:
        members: Of each its weight and its scores of all candidates, (queries, n_ways) float32, on any scale.
        shape: Of the scores.

    Example:
        >>> weighted_sum([(1.0, np.float32([[3, 1, 2]])), (2.0, np.float32([[10, 30, 10]]))], (1, 3)).tolist()
        [[1.0, 2.0, 0.5]]
    """
    scores = torch.zeros(shape)
    for weight, own in members:
        scores += weight * min_max(torch.from_numpy(own))
    return scores


def fuse(runs: list[tuple[float, Run]], depth: int) -> Run:
    """Rank by the weighted sum of runs' scores, each min-max normalised over what it retrieved for a query.

    A document that a run did not retrieve has 0 in it; those of a run that scores all alike, and above 0, have 1. Ties
    go by document id.

    Args:
        runs: Of each member its weight and its run, best first.
        depth: Documents a query keeps.

    Example:
        >>> fuse([(1.0, {"q": [("a", 3.0), ("b", 1.0)]}), (1.0, {"q": [("c", 9.0), ("a", 5.0)]})], 2)
        {'q': [('a', 1.0), ('c', 1.0)]}
    """
    fused: dict[str, dict[str, float]] = {}
    for weight, run in runs:
        for query, ranked in run.items():
            sums = fused.setdefault(query, {})
            if ranked:
                low, span = _low_and_span(ranked)
                for document, value in ranked:
                    sums[document] = sums.get(document, 0.0) + weight * (value - low) / span
    return {query: sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:depth] for query, sums in fused.items()}


def _low_and_span(ranked: list[tuple[str, float]]) -> tuple[float, float]:
    """What counts as 0 among what was retrieved, best first, and what the scores span."""
    high, low = ranked[0][1], ranked[-1][1]
    if high - low < _FLAT < low:  # one hit, or several alike: found is more than not found
        return low - 1.0, 1.0
    return low, max(high - low, _FLAT)


# ---- Which members, how often


@dataclass(frozen=True)
class GreedyChoice:
    """What a greedy choice came to.

    Attributes:
        weights: {member: how often it was chosen}, of those that were, the first chosen first.
        path: A round each: (member, the loss with it), the first of the best single member.
        single: {member: its loss by itself}, of all.
        queries: How many the losses are means over.
        left_out: Queries without a relevant document that a member retrieved, which no choice can change.
    """

    weights: dict[str, int]
    path: list[tuple[str, float]]
    single: dict[str, float]
    queries: int
    left_out: int


def choose_greedily(
    runs: Mapping[str, Run], qrels: Mapping[str, Mapping[str, int]], temperature: float, rounds: int
) -> GreedyChoice:
    """Choose members one by one, each as often as it helps, so that their mean scores tell relevant documents best.

    Each round takes the member whose addition lowers the loss most; one that is taken twice has weight 2. It ends
    where no addition lowers the loss, or after so many rounds. Equal losses go by the members' order.

    The loss is smooth, so that a few queries suffice: the mean over queries of the cross-entropy, in nats, of a
    query's relevant documents under the softmax of the mean of the members' normalised scores ÷ temperature, over all
    that any member retrieved.

    Args:
        runs: Of each member, {query: documents with scores, best first}.
        qrels: Of the queries to choose on; a grade of 0 or less is not relevant.
        temperature: > 0, for scores in [0, 1].
        rounds: At most, > 0.

    Raises:
        ColbertZeroError: No query has a relevant document that a member retrieved.

    Source: Caruana et al., "Ensemble selection from libraries of models", ICML 2004, section 2 and 2.1 (with
        replacement); cross-entropy as the objective: Mustafa et al., "Deep ensembles for low-data transfer learning",
        arXiv 2010.06866.

    Example:
        >>> runs = {"one": {"q": [("a", 2.0), ("b", 1.0), ("c", 0.0)]}, "two": {"q": [("b", 2.0), ("a", 0.0)]}}
        >>> choose_greedily(runs, {"q": {"b": 1}}, 0.1, 10).weights
        {'two': 1}
    """
    names, tables = list(runs), list[tuple[np.ndarray, np.ndarray]]()
    for query, grades in qrels.items():
        ids, scores = _candidates([run.get(query, []) for run in runs.values()])
        relevant = np.array([grades.get(document, 0) > 0 for document in ids], bool)
        if relevant.any():
            tables.append((scores, relevant))
    if not tables:
        raise ColbertZeroError("no query to choose on has a relevant document that a member retrieved")

    def loss(counts: np.ndarray) -> float:
        mean = counts / counts.sum()
        return math.fsum(_cross_entropy(mean @ scores / temperature, hit) for scores, hit in tables) / len(tables)

    ones = np.eye(len(names))
    single = [loss(one) for one in ones]
    counts, path = np.zeros(len(names)), list[tuple[str, float]]()
    for _ in range(rounds):
        losses = [loss(counts + one) for one in ones] if path else single
        best = int(np.argmin(losses))
        if path and losses[best] >= path[-1][1]:
            break
        counts = counts + ones[best]
        path.append((names[best], losses[best]))
    chosen = dict.fromkeys(name for name, _ in path)
    weights = {name: int(counts[names.index(name)]) for name in chosen}
    return GreedyChoice(weights, path, dict(zip(names, single, strict=True)), len(tables), len(qrels) - len(tables))


def _candidates(rankings: Sequence[list[tuple[str, float]]]) -> tuple[list[str], np.ndarray]:
    """All documents that were retrieved for a query, and each member's normalised scores, (members, documents)."""
    ids = list(dict.fromkeys(document for ranked in rankings for document, _ in ranked))
    place = {document: number for number, document in enumerate(ids)}
    scores: Any = np.zeros((len(rankings), len(ids)))
    for row, ranked in zip(scores, rankings, strict=True):
        if ranked:
            low, span = _low_and_span(ranked)
            row[[place[document] for document, _ in ranked]] = [(value - low) / span for _, value in ranked]
    return ids, scores


def _cross_entropy(logits: np.ndarray, relevant: np.ndarray) -> float:
    """Of the relevant candidates, each with the same share, under the softmax of the logits; in nats."""
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()) - logits[relevant].mean())
