"""Exact search in opened segments: MaxSim of every query with every document, block by block.

Memory holds a block's scores, and each query's best so far; the vectors are read where they lie. Where they are more
than `Memory` allows, the pages of a block are let go once it is scored.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from colbert_zero.evaluation.ranking import keep_best
from colbert_zero.maxsim.cpu import HOLES
from colbert_zero.maxsim.packed import Packed, Spans
from colbert_zero.maxsim.scores import scaled_scores, span_scores
from colbert_zero.serving.index.segments import DamagedError, Segment, ranges

BLOCK_TOKENS = 1 << 17
"""Vectors of a block of documents; one longer document is a block of its own."""

_QUERIES_AT_ONCE = 2048


class Place(NamedTuple):
    """A document, and where it is kept. Equal scores are sorted by its id."""

    id: str
    segment: str
    number: int


Ranking = list[tuple[float, Place]]
"""(score, document), best first."""

Chosen = Callable[[Segment], np.ndarray]
"""(documents,) bool: those of a segment that may be found."""


def best_documents(
    segments: Sequence[Segment],
    queries: Packed,
    depth: int,
    chosen: Chosen | None = None,
    release: bool = False,
    block_tokens: int = BLOCK_TOKENS,
) -> list[Ranking]:
    """The best documents of each query, equal scores by document id, ascending.

    Args:
        segments: Opened.
        queries: Packed token embeddings; where they are, scores are computed.
        depth: Documents a query keeps, > 0.
        chosen: Which documents may be found; without it all that are not deleted.
        release: Let the memory of a block go once it is scored.
        block_tokens: Vectors of a block.

    Raises:
        DamagedError: A segment has scores that are not finite, or passages or ids that cannot be read.
    """
    starts = np.concatenate([[0], np.cumsum(queries.lengths.numpy())])
    rankings: list[Ranking] = []
    for first in range(0, len(queries.lengths), _QUERIES_AT_ONCE):
        lengths = queries.lengths[first : first + _QUERIES_AT_ONCE]
        some = Packed(queries.values[starts[first] : starts[first + len(lengths)]], lengths)
        best: list[list[tuple[float, Place]]] = [[] for _ in lengths]
        for segment in segments:
            mask = segment.found if chosen is None else segment.found & chosen(segment)
            for numbers in _blocks(segment, np.flatnonzero(mask), block_tokens):
                keep_best(best, _scores(segment, some, numbers), _id_of(segment, numbers), depth)
                if release:
                    rows = segment.starts[segment.first_passages[[numbers[0], numbers[-1] + 1]]]
                    segment.release(int(rows[0]), int(rows[1]))
        rankings += [[(-negative, place) for negative, place in found] for found in best]
    return rankings


def _id_of(segment: Segment, numbers: np.ndarray) -> Callable[[int], Place]:
    """The documents of a block's columns; an id is read when it is asked for."""

    @cache
    def place(column: int) -> Place:
        number = int(numbers[column])
        return Place(segment.id_of(number), segment.name, number)

    return place


def _blocks(segment: Segment, numbers: np.ndarray, block_tokens: int) -> Iterator[np.ndarray]:
    """These documents of a segment, so many vectors at a time, or one document."""
    rows = segment.starts[segment.first_passages]
    ends = np.cumsum(rows[numbers + 1] - rows[numbers])
    begin = 0
    while begin < len(numbers):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + block_tokens, side="right")))
        yield numbers[begin:end]
        begin = end


def _scores(segment: Segment, queries: Packed, numbers: np.ndarray) -> np.ndarray:
    """Scores of a block's documents, which all have vectors, (queries, documents), each by its best passage."""
    first, last = segment.first_passages[numbers], segment.first_passages[numbers + 1]
    passages = ranges(first, last - first)
    passages = passages[segment.passages.lengths[passages] > 0]
    owners = segment.passages.documents[passages]
    starts, lengths = segment.starts[passages], segment.passages.lengths[passages].astype(np.int64)
    row, after = int(starts[0]), int(starts[-1] + lengths[-1])
    device, near = queries.values.device, after - row <= HOLES * lengths.sum()
    rows, starts = (
        (slice(row, after), starts - row) if near else (ranges(starts, lengths), np.cumsum(lengths) - lengths)
    )
    values, scales = segment.stored(rows)
    values = values.to(device)
    if device.type != "cpu" and scales is None:
        values = values.float()
    documents = Spans(values, torch.from_numpy(starts), torch.from_numpy(lengths))
    with torch.no_grad():
        if scales is None:
            found = span_scores(queries, documents)
        else:
            found = scaled_scores(queries, documents, scales.to(device))
    scores = found.cpu().numpy()
    if not np.isfinite(scores).all():
        raise DamagedError(segment.name, "it has vectors that are not finite")
    groups = np.flatnonzero(np.diff(owners, prepend=-1))
    if len(groups) == len(owners):
        return scores
    best: np.ndarray = np.maximum.reduceat(scores, groups, axis=1)
    return best
