"""Passes over a corpus: each query's best documents, and the scores of pairs that are asked for, in bounded memory.

    queries      in groups of 32,768, one group after the other: their embeddings are in memory
    documents    in blocks of at most 4,096 documents or a million characters: so are these embeddings
    kept         of a query its best documents, and the scores of its pairs; nothing else

Several processes share out the blocks of a group (of BM25, whose index each holds, the queries). What a group or a
block is does not depend on who works on it, nor do the results: the best of all are the best of each one's best. Every
half minute a process writes down what it has; a run after it was killed goes on from there, with any number of
processes.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import embed
from colbert_zero.files import atomic_file
from colbert_zero.maxsim.packed import Packed, row_starts
from colbert_zero.maxsim.scores import packed_scores
from colbert_zero.models.bm25 import Bm25
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.processes import from_main, gather_objects, is_main, process_rank, world_size
from colbert_zero.teaching.inputs import Inputs
from colbert_zero.watch import stop_if_asked

QUERIES_SCORED_AT_ONCE = 2048
"""With a block of documents they make a table of scores of 32 MB."""

BM25_QUERIES = 1024

SAVE_SECONDS = 30.0

Advance = Callable[[], None]
"""Called after each block of a group, or each share of its queries."""

NOBODY = np.iinfo(np.int64).min
"""The key of no document, below all others."""

_LAST = 0xFFFFFFFF


class Found(NamedTuple):
    """What a pass found for a group of queries.

    Attributes:
        keys: The best documents of each, best first, (queries, depth), int64: see `to_keys`.
        scores: Of the wanted pairs, (pairs,), float32.
    """

    keys: np.ndarray
    scores: np.ndarray


class Pass(Protocol):
    """Finds the best documents of a group of queries, and scores the wanted pairs."""

    def __call__(self, queries: tuple[int, int], depth: int, wanted: np.ndarray, file: Path, advance: Advance) -> Found:
        """What is found, in every process.

        Args:
            queries: The group: its first query, and the one after its last.
            depth: Documents that a query keeps; 0 for a judge alone.
            wanted: A query's place in the group and a document, (pairs, 2), int64, sorted by document.
            file: Beside it the state of a killed run is kept.
            advance: Called after each block of documents, or of queries.
        """


def to_keys(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """One integer a document that sorts by its score, equal scores by its number, the first one highest.

    Args:
        scores: float32, any shape.
        documents: Their numbers, below 2 ** 32, of the same shape or broadcast to it.

    Returns:
        int64, all different within a query.

    Example:
        >>> keys = to_keys(np.float32([0.5, -1, 0.5]), np.array([7, 8, 3]))
        >>> of_keys(np.sort(keys)[::-1])[0].tolist()
        [3, 7, 8]
    """
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # the bits of floats, made to sort like the floats
    keys: np.ndarray = (ordered << 32) + (_LAST - documents)
    return keys


def of_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents and scores that these keys are made of."""
    ordered = keys >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return _LAST - (keys & _LAST), bits.view(np.float32)


def best(keys: np.ndarray, depth: int) -> np.ndarray:
    """The highest keys of each row, unsorted, (queries, depth)."""
    if keys.shape[1] <= depth:
        return keys
    cut = keys.shape[1] - depth
    kept: np.ndarray = np.partition(keys, cut, axis=1)[:, cut:] if depth else keys[:, :0]
    return kept


def _sorted(keys: np.ndarray) -> np.ndarray:
    """Each row's keys, best first."""
    return np.sort(keys, axis=1)[:, ::-1]


# ---- BM25


def by_bm25(inputs: Inputs, index: Callable[[], Bm25]) -> Pass:
    """A scorer by BM25. Documents that share no term with the query are not found."""

    def find(queries: tuple[int, int], depth: int, wanted: np.ndarray, file: Path, advance: Advance) -> Found:
        bm25, (first, end) = index(), queries
        own: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for number, start in enumerate(range(first, end, BM25_QUERIES)):
            stop_if_asked()
            if number % world_size() == process_rank():
                texts = inputs.query_texts(start, min(start + BM25_QUERIES, end))
                keys = np.full((len(texts), depth), NOBODY)
                if depth:
                    documents, scores = bm25.top(texts, depth)
                    mined = (scores > 0) & (documents < inputs.corpus_size)
                    keys[:, : documents.shape[1]] = np.where(mined, to_keys(scores, documents), NOBODY)
                places = wanted[:, 0] + first - start
                pairs = np.flatnonzero((places >= 0) & (places < len(texts)))
                asked = [texts[place] for place in places[pairs]]
                own[start] = keys, pairs, bm25.score_pairs(asked, wanted[pairs, 1:]).reshape(-1)
            advance()
        parts = {start: found for each in gather_objects(own) for start, found in each.items()}
        scores = np.empty(len(wanted), np.float32)
        for _, pairs, found in parts.values():
            scores[pairs] = found
        keys = np.concatenate([parts[start][0] for start in sorted(parts)])
        return Found(_sorted(keys), scores)

    return find


# ---- Models


def by_model(inputs: Inputs, load: Callable[[], Encoder], whose: str) -> Pass:
    """A scorer by a dense or multi-vector model; one that keeps no best encodes wanted documents alone."""

    def find(queries: tuple[int, int], depth: int, wanted: np.ndarray, file: Path, advance: Advance) -> Found:
        count, blocks = queries[1] - queries[0], len(inputs.blocks) - 1
        nothing = _State(
            np.full((count, depth), NOBODY), np.full(len(wanted), np.nan, np.float32), np.zeros(blocks, bool)
        )
        state = from_main(_resumed(file, nothing) if is_main() else None)
        left = np.flatnonzero(~state.done)
        for _ in range(blocks - len(left)):
            advance()
        own, saved = nothing.copy(), time.monotonic()
        embedded = list(_slices(embed(load(), inputs.query_texts(*queries), "query"))) if len(left) else []
        for number, block in enumerate(left):
            stop_if_asked()
            if number % world_size() == process_rank():
                _score_block(load(), inputs, embedded, int(block), depth, wanted, own, whose)
                if time.monotonic() - saved > SAVE_SECONDS:
                    own.write(file.with_suffix(f".process-{process_rank()}.npz"))
                    saved = time.monotonic()
            advance()
        for each in gather_objects(own):
            state = state.with_(each)
        return Found(_sorted(state.keys), state.scores)

    return find


def _resumed(file: Path, nothing: "_State") -> "_State":
    """What the processes of a run before had written down; from now on it is the main process's."""
    merged = file.with_suffix(".merged.npz")
    state = _State.read(merged) if merged.is_file() else nothing
    others = sorted(file.parent.glob(f"{file.stem}.process-*.npz"))
    for other in others:
        state = state.with_(_State.read(other))
    if others:
        state.write(merged)
    for other in others:
        other.unlink()
    return state


class _State(NamedTuple):
    """What is found so far: the best documents, scores of wanted pairs (NaN where not yet), and blocks done."""

    keys: np.ndarray
    scores: np.ndarray
    done: np.ndarray

    def copy(self) -> "_State":
        return _State(*(array.copy() for array in self))

    def with_(self, other: "_State") -> "_State":
        """Both together. One of whose blocks some are here already was merged before a run was killed."""
        if (other.done & self.done).any():
            return self
        keys = best(np.concatenate([self.keys, other.keys], axis=1), self.keys.shape[1])
        return _State(
            keys, np.where(np.isnan(self.scores), other.scores, self.scores).astype(np.float32), self.done | other.done
        )

    def write(self, path: Path) -> None:
        with atomic_file(path, "wb") as file:
            np.savez(file, **self._asdict())

    @classmethod
    def read(cls, path: Path) -> "_State":
        with np.load(path) as arrays:
            return cls(*(arrays[name] for name in cls._fields))


def _slices(queries: Packed) -> Iterator[tuple[int, Packed]]:
    """Packed queries, so many at a time as are scored at once, each with the number of its first."""
    starts = row_starts(queries.lengths)
    for first in range(0, len(queries.lengths), QUERIES_SCORED_AT_ONCE):
        lengths = queries.lengths[first : first + QUERIES_SCORED_AT_ONCE]
        yield first, Packed(queries.values[starts[first] : starts[first + len(lengths)]], lengths)


def _score_block(
    model: Encoder,
    inputs: Inputs,
    queries: list[tuple[int, Packed]],
    block: int,
    depth: int,
    wanted: np.ndarray,
    state: _State,
    whose: str,
) -> None:
    """Score a block of documents with all queries of the group, and keep what counts in `state`."""
    first, end = (int(n) for n in inputs.blocks[block : block + 2])
    here = slice(*np.searchsorted(wanted[:, 1], [first, end]))
    pairs = wanted[here]
    numbers = np.arange(first, end) if depth else np.unique(pairs[:, 1])
    state.done[block] = True
    if not len(numbers):
        return
    documents = embed(model, inputs.document_texts(numbers), "document")
    for start, some in queries:
        with torch.no_grad():
            scores = packed_scores(some, documents).float().cpu().numpy()
        if not np.isfinite(scores).all():
            raise ColbertZeroError(
                f"{whose}: gives scores that are not finite (documents {first + 1:,} to {end:,} of the corpus); its "
                "training has diverged, name another model"
            )
        rows = slice(start, start + len(scores))
        if depth:
            # Documents after the corpus are positives alone.
            mined = int(np.searchsorted(numbers, inputs.corpus_size))
            keys = to_keys(scores[:, :mined], numbers[:mined])
            state.keys[rows] = best(np.concatenate([state.keys[rows], best(keys, depth)], axis=1), depth)
        mine = np.flatnonzero((pairs[:, 0] >= start) & (pairs[:, 0] < rows.stop))
        columns = np.searchsorted(numbers, pairs[mine, 1])
        state.scores[here.start + mine] = scores[pairs[mine, 0] - start, columns]
