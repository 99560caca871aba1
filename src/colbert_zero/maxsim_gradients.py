"""Texts as rows of a table, and MaxSim's gradients gathered by row.

A hit is a query token together with the row of its best document token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

EMPTY_DOCUMENT_SCORE = -1e9
"""Score of a document without tokens, as in sentence-transformers: below every real one, without gradient."""


class Texts(NamedTuple):
    """Texts whose tokens are rows of a table: text i has rows starts[i] ... starts[i] + lengths[i] - 1."""

    values: Tensor
    starts: Tensor
    lengths: Tensor


def position_type(lengths: Tensor) -> torch.dtype:
    """Smallest type that holds the position of every token."""
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.uint8 if longest <= 1 << 8 else torch.int16 if longest <= 1 << 15 else torch.int32


def row_starts(lengths: Tensor) -> Tensor:
    """(texts + 1,): row of each text's first token, and the number of rows."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def row_ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers starts[i] ... starts[i] + lengths[i] - 1 of every i, one after the other."""
    before = row_starts(lengths)
    return torch.repeat_interleave(starts - before[:-1], lengths) + torch.arange(int(before[-1]))


def bag(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted sums of ranges of `table[rows]`, range i from offsets[i] to offsets[i + 1]; 0 if empty."""
    offsets = offsets.to(table.device)
    return torch.embedding_bag(table, rows, offsets, False, 0, False, weights, include_last_offset=True)[0]


def _add_rows(gradient: Tensor, targets: Tensor, sources: Tensor, weights: Tensor, table: Tensor) -> None:
    """gradient[targets[h]] += weights[h] * table[sources[h]] of every hit h, in a fixed order."""
    if not len(targets):
        return
    bits = len(targets).bit_length()
    keys = (targets << bits) | torch.arange(len(targets), device=targets.device)
    if keys.is_cuda:
        keys = keys.sort().values
    else:
        keys.numpy().sort()  # vectorised, unlike torch's
    hits = keys & ((1 << bits) - 1)
    rows, counts = torch.unique_consecutive(keys >> bits, return_counts=True)
    gradient[rows] += bag(table, sources[hits], row_starts(counts), weights[hits])


class Gradients:
    """Gradients of both sides, gathered from hits: query token, row of its best document token, weight."""

    def __init__(self, queries: Texts, documents: Texts, wanted: tuple[bool, bool], chunk_hits: int):
        self.queries, self.documents, self.chunk_hits = queries, documents, chunk_hits
        self.q_values, self.d_values = queries.values.float(), documents.values.float()
        self.q = torch.zeros_like(self.q_values) if wanted[0] else None
        self.d = torch.zeros_like(self.d_values) if wanted[1] else None
        self.q_starts, self.d_starts = row_starts(queries.lengths), documents.starts

    def add_listed(self, pair_q: Tensor, pair_d: Tensor, weights: Tensor, hits: Tensor) -> None:
        """Pairs with their gradients, and the hits of all their query tokens."""
        lengths = self.queries.lengths[pair_q]
        q_rows = row_ranges(self.q_starts[pair_q], lengths).to(hits.device)
        weights = torch.repeat_interleave(weights, lengths.to(hits.device))
        if self.q is not None:
            _add_rows(self.q, q_rows, hits, weights, self.d_values)
        if self.d is not None:
            _add_rows(self.d, hits, q_rows, weights, self.q_values)

    def add_all(self, first: int, weights: Tensor, kept: Tensor) -> None:
        """Queries from `first` with every document: gradients (queries, documents), kept positions."""
        lengths = self.queries.lengths[first : first + len(weights)]
        begin, width = int(self.q_starts[first]), int(lengths.sum())
        texts = self.documents.lengths.nonzero().squeeze(1)
        repeats = lengths.to(weights.device)
        for part in texts.split(max(1, self.chunk_hits // max(width, 1))):
            part = part.to(kept.device)
            starts = self.d_starts.to(kept.device)[part]
            hits = (kept[part].T.long() + starts).flatten()
            hit_weights = weights[:, part].repeat_interleave(repeats, 0).flatten()
            offsets = torch.arange(width + 1) * len(part)
            if self.q is not None:
                self.q[begin : begin + width] += bag(self.d_values, hits, offsets, hit_weights)
            if self.d is not None:
                q_rows = torch.arange(begin, begin + width, device=hits.device).repeat_interleave(len(part))
                _add_rows(self.d, hits, q_rows, hit_weights, self.q_values)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """In the inputs' types."""
        q = None if self.q is None else self.q.to(self.queries.values.dtype)
        return q, None if self.d is None else self.d.to(self.documents.values.dtype)
