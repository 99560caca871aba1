"""A reranker measured: what another ranked best for each query, ranked anew by scores of pairs."""

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np

from colbert_zero.data.collection import Collection
from colbert_zero.evaluation.runs import Run
from colbert_zero.processes import gather_objects, process_rank, world_size
from colbert_zero.teaching.scorers import Scorer
from colbert_zero.watch import stop_if_asked

_TOGETHER = 32
"""Queries whose candidates are scored in one call."""


def rerank(
    scorer: Scorer,
    collection: Collection,
    first: Run,
    most: int,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """The first documents of a run, of each query, in the order of a scorer's scores; its rest is left out.

    Several processes share out the queries; each returns the whole run.

    Args:
        scorer: Of pairs.
        collection: Its documents are read once; those that are ranked anew are held.
        first: What is ranked anew; all processes have it.
        most: Documents a query, at most, > 0.
        progress: Called with the queries done by all, about, and all.

    Returns:
        Every query of the run; equal scores by document id, ascending.
    """
    wanted = {document for ranked in first.values() for document, _ in ranked[:most]}
    texts = {document: text for document, text in collection.documents() if document in wanted}
    ids, numbers = list(texts), {document: number for number, document in enumerate(texts)}
    documents, done = list(texts.values()), 0
    found: Run = {}
    own = list(first)[process_rank() :: world_size()]
    for queries in _blocks(own, lambda query: len(first[query][:most])):
        stop_if_asked()
        candidates = np.array([[numbers[d] for d, _ in first[query][:most]] for query in queries], np.int64)
        scores = scorer.scores([collection.queries[query] for query in queries], candidates, documents)
        for query, row, of_row in zip(queries, candidates.tolist(), scores.tolist(), strict=True):
            pairs = zip((ids[number] for number in row), of_row, strict=True)
            found[query] = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
        done += len(queries)
        if progress:
            progress(min(done * world_size(), len(first)), len(first))
    found |= {query: [] for query in own if not first[query]}
    everyone = {query: ranked for of_one in gather_objects(found) for query, ranked in of_one.items()}
    return {query: everyone[query] for query in first}


def _blocks(queries: list[str], candidates: Callable[[str], int]) -> Iterator[list[str]]:
    """Queries of equally many candidates together, at most `_TOGETHER`; those without any are left out."""
    for count, some in groupby(sorted(queries, key=candidates), candidates):
        alike = list(some) if count else []
        for start in range(0, len(alike), _TOGETHER):
            yield alike[start : start + _TOGETHER]
