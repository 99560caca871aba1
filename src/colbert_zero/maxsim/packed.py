"""Token embeddings of several texts without padding, and the legend of dimensions.

Three texts of 3, 0 and 2 tokens, padded and packed:

    (texts, tokens, dim)          values (5, dim)    lengths (3,)
      a a a                         a a a b b          3 0 2
      . . .
      b b .                       starts (3,): 0 3 3

Dimensions, by the names that docstrings use:

    texts       queries or documents, whichever side is meant
    tokens      of one padded text; of all texts together once they are packed
    dim         of a token vector
    queries     queries of this process
    documents   documents that a query is scored with: of the batch, of all processes
    n_ways      candidates of a query
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EMPTY_DOCUMENT_SCORE = -1e9
"""Score of a document without tokens, as in sentence-transformers: below every real one, without gradient."""


class Spans(NamedTuple):
    """Texts whose tokens are rows of a table: text i has rows starts[i] ... starts[i] + lengths[i] - 1.

    Attributes:
        values: (rows, dim); may have rows that are nobody's.
        starts: (texts,), int64, on the CPU.
        lengths: (texts,), int64, on the CPU; 0 is allowed.
    """

    values: Tensor
    starts: Tensor
    lengths: Tensor


def row_starts(lengths: Tensor) -> Tensor:
    """(texts + 1,): row of each text's first token, and the number of rows."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def row_ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers starts[i] ... starts[i] + lengths[i] - 1 of every i, one after the other."""
    before = row_starts(lengths)
    return torch.repeat_interleave(starts - before[:-1], lengths) + torch.arange(int(before[-1]))


def padded(texts: Spans) -> tuple[Tensor, Tensor]:
    """Embeddings (texts, longest, dim), 0 where padded, and their mask, (texts, longest). Differentiable."""
    values, device = texts.values, texts.values.device
    if int(texts.lengths.sum()) != len(values):
        values = values[row_ranges(texts.starts, texts.lengths).to(device)]
    width = max(1, int(texts.lengths.max()))
    mask = torch.arange(width, device=device) < texts.lengths.to(device)[:, None]
    table = values.new_zeros(mask.numel(), values.shape[1])
    return table.index_copy(0, mask.flatten().nonzero().squeeze(1), values).unflatten(0, mask.shape), mask


class Packed(NamedTuple):
    """Token embeddings of several texts without padding.

    Attributes:
        values: Real tokens of all texts, in text order, (tokens, dim).
        lengths: Tokens of each text, (texts,), int64; 0 is allowed. They sum to `tokens`.
    """

    values: Tensor
    lengths: Tensor


def pack(embeddings: Tensor, mask: Tensor | None = None) -> Packed:
    """Keep the real tokens only. Differentiable.

    Args:
        embeddings: (texts, tokens, dim).
        mask: (texts, tokens), non-zero for a real token, in any pattern; without it all are real.

    Raises:
        ValueError: The shapes differ; names both.
    """
    texts, tokens, _ = embeddings.shape
    if mask is None:
        return Packed(embeddings.flatten(0, 1), torch.full((texts,), tokens, dtype=torch.int64))
    if mask.shape != (texts, tokens):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the embeddings {tuple(embeddings.shape)}")
    real = mask.bool().to(embeddings.device)
    rows = real.flatten().nonzero().squeeze(1)
    values = _TakeRows.apply(embeddings.flatten(0, 1), rows)  # type: ignore[no-untyped-call]
    return Packed(values, real.sum(1).cpu())


class _TakeRows(torch.autograd.Function):
    """`index_select` of distinct rows: its gradient is a copy, where PyTorch's adds row by row."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(ctx.shape).index_copy_(0, ctx.saved_tensors[0], gradient), None
