"""MaxSim on a CUDA device: Triton kernels over packed texts, nothing padded, no atomics.

A program scores a tile of query tokens, of many queries side by side, against the real tokens of a few documents; the
products live in registers. Inputs in bf16 and fp16 are multiplied as they are, with float32 sums; all others in exact
float32. The sums over a query's tokens follow in a second kernel, of as many documents at once as `SLICE_BYTES` holds.

The forward pass keeps nothing. At the temperatures of contrastive training nearly every pair's gradient is 0, so
the backward pass looks for the best tokens again, in tiles with a gradient only, and a program adds up the rows that
it owns, in a fixed order: results are bitwise repeatable. Of equal maxima the first token gets the gradient. Where
all pairs have a gradient, this costs one more forward pass than keeping the positions would.

Tile sizes keep the bf16 kernels in registers on Hopper (dim 128), by the compiler; no speed has been measured.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from colbert_zero.maxsim.cpu import position_type
from colbert_zero.maxsim.packed import EMPTY_DOCUMENT_SCORE, Spans

SLICE_BYTES = 1 << 30
"""Best values, or positions of best tokens, alive at once: those of a slice of the documents."""

TILE_ELEMENTS = {2: 1 << 13, 4: 1 << 12}
"""Elements of the document tiles that pass by, by bytes of an element; the tiles that a program holds have more."""

FLOAT32_PRECISION = "ieee"
"""How float32 inputs are multiplied; "tf32x3" would use the tensor cores."""

GROUP = 16
"""Documents for which one program keeps its query tokens."""

Places = tuple[Tensor, Tensor]
"""Starts and lengths of the texts of one side, on the CPU."""


def scores(queries: Spans, documents: Spans, n_ways: int = 0) -> Tensor:
    """MaxSim of all pairs, or of candidates.

    Args:
        queries: Query i + 1 follows query i without a gap; one without tokens scores 0.
        documents: One without tokens scores -1e9, without gradient; one with a value that is not finite scores NaN.
        n_ways: 0 for all pairs; else documents q * n_ways ... (q + 1) * n_ways - 1 are the candidates of query q.

    Returns:
        (queries, documents), or (queries, n_ways); float32, differentiable in both `values`.
    """
    sides = (queries.values, documents.values, queries[1:], documents[1:])
    found: Tensor = _Scores.apply(*sides, n_ways)  # type: ignore[no-untyped-call]
    return found


# Triton compiles what follows and has no types: a parameter is a pointer, a number, or, with tl.constexpr, a constant.


@triton.jit
def _any_weight(weights):  # type: ignore[no-untyped-def]
    return tl.max((weights != 0).to(tl.int32), 0) > 0


@triton.jit  # type: ignore[untyped-decorator]
def _best_tokens(  # type: ignore[no-untyped-def]
    out,  # (documents of the slice, width): best value or, if POSITIONS, its place in the document
    q_values,
    d_values,
    q_starts,
    q_lengths,
    d_starts,
    d_lengths,
    token_query,  # (query tokens,)
    weights,
    weight_stride_q,
    weight_stride_d,
    first_document,
    last_document,
    width,
    N_WAYS: tl.constexpr,
    POSITIONS: tl.constexpr,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * GROUP + first_document
    column = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    start = tl.zeros([], dtype=tl.int64)
    count = tl.zeros([], dtype=tl.int64) + width
    if N_WAYS:
        start += tl.load(q_starts + first // N_WAYS)
        count = tl.load(q_lengths + first // N_WAYS)
    inside = column < count
    tokens = start + column
    dims = tl.arange(0, DIM)
    q = tl.load(
        q_values + tokens[:, None] * dim + dims[None, :], mask=inside[:, None] & (dims < dim)[None, :], other=0.0
    )
    if POSITIONS:
        queries = tl.load(token_query + tokens, mask=inside, other=0)
    for i in range(0, GROUP):
        document = first + i
        real = document < last_document
        length = tl.load(d_lengths + document, mask=real, other=0).to(tl.int32)
        begin = tl.load(d_starts + document, mask=real, other=0)
        columns = tl.where(real, count, 0)
        if POSITIONS:
            at = queries * weight_stride_q + document * weight_stride_d
            weight = tl.load(weights + at, mask=column < columns, other=0.0)
            length = tl.where(_any_weight(weight), length, 0)
            columns = tl.where(length > 0, columns, 0)
        best = tl.full([BLOCK_Q], float("-inf"), dtype=tl.float32)
        position = tl.zeros([BLOCK_Q], dtype=tl.int32)
        for tile in range(0, length, BLOCK_D):
            # The last tile repeats the last token, which changes no maximum and needs no mask.
            rows = begin + tl.minimum(tile + tl.arange(0, BLOCK_D), length - 1)
            d = tl.load(d_values + rows[:, None] * dim + dims[None, :], mask=(dims < dim)[None, :], other=0.0)
            products = tl.dot(q, tl.trans(d), input_precision=PRECISION)
            if POSITIONS:
                tile_best, tile_position = tl.max(products, 1, return_indices=True)
                position = tl.where(tile_best > best, tile + tile_position, position)
            else:
                tile_best = tl.max(products, 1)
            best = tl.maximum(best, tile_best)
        places = out + (document - first_document) * width + column
        if POSITIONS:
            position = tl.minimum(position, length - 1)
            tl.store(places, position.to(out.dtype.element_ty), mask=column < columns)
        else:
            tl.store(places, best, mask=column < columns)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_tokens(  # type: ignore[no-untyped-def]
    out,  # scores, float32
    best,  # (documents of the slice, width)
    q_starts,
    q_lengths,
    stride_q,
    stride_d,
    first_document,
    last_document,
    width,
    N_WAYS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    document = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK) + first_document
    inside = document < last_document
    query = tl.zeros([BLOCK], dtype=tl.int64) + tl.program_id(0)
    begin = tl.load(q_starts + query)
    if N_WAYS:
        query = document // N_WAYS
        begin = tl.zeros([BLOCK], dtype=tl.int64)
    length = tl.load(q_lengths + query, mask=inside, other=0).to(tl.int32)
    rows = best + (document - first_document) * width + begin
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for tile in range(0, tl.max(length, 0), BLOCK_T):
        token = tile + tl.arange(0, BLOCK_T)
        part = tl.load(rows[:, None] + token[None, :], mask=token[None, :] < length[:, None], other=0.0)
        total += tl.sum(part, 1)
    tl.store(out + query * stride_q + document * stride_d, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _query_gradient(  # type: ignore[no-untyped-def]
    out,  # (query tokens, dim), float32, added to
    positions,  # (documents of the slice, width)
    d_values,
    q_starts,
    q_lengths,
    d_starts,
    d_lengths,
    weights,
    weight_stride_q,
    weight_stride_d,
    first_document,
    last_document,
    width,
    N_WAYS: tl.constexpr,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    start = tl.load(q_starts + query)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < tl.load(q_lengths + query)
    first = tl.zeros([], dtype=tl.int64) + first_document
    last = tl.zeros([], dtype=tl.int64) + last_document
    column = start + token
    if N_WAYS:
        first = tl.maximum(first, query * N_WAYS)
        last = tl.minimum(last, query * N_WAYS + N_WAYS)
        column = token.to(tl.int64)
    dims = tl.arange(0, DIM)
    mask = inside[:, None] & (dims < dim)[None, :]
    places = out + (start + token)[:, None] * dim + dims[None, :]
    total = tl.load(places, mask=mask, other=0.0)
    for block in range(0, (last - first).to(tl.int32), BLOCK_W):
        several = first + block + tl.arange(0, BLOCK_W)
        at = weights + query * weight_stride_q + several * weight_stride_d
        if _any_weight(tl.load(at, mask=several < last, other=0.0)):
            for i in range(0, BLOCK_W):
                document = first + block + i
                pair = weights + query * weight_stride_q + document * weight_stride_d
                weight = tl.load(pair, mask=document < last, other=0.0)
                length = tl.load(d_lengths + document, mask=document < last, other=0)
                if (weight != 0) & (length > 0):
                    best = tl.load(positions + (document - first_document) * width + column, mask=inside, other=0)
                    rows = tl.load(d_starts + document) + best
                    d = tl.load(d_values + rows[:, None] * dim + dims[None, :], mask=mask, other=0.0)
                    total += weight * d.to(tl.float32)
    tl.store(places, total, mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _document_gradient(  # type: ignore[no-untyped-def]
    out,  # (rows of documents, dim)
    positions,  # (documents of the slice, width)
    q_values,
    q_starts,
    q_lengths,
    d_starts,
    d_lengths,
    weights,
    weight_stride_q,
    weight_stride_d,
    first_document,
    queries,
    width,
    N_WAYS: tl.constexpr,
    dim: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    document = tl.program_id(0).to(tl.int64) + first_document
    length = tl.load(d_lengths + document)
    row = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if tl.program_id(1) * BLOCK_D >= length:
        return
    first = tl.zeros([], dtype=tl.int64)
    last = first + queries
    if N_WAYS:
        first += document // N_WAYS
        last = first + 1
    dims = tl.arange(0, DIM)
    total = tl.zeros([BLOCK_D, DIM], dtype=tl.float32)
    for block in range(0, (last - first).to(tl.int32), BLOCK_W):
        several = first + block + tl.arange(0, BLOCK_W)
        at = weights + several * weight_stride_q + document * weight_stride_d
        if _any_weight(tl.load(at, mask=several < last, other=0.0)):
            for i in range(0, BLOCK_W):
                query = first + block + i
                pair = weights + query * weight_stride_q + document * weight_stride_d
                weight = tl.load(pair, mask=query < last, other=0.0)
                if weight != 0:
                    start = tl.load(q_starts + query)
                    count = tl.load(q_lengths + query).to(tl.int32)
                    column = start
                    if N_WAYS:
                        column = tl.zeros([], dtype=tl.int64)
                    column += (document - first_document) * width
                    for tile in range(0, count, BLOCK_T):
                        token = tile + tl.arange(0, BLOCK_T)
                        inside = token < count
                        best = tl.load(positions + column + token, mask=inside, other=0).to(tl.int32)
                        mask = inside[:, None] & (dims < dim)[None, :]
                        q = tl.load(q_values + (start + token)[:, None] * dim + dims[None, :], mask=mask, other=0.0)
                        hit = (best[None, :] == row[:, None]) & inside[None, :]
                        # Ones and zeros are exact in any type; the weight is applied in float32.
                        total += weight * tl.dot(hit.to(q.dtype), q, input_precision=PRECISION)
    places = out + (tl.load(d_starts + document) + row)[:, None] * dim + dims[None, :]
    mask = (row < length)[:, None] & (dims < dim)[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=mask)


class _Batch:
    """Spans of both sides on the device, and the launches of the kernels over them.

    `width` is the query tokens that a document meets: all of them or, for candidates, at most the longest query's.
    """

    def __init__(self, queries: Spans, documents: Spans, n_ways: int):
        device, dims = queries.values.device, queries.values.shape[1]
        types = {queries.values.dtype, documents.values.dtype}
        dtype = types.pop() if types in ({torch.bfloat16}, {torch.float16}) else torch.float32
        self.q_values = queries.values.to(dtype).contiguous()
        self.d_values = documents.values.to(dtype).contiguous()
        self.q_starts, self.q_lengths, self.d_starts, self.d_lengths = (
            tensor.to(device) for tensor in (*queries[1:], *documents[1:])
        )
        self.token_query = torch.arange(len(queries.lengths)).repeat_interleave(queries.lengths).to(device)
        self.queries, self.documents, self.n_ways = len(queries.lengths), len(documents.lengths), n_ways
        self.q_longest = int(queries.lengths.max()) if self.queries else 0
        self.d_longest = int(documents.lengths.max()) if self.documents else 0
        self.width = self.q_longest if n_ways else len(queries.values)
        self.position_type = position_type(documents.lengths)
        self.dims = {"dim": dims, "DIM": max(16, triton.next_power_of_2(dims))}
        self.tile_rows = TILE_ELEMENTS[dtype.itemsize] // self.dims["DIM"]
        self.dot = {"PRECISION": FLOAT32_PRECISION, "num_warps": 8}
        self.shape = (self.queries, n_ways or self.documents)

    def strides(self, pairs: Tensor) -> tuple[int, int]:
        """Steps of (queries, documents) or (queries, n_ways) to the next query and to the next document."""
        return (0, 1) if self.n_ways else (pairs.stride(0), pairs.stride(1))

    def slices(self, itemsize: int) -> Iterator[tuple[int, int]]:
        """Ranges of documents whose `width` items take at most `SLICE_BYTES`; none if there is nothing to score."""
        if not self.width or not self.d_longest:
            return
        step = max(1, SLICE_BYTES // (self.width * itemsize))
        for first in range(0, self.documents, step):
            yield first, min(first + step, self.documents)

    def best_tokens(self, first: int, last: int, weights: Tensor | None) -> Tensor:
        """Best values, (last - first, width); with weights the positions of the best tokens where one is not 0."""
        dtype = torch.float32 if weights is None else self.position_type
        out = torch.empty(last - first, self.width, dtype=dtype, device=self.q_values.device)
        group = 1 if self.n_ways else GROUP
        held_tiles = 4 if self.q_values.itemsize == 2 else 2
        block_q = _block(self.width, held_tiles * self.tile_rows, 256)
        grid = (triton.cdiv(last - first, group), triton.cdiv(self.width, block_q))
        places = (self.q_starts, self.q_lengths, self.d_starts, self.d_lengths)
        pairs = (out, 0, 0) if weights is None else (weights, *self.strides(weights))
        _best_tokens[grid](
            *(out, self.q_values, self.d_values, *places, self.token_query, *pairs, first, last, self.width),
            **self.dims,
            N_WAYS=self.n_ways,
            POSITIONS=weights is not None,
            **self.dot,
            BLOCK_Q=block_q,
            BLOCK_D=_block(self.d_longest, self.tile_rows, 64),
            GROUP=group,
        )
        return out

    def score(self) -> Tensor:
        """Scores of all pairs or of candidates, see `scores`."""
        out = torch.zeros(self.shape, device=self.q_values.device)
        for first, last in self.slices(out.itemsize):
            best = self.best_tokens(first, last, None)
            grid = (1 if self.n_ways else self.queries, triton.cdiv(last - first, 32))
            places = (self.q_starts, self.q_lengths, *self.strides(out))
            blocks = {"BLOCK": 32, "BLOCK_T": 64}
            _sum_tokens[grid](out, best, *places, first, last, self.width, N_WAYS=self.n_ways, **blocks)
        by_document = out.view(1, -1) if self.n_ways else out
        # The kernels' maximum passes over NaN.
        by_document.masked_fill_(~_finite(self.d_values, self.d_starts, self.d_lengths), float("nan"))
        out.masked_fill_(~_finite(self.q_values, self.q_starts, self.q_lengths)[:, None], float("nan"))
        by_document.masked_fill_(self.d_lengths == 0, EMPTY_DOCUMENT_SCORE)
        return out

    def gradients(self, weights: Tensor, q_wanted: bool, d_wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of both sides' values, given the scores' gradient in float32."""
        q = torch.zeros_like(self.q_values, dtype=torch.float32) if q_wanted else None
        d = torch.zeros_like(self.d_values) if d_wanted else None
        places = (self.q_starts, self.q_lengths, self.d_starts, self.d_lengths)
        pairs = (weights, *self.strides(weights))
        block_t = _block(self.q_longest, self.tile_rows, 64)
        block_d = _block(self.d_longest, 2 * self.tile_rows, 128)
        same = {**self.dims, "N_WAYS": self.n_ways, "BLOCK_T": block_t}
        for first, last in self.slices(self.position_type.itemsize):
            positions = self.best_tokens(first, last, weights)
            if q is not None:
                grid = (self.queries, triton.cdiv(self.q_longest, block_t))
                arguments = (q, positions, self.d_values, *places, *pairs, first, last, self.width)
                _query_gradient[grid](*arguments, **same, BLOCK_W=_block(self.n_ways or self.documents, 128, 128))
            if d is not None:
                grid = (last - first, triton.cdiv(self.d_longest, block_d))
                arguments = (d, positions, self.q_values, *places, *pairs, first, self.queries, self.width)
                block_w = 1 if self.n_ways else _block(self.queries, 128, 128)
                _document_gradient[grid](*arguments, **same, **self.dot, BLOCK_W=block_w, BLOCK_D=block_d)
        return q, d


def _block(size: int, fitting: int, most: int) -> int:
    """A tile's rows: a power of two, at least 16 as a tensor core wants, no larger than needed."""
    needed: int = triton.next_power_of_2(max(size, 1))
    return max(16, min(needed, fitting, most))


def _finite(values: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """(texts,): whether all values of a text are finite."""
    broken = (~values.isfinite()).any(1).cumsum(0)
    broken = torch.cat([broken.new_zeros(1), broken])
    return broken[starts + lengths] == broken[starts]


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_values: Tensor, d_values: Tensor, q_places: Places, d_places: Places, n_ways: int
    ) -> Tensor:
        ctx.places, ctx.n_ways = (q_places, d_places), n_ways
        ctx.save_for_backward(q_values, d_values)
        with torch.cuda.device_of(q_values):
            return _Batch(Spans(q_values, *q_places), Spans(d_values, *d_places), n_ways).score()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q_values, d_values = ctx.saved_tensors
        gradient = gradient.float().contiguous() if ctx.n_ways else gradient.float()
        with torch.cuda.device_of(q_values):
            batch = _Batch(Spans(q_values, *ctx.places[0]), Spans(d_values, *ctx.places[1]), ctx.n_ways)
            q, d = batch.gradients(gradient, *ctx.needs_input_grad[:2])
        return (
            None if q is None else q.to(q_values.dtype),
            None if d is None else d.to(d_values.dtype),
            None,
            None,
            None,
        )
