"""MaxSim in PyTorch: the backend "torch", which a CPU always takes, and a GPU without Triton.

Texts are packed, so no product is spent on padding. Documents are sorted by length and scored in blocks of
at most `BLOCK_ELEMENTS` products; there a short document repeats its last token, which changes no maximum
and needs no mask. The forward pass keeps, for each query token and document, the position of the best token
(one byte up to 256 tokens), so that the gradient only gathers rows, of pairs whose incoming gradient is not
0. Where these positions exceed `KEPT_BYTES` nothing is kept, and the backward pass scores those pairs again.

Where no gradient is wanted and documents lie one behind the other, as in an index, nothing is sorted: a block of rows
is converted and multiplied where it lies; what is gathered for the maxima are products, fewer numbers than the vectors.

Products and sums are float32 whatever the input. Of equal maxima the first token gets the gradient. Results
are bitwise repeatable on a CPU. Peak memory above inputs, scores and gradients: 8 MiB of products, the
positions (at most 256 MiB) and, in the backward pass, some 20 MiB of indices; there half-precision inputs add
a float32 copy. On other devices blocks and what is kept may be 64 times as large, to keep the device busy.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from colbert_zero.maxsim.packed import EMPTY_DOCUMENT_SCORE, Spans, row_ranges, row_starts


def scores(queries: Spans, documents: Spans, n_ways: int = 0) -> Tensor:
    """MaxSim of all pairs, or of candidates.

    Args:
        queries: Query i + 1 follows query i without a gap; one without tokens scores 0.
        documents: One without tokens scores -1e9, without gradient.
        n_ways: 0 for all pairs; else documents q * n_ways ... (q + 1) * n_ways - 1 are the candidates of query q.

    Returns:
        (queries, documents), or (queries, n_ways); float32, differentiable in both `values`.
    """
    sides = (queries.values, documents.values, queries[1:], documents[1:])
    if n_ways:
        listed: Tensor = Candidates.apply(*sides)  # type: ignore[no-untyped-call]
        return listed.view(len(queries.lengths), n_ways)
    found: Tensor = AllPairs.apply(*sides)  # type: ignore[no-untyped-call]
    return found


def position_type(lengths: Tensor) -> torch.dtype:
    """Smallest type that holds the position of every token."""
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.uint8 if longest <= 1 << 8 else torch.int16 if longest <= 1 << 15 else torch.int32


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

    def __init__(self, queries: Spans, documents: Spans, wanted: tuple[bool, bool], chunk_hits: int):
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
        for part in torch.split(texts, max(1, self.chunk_hits // max(width, 1))):
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


BLOCK_ELEMENTS = 1 << 21
"""Token products alive at once (float32): small enough for the caches of a CPU; elsewhere 64 times as many."""

BLOCK_NUMBERS = 1 << 19
"""Numbers of document tokens that are multiplied at once: their float32 copy stays in a CPU's cache too."""

BLOCK_PRODUCTS = 1 << 19
"""Token products alive at once where no gradient is wanted, so that their maxima are found in a cache."""

EVEN_COLUMNS = 64
"""Query tokens that are multiplied at once are a multiple of this, where they are more: MKL writes rows of 4,096
products 1.7 times as fast as rows of 4,089."""

HOLES = 2
"""Times as many rows as documents have may lie between the first and the last, for a block to be multiplied whole."""

KEPT_BYTES = 1 << 28
"""Most memory the forward pass may keep for the backward pass beside its inputs; elsewhere 64 times as much."""

CHUNK_HITS = 1 << 18
"""(query token, best document token) pairs whose gradient is gathered at once."""

SPARSE = 0.25
"""Share of pairs with a gradient under which listing them costs less than gathering for all."""


def _best_tokens(products: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over dim 1 of (documents, d_tokens, q_tokens), and its position, the first of equals.

    A max-pool over channels-last memory is PyTorch's one vectorised arg-max on a CPU: 8 × faster than `max`.
    """
    image = products.unsqueeze(2).permute(0, 3, 1, 2)
    best, position = torch.ops.aten.max_pool2d_with_indices(image, [products.shape[1], 1])
    return best.flatten(1), position.flatten(1)


def _blocks(lengths: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of ascending lengths, at most `limit` rows once padded; at least one text each."""
    begin = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - begin) * lengths[end] > limit:
            yield begin, end
            begin = end


def _chunks(lengths: Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of texts of at most `limit` tokens together; at least one text each."""
    begin = total = 0
    for index, length in enumerate(lengths.tolist()):
        if total + length > limit and index > begin:
            yield begin, index
            begin, total = index, 0
        total += length
    if begin < len(lengths):
        yield begin, len(lengths)


def _padded(starts: Tensor, lengths: Tensor) -> Tensor:
    """(texts, longest): rows of each text, its last row repeated up to the longest."""
    return starts[:, None] + torch.minimum(torch.arange(int(lengths.max())), lengths[:, None] - 1)


def _on(device: torch.device, size: int) -> int:
    """A size chosen for the caches of a CPU, for this device: a GPU needs larger blocks to be busy."""
    return size if device.type == "cpu" else size << 6


def _score_all(queries: Spans, documents: Spans, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Scores of all pairs and, to keep, the position of the best token, (documents, query tokens)."""
    device, limit = queries.values.device, _on(queries.values.device, BLOCK_ELEMENTS)
    q_values = queries.values.float()
    q_starts, d_starts = row_starts(queries.lengths), documents.starts
    lengths, order = documents.lengths.sort(stable=True)
    empty = int((lengths == 0).sum())
    # In the documents' ascending order of length; put in their own order at the end, at once.
    by_length = torch.full((len(queries.lengths), len(order)), EMPTY_DOCUMENT_SCORE, device=device)
    kept_shape = (len(order), len(q_values)) if keep else (0, 0)
    kept = torch.zeros(kept_shape, dtype=position_type(lengths), device=device)
    # The same memory for every block: fresh pages would take as long to get as to fill.
    products, gathered, converted = q_values.new_empty(0), documents.values.new_empty(0), q_values.new_empty(0)
    rows_at_once = limit // min(max(len(q_values), 1), 1024)
    if not keep:
        limit = min(limit, _on(device, BLOCK_PRODUCTS))
        rows_at_once = min(rows_at_once, _on(device, BLOCK_NUMBERS) // max(q_values.shape[1], 1))
    for begin, end in _blocks(lengths[empty:].tolist(), rows_at_once):
        texts = order[empty + begin : empty + end]
        rows = _padded(d_starts[texts], documents.lengths[texts])
        shape = rows.numel(), q_values.shape[1]
        tokens = torch.index_select(documents.values, 0, rows.flatten().to(device), out=gathered.resize_(shape))
        tokens = tokens if tokens.dtype == torch.float32 else converted.resize_(shape).copy_(tokens)
        last_position = (documents.lengths[texts, None] - 1).to(device)
        texts = texts.to(device)
        for first, last in _chunks(queries.lengths, limit // len(tokens)):
            a, b = int(q_starts[first]), int(q_starts[last])
            if a == b:
                by_length[first:last, empty + begin : empty + end] = 0
                continue
            query = _columns(q_values[a:b])
            torch.mm(tokens, query, out=products.resize_(len(tokens), query.shape[1]))
            blocked = products.view(*rows.shape, query.shape[1])
            best, position = _best_tokens(blocked) if keep else (blocked.amax(1), None)
            best = best[:, : b - a]
            every = torch.arange(b - a, device=device)
            summed = bag(best.T.contiguous(), every, q_starts[first : last + 1] - a)
            by_length[first:last, empty + begin : empty + end] = summed
            if position is not None:
                kept[texts, a:b] = torch.minimum(position[:, : b - a], last_position).to(kept.dtype)
    scores = torch.empty_like(by_length).index_copy_(1, order.to(device), by_length)
    return scores, kept if keep else None


def in_order(documents: Spans) -> bool:
    """Whether documents stand one behind the other, with few rows between them that are nobody's."""
    starts, lengths = documents.starts, documents.lengths
    used = int(lengths.sum())
    if used == 0 or bool((starts[1:] < starts[:-1] + lengths[:-1]).any()):
        return False
    return int(starts[-1] + lengths[-1] - starts[0]) <= HOLES * used


class _Range(NamedTuple):
    """Documents begin ... end - 1 in order, their rows, the longest one's tokens, and whether all have as many."""

    begin: int
    end: int
    rows: slice
    longest: int
    even: bool


def _ranges(documents: Spans, rows_at_once: int) -> Iterator[_Range]:
    """Ranges of documents in order, at most so many rows together and twice as many padded; at least one each."""
    starts, lengths = documents.starts.tolist(), documents.lengths.tolist()
    begin = longest = used = 0
    for place, (start, length) in enumerate(zip([*starts, None], [*lengths, 0], strict=True)):
        last = start is None or start + length - starts[begin] > rows_at_once
        if place > begin and (last or (place + 1 - begin) * max(longest, length) > 2 * rows_at_once):
            rows = slice(starts[begin], starts[place - 1] + lengths[place - 1])
            even = used == rows.stop - rows.start == longest * (place - begin)
            yield _Range(begin, place, rows, longest, even)
            begin, longest, used = place, 0, 0
        longest, used = max(longest, length), used + length


def score_in_order(queries: Spans, documents: Spans, scales: Tensor | None = None) -> Tensor:
    """Scores of all pairs, where documents stand one behind the other (`in_order`), on a CPU.

    Args:
        queries: As for `scores`.
        documents: Of any type; put into float32 block by block.
        scales: Of each row, (rows,): products are multiplied by these.
    """
    q_values, q_starts = queries.values.float(), row_starts(queries.lengths)
    count_of_all, real = len(documents.lengths), documents.lengths.nonzero().squeeze(1)
    documents = Spans(documents.values, documents.starts[real], documents.lengths[real])
    scores = torch.zeros(len(queries.lengths), len(real))
    columns, dim = min(max(len(q_values), 1), 1024), max(q_values.shape[1], 1)
    rows_at_once = max(1, min(BLOCK_PRODUCTS // columns, BLOCK_NUMBERS // dim))
    parts: list[tuple[slice, Tensor, Tensor, Tensor]] = []
    most_rows = max([rows_at_once, *documents.lengths.tolist()])
    for first, last in _chunks(queries.lengths, BLOCK_ELEMENTS // most_rows):
        starts = q_starts[first : last + 1] - q_starts[first]
        tokens = q_values[int(q_starts[first]) : int(q_starts[last])]
        if len(tokens):
            parts.append((slice(first, last), _columns(tokens), torch.arange(len(tokens)), starts))
    # The same memory for every block: fresh pages would take as long to get as to fill.
    products, gathered, converted = q_values.new_empty(0), q_values.new_empty(0), q_values.new_empty(0)
    for block in _ranges(documents, rows_at_once):
        here, count = slice(block.begin, block.end), block.end - block.begin
        tokens = documents.values[block.rows]
        tokens = tokens if tokens.dtype == torch.float32 else converted.resize_(tokens.shape).copy_(tokens)
        rows = None if block.even else _padded(documents.starts[here] - block.rows.start, documents.lengths[here])
        for some, query, every, starts in parts:
            torch.mm(tokens, query, out=products.resize_(len(tokens), query.shape[1]))
            if scales is not None:
                products.mul_(scales[block.rows, None])
            padded = products if rows is None else _rows_of(products, rows.flatten(), gathered)
            best = padded.view(count, block.longest, query.shape[1]).amax(1)[:, : len(every)]
            scores[some, here] = best.sum(1) if len(starts) == 2 else bag(best.T.contiguous(), every, starts)
    if len(real) == count_of_all:
        return scores
    with_empty = torch.full((len(scores), count_of_all), EMPTY_DOCUMENT_SCORE)
    with_empty[:, real] = scores
    return with_empty


def _columns(tokens: Tensor) -> Tensor:
    """Query tokens as columns, (dim, tokens), behind them columns of zeros up to an even number (`EVEN_COLUMNS`)."""
    padding = -len(tokens) % EVEN_COLUMNS if len(tokens) > EVEN_COLUMNS else 0
    return torch.nn.functional.pad(tokens, (0, 0, 0, padding)).T


def _rows_of(table: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    return torch.index_select(table, 0, rows, out=out.resize_(len(rows), table.shape[1]))


def _score_listed(queries: Spans, documents: Spans, pair_q: Tensor, pair_d: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of listed pairs, (pairs,), and the row of the best token of their query tokens, (hits,).

    The pairs are sorted by query and name no document without tokens. Hits are the query tokens of all pairs.
    """
    device, limit = queries.values.device, _on(queries.values.device, BLOCK_ELEMENTS)
    q_lengths = queries.lengths.tolist()
    scores = torch.zeros(len(pair_q), device=device)
    hits = torch.zeros(int(queries.lengths[pair_q].sum()), dtype=torch.int64, device=device)
    hit = end = row = 0
    for width, pairs in zip(q_lengths, torch.bincount(pair_q, minlength=len(q_lengths)).tolist(), strict=True):
        begin, end, row = end, end + pairs, row + width
        if not width or not pairs:
            continue
        query = queries.values[row - width : row].float().T
        longest = int(documents.lengths[pair_d[begin:end]].max())
        for first in range(begin, end, max(1, limit // (width * longest))):
            texts = pair_d[first : min(end, first + max(1, limit // (width * longest)))]
            lengths = documents.lengths[texts]
            tokens, local = _tokens(documents, texts)
            products = torch.mm(tokens, query)
            rows = _padded(local, lengths).to(device)
            best, position = _best_tokens(products.index_select(0, rows.flatten()).view(*rows.shape, width))
            scores[first : first + len(texts)] = best.sum(1)
            found = rows.gather(1, position) + (documents.starts[texts] - local).to(device)[:, None]
            hits[hit : hit + found.numel()] = found.flatten()
            hit += found.numel()
    return scores, hits


def _tokens(documents: Spans, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of some documents, float32, and each one's first row among them: a view if they lie close together."""
    starts, lengths = documents.starts[texts], documents.lengths[texts]
    begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
    if end - begin <= HOLES * int(lengths.sum()) and bool((starts[1:] > starts[:-1]).all()):
        return documents.values[begin:end].float(), starts - begin
    rows = row_ranges(starts, lengths).to(documents.values.device)
    return documents.values.index_select(0, rows).float(), row_starts(lengths)[:-1]


_Places = tuple[Tensor, Tensor]
"""Starts and lengths of the texts of one side."""


def _row_bytes(documents: Spans) -> int:
    """Bytes of the kept positions of one query token."""
    return len(documents.lengths) * position_type(documents.lengths).itemsize


class AllPairs(torch.autograd.Function):
    """Scores of every query with every document, (queries, documents), float32."""

    @staticmethod
    def forward(ctx: Any, q_values: Tensor, d_values: Tensor, q_places: _Places, d_places: _Places) -> Tensor:
        """Score; keep the positions of the best tokens for the backward pass where they fit in `KEPT_BYTES`."""
        queries, documents = Spans(q_values, *q_places), Spans(d_values, *d_places)
        if not any(ctx.needs_input_grad) and q_values.device.type == "cpu" and in_order(documents):
            return score_in_order(queries, documents)
        kept_bytes = len(q_values) * _row_bytes(documents)
        keep = any(ctx.needs_input_grad) and kept_bytes <= _on(q_values.device, KEPT_BYTES)
        scores, kept = _score_all(queries, documents, keep)
        ctx.places = q_places, d_places
        ctx.save_for_backward(q_values, d_values, kept)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of both sides' values, given the scores'; where few pairs have one, of those pairs alone."""
        q_values, d_values, kept = ctx.saved_tensors
        queries, documents = Spans(q_values, *ctx.places[0]), Spans(d_values, *ctx.places[1])
        chunk_hits = _on(gradient.device, CHUNK_HITS)
        gradients = Gradients(queries, documents, ctx.needs_input_grad[:2], chunk_hits)
        limit = len(q_values)
        if kept is None:
            limit = _on(q_values.device, KEPT_BYTES) // max(_row_bytes(documents), 1)
        for first, last in _chunks(queries.lengths, limit):
            part = gradient[first:last]
            if int(part.count_nonzero()) < SPARSE * part.numel():
                _backward_sparse(gradients, first, part, kept)
                continue
            if kept is None:
                a, b = int(gradients.q_starts[first]), int(gradients.q_starts[last])
                part_queries = Spans(q_values[a:b], queries.starts[first:last] - a, queries.lengths[first:last])
                positions = _score_all(part_queries, documents, True)[1]
            else:
                positions = kept
            assert positions is not None
            gradients.add_all(first, part, positions)
        return (*gradients.result(), None, None)


def _backward_sparse(gradients: Gradients, first: int, weights: Tensor, kept: Tensor | None) -> None:
    """Add pairs with a gradient only, of queries from `first`; without kept positions score them again."""
    pair_q, pair_d = weights.nonzero(as_tuple=True)
    weights = weights[pair_q, pair_d]
    pair_q, pair_d = (pair_q + first).cpu(), pair_d.cpu()
    real = gradients.documents.lengths[pair_d] > 0
    pair_q, pair_d, weights = pair_q[real], pair_d[real], weights[real.to(weights.device)]
    lengths = gradients.queries.lengths[pair_q]
    for begin, end in _chunks(lengths, gradients.chunk_hits):
        q, d = pair_q[begin:end], pair_d[begin:end]
        if kept is None:
            hits = _score_listed(gradients.queries, gradients.documents, q, d)[1]
        else:
            rows = row_ranges(gradients.q_starts[q], lengths[begin:end]).to(kept.device)
            texts = torch.repeat_interleave(d, lengths[begin:end]).to(kept.device)
            hits = kept[texts, rows].long() + gradients.d_starts.to(kept.device)[texts]
        gradients.add_listed(q, d, weights[begin:end], hits)


class Candidates(torch.autograd.Function):
    """Scores of every query with its own candidates, (queries * n_ways,), float32, in the order of the documents."""

    @staticmethod
    def forward(ctx: Any, q_values: Tensor, d_values: Tensor, q_places: _Places, d_places: _Places) -> Tensor:
        """Score; keep the row of the best token of every query token in every candidate."""
        queries, documents = Spans(q_values, *q_places), Spans(d_values, *d_places)
        pair_d = documents.lengths.nonzero().squeeze(1)
        pair_q = pair_d // max(1, len(documents.lengths) // max(1, len(queries.lengths)))
        scores = torch.full((len(documents.lengths),), EMPTY_DOCUMENT_SCORE, device=q_values.device)
        scores[pair_d.to(q_values.device)], hits = _score_listed(queries, documents, pair_q, pair_d)
        ctx.places = q_places, d_places
        ctx.save_for_backward(q_values, d_values, pair_q, pair_d, hits)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of both sides' values, given the scores', at most `CHUNK_HITS` rows gathered at a time."""
        q_values, d_values, pair_q, pair_d, hits = ctx.saved_tensors
        queries, documents = Spans(q_values, *ctx.places[0]), Spans(d_values, *ctx.places[1])
        chunk_hits = _on(gradient.device, CHUNK_HITS)
        gradients = Gradients(queries, documents, ctx.needs_input_grad[:2], chunk_hits)
        weights, lengths = gradient[pair_d.to(gradient.device)], queries.lengths[pair_q]
        hit_starts = row_starts(lengths)
        for begin, end in _chunks(lengths, chunk_hits):
            part = hits[hit_starts[begin] : hit_starts[end]]
            gradients.add_listed(pair_q[begin:end], pair_d[begin:end], weights[begin:end], part)
        return (*gradients.result(), None, None)
