"""A first stage: few candidates, found cheaply, which alone are then scored exactly. What it misses is not found.

    pooled   the documents whose mean vector is nearest to the mean of the query's
    bm25     the documents that BM25 ranks first; one that shares no term with the query is no candidate

Both come from what each segment keeps, so they are there as soon as a document is and need no rebuilding.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.models.bm25 import K1, B, terms_of
from colbert_zero.serving.index.manifest import Manifest
from colbert_zero.serving.index.searching import Chosen, Place, Ranking
from colbert_zero.serving.index.segments import Segment

_MEANS_AT_ONCE = 1 << 14


class FirstStage(NamedTuple):
    """What finds candidates, and how many.

    Attributes:
        kind: See above.
        candidates: Of a query; more, where several are equal to the last.
    """

    kind: Literal["pooled", "bm25"]
    candidates: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.candidates}"


def first_stage_of(word: str, manifest: Manifest) -> FirstStage:
    """A first stage as it is written, pooled:1000 or bm25:1000.

    Raises:
        ColbertZeroError: It is none, or not for such an index.
    """
    kind, _, count = word.partition(":")
    if kind not in ("pooled", "bm25") or not (count.isascii() and count.isdecimal() and 0 < int(count) < 2**31):
        raise ColbertZeroError(
            f"--first {short(word)}: write pooled:1000 or bm25:1000, with so many candidates a query"
        )
    if kind == "pooled" and not manifest.has_means:
        raise ColbertZeroError(
            f"--first {short(word)}: a dense index has one vector a document, nothing is pooled; leave it out, or take "
            f"bm25:{count}"
        )
    return FirstStage("pooled" if kind == "pooled" else "bm25", int(count))


def candidates(
    segments: Sequence[Segment], stage: FirstStage, query: str, vectors: Tensor, chosen: Chosen | None = None
) -> dict[str, np.ndarray]:
    """The documents to be scored of each segment, (documents,) bool, by its name.

    Args:
        segments: Opened.
        stage: What finds them.
        query: Text.
        vectors: Of the query, (tokens, dim).
        chosen: Which documents may be found; without it all that are not deleted.

    Raises:
        DamagedError: A segment's means are not finite, or its terms cannot be read.
    """
    allowed = [segment.found if chosen is None else segment.found & chosen(segment) for segment in segments]
    if stage.kind == "bm25":
        scores = bm25_scores(segments, query)
        allowed = [mask & (found > 0) for mask, found in zip(allowed, scores, strict=True)]
    else:
        scores = [mean_scores(segment, vectors) for segment in segments]
    together = np.concatenate([found[mask] for found, mask in zip(scores, allowed, strict=True)] or [np.zeros(0)])
    if len(together) > stage.candidates:
        cut = len(together) - stage.candidates
        least = np.partition(together, cut)[cut]
        allowed = [mask & (found >= least) for mask, found in zip(allowed, scores, strict=True)]
    return {segment.name: mask for segment, mask in zip(segments, allowed, strict=True)}


def bm25_ranking(segments: Sequence[Segment], query: str, depth: int, chosen: Chosen | None = None) -> Ranking:
    """The documents that BM25 ranks first, equal scores by id; those that share no term with the query are not there.

    Args:
        segments: Opened.
        query: Text.
        depth: Documents that are kept, > 0.
        chosen: Which documents may be found; without it all that are not deleted.

    Raises:
        DamagedError: A segment's terms or ids cannot be read.
    """
    rows: list[tuple[float, Segment, int]] = []
    for segment, scores in zip(segments, bm25_scores(segments, query), strict=True):
        mask = (scores > 0) & (segment.found if chosen is None else segment.found & chosen(segment))
        rows += [(float(scores[number]), segment, int(number)) for number in np.flatnonzero(mask)]
    least = sorted((row[0] for row in rows), reverse=True)[:depth][-1:]
    places = [(s, Place(segment.id_of(n), segment.name, n)) for s, segment, n in rows if [s] >= least]
    return sorted(places, key=lambda found: (-found[0], found[1]))[:depth]


def mean_scores(segment: Segment, vectors: Tensor) -> np.ndarray:
    """Dot product of each document's mean vector and a query's, (documents,) float32; not finite ones are 0."""
    mean = vectors.cpu().float().sum(0)
    mean /= mean.norm().clamp_min(1e-12)
    parts = torch.from_numpy(segment.means).split(_MEANS_AT_ONCE)
    scores: np.ndarray = torch.cat([part.float() @ mean for part in parts]).nan_to_num_().numpy()
    return scores


def bm25_scores(segments: Sequence[Segment], query: str) -> list[np.ndarray]:
    """BM25 of a query and every document.

    A document's weight needs the counts of all segments, so it is computed when a query comes. Deleted documents count
    until `compact`, as in Lucene. models/bm25 has the same formula for a corpus in memory.

    Args:
        segments: Opened.
        query: Text.

    Returns:
        Of each segment (documents,), float32; 0 where a document shares no term with the query.

    Raises:
        DamagedError: A segment's terms cannot be read.

    Source: Lucene's variant in Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020.
    """
    documents = sum(segment.entry.documents for segment in segments)
    mean_length = max(1, sum(segment.entry.terms for segment in segments)) / max(1, documents)
    scores = [np.zeros(segment.entry.documents, np.float32) for segment in segments]
    [terms] = terms_of([query])
    for term, times in Counter(terms).items():
        postings = [segment.postings(term) for segment in segments]
        having = sum(map(len, postings))
        idf = np.log(1 + (documents - having + 0.5) / (having + 0.5))
        for found, added in zip(postings, scores, strict=True):
            numbers, count, length = found.T
            saturated = count / (count + K1 * (1 - B + B * length / mean_length))
            added[numbers] += (times * idf * saturated).astype(np.float32)
    return scores
