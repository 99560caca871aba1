"""MaxSim in training: exact scores of all pairs or of candidates, in bounded memory, with sparse gradients.

MaxSim(q, d) = sum over the query's tokens of max over the document's tokens of their dot product
(ColBERT, arXiv 2004.12832, section 3.3). A dense embedding is a text of one token.

Texts are packed, so no product is spent on padding. Documents are sorted by length and scored in blocks of
at most `BLOCK_ELEMENTS` products; there a short document repeats its last token, which changes no maximum
and needs no mask. The forward pass keeps, for each query token and document, the position of the best token
(one byte up to 256 tokens), so that the gradient only gathers rows, of pairs whose incoming gradient is not
0. Where these positions exceed `KEPT_BYTES` nothing is kept, and the backward pass scores those pairs again.

Products and sums are float32 whatever the input. Of equal maxima the first token gets the gradient. Results
are bitwise repeatable on a CPU. Peak memory above inputs, scores and gradients: 8 MiB of products, the
positions (at most 256 MiB) and, in the backward pass, some 20 MiB of indices; there half-precision inputs add
a float32 copy.

The above is the backend "torch", which scores on a CPU always. On CUDA the environment variable COLBERT_ZERO_MAXSIM
chooses: "triton" (`maxsim_triton`: bf16 and fp16 are multiplied as they are, with float32 sums), "torch",
"late-interaction-kernels" (`maxsim_late_interaction`: float32 inputs are multiplied in fp16), or "auto", the default:
"triton" where it can be imported, else "torch". What "auto" takes follows from arithmetic; it has not been measured.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from colbert_zero.maxsim_gradients import (
    EMPTY_DOCUMENT_SCORE,
    Gradients,
    Texts,
    bag,
    position_type,
    row_ranges,
    row_starts,
)

BLOCK_ELEMENTS = 1 << 21
"""Token products alive at once (float32): small enough for the caches of a CPU."""

KEPT_BYTES = 1 << 28
"""Most memory the forward pass may keep for the backward pass beside its inputs."""

CHUNK_HITS = 1 << 18
"""(query token, best document token) pairs whose gradient is gathered at once."""

SPARSE = 0.25
"""Share of pairs with a gradient under which listing them costs less than gathering for all."""

BACKEND_VARIABLE = "COLBERT_ZERO_MAXSIM"
BACKENDS = ("auto", "torch", "triton", "late-interaction-kernels")


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
    return Packed(_TakeRows.apply(embeddings.flatten(0, 1), rows), real.sum(1).cpu())


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


def packed_scores(queries: Packed, documents: Packed) -> Tensor:
    """MaxSim of every query with every document.

    Args:
        queries: Packed queries; one without tokens scores 0.
        documents: Packed documents; one without tokens scores -1e9.

    Returns:
        (queries, documents), float32, differentiable in both `values`.

    Raises:
        ValueError: The lengths of a side do not sum to its tokens.
    """
    return _all_pairs(_checked(queries), _checked(documents))


def packed_candidate_scores(queries: Packed, documents: Packed, n_ways: int) -> Tensor:
    """MaxSim of every query with its own candidates.

    Args:
        queries: Packed queries; one without tokens scores 0.
        documents: Packed; document q * n_ways + k is candidate k of query q; one without tokens scores -1e9.
        n_ways: Candidates per query.

    Returns:
        (queries, n_ways), float32, differentiable in both `values`.

    Raises:
        ValueError: There are not n_ways documents a query, or lengths do not sum to the tokens.
    """
    return _candidates(_checked(queries), _checked(documents), n_ways)


def maxsim_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
) -> Tensor:
    """Drop-in for sentence-transformers' `colbert_scores`, as `similarity_fct` of a contrastive loss.

    Args:
        queries_embeddings: (queries, q_tokens, dim).
        documents_embeddings: (groups, n, d_tokens, dim).
        queries_mask: (queries, q_tokens).
        documents_mask: (groups, n, d_tokens).

    Returns:
        (queries, groups * n), float32; column j * n + k is document k of group j.
    """
    queries = _checked(pack(queries_embeddings, queries_mask))
    return _all_pairs(queries, _groups(documents_embeddings, documents_mask))


def candidate_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
) -> Tensor:
    """Drop-in for sentence-transformers' `colbert_kd_scores`, as `similarity_fct` of a distillation loss.

    Args:
        queries_embeddings: (queries, q_tokens, dim).
        documents_embeddings: (queries, n_ways, d_tokens, dim).
        queries_mask: (queries, q_tokens).
        documents_mask: (queries, n_ways, d_tokens).

    Returns:
        (queries, n_ways), float32.
    """
    queries = _checked(pack(queries_embeddings, queries_mask))
    documents = _groups(documents_embeddings, documents_mask)
    return _candidates(queries, documents, documents_embeddings.shape[1])


def _checked(texts: Packed) -> Texts:
    if int(texts.lengths.sum()) != len(texts.values):
        raise ValueError(f"lengths sum to {int(texts.lengths.sum())}, but there are {len(texts.values)} tokens")
    lengths = texts.lengths.to("cpu", torch.int64)
    return Texts(texts.values, row_starts(lengths)[:-1], lengths)


def _groups(embeddings: Tensor, mask: Tensor | None) -> Texts:
    """Documents (groups, n, d_tokens, dim); left where they are if padding only follows their tokens."""
    width = embeddings.shape[2]
    if mask is None or mask.shape != embeddings.shape[:3]:
        return _checked(pack(embeddings.flatten(0, 1), None if mask is None else mask.flatten(0, 1)))
    real = mask.flatten(0, 1).bool()
    lengths = real.sum(1)
    if not bool((real == (torch.arange(width, device=real.device) < lengths[:, None])).all()):
        return _checked(pack(embeddings.flatten(0, 1), real))
    return Texts(embeddings.flatten(0, 2), torch.arange(len(real)) * width, lengths.cpu())


def _all_pairs(queries: Texts, documents: Texts) -> Tensor:
    if _single(queries) and _single(documents):
        with torch.autocast(queries.values.device.type, enabled=False):
            return queries.values.float() @ documents.values.float().T
    kernels = _kernels(queries.values.device)
    if kernels is not None:
        return kernels(queries, documents, 0)
    return _AllPairs.apply(queries.values, documents.values, queries[1:], documents[1:])


def _candidates(queries: Texts, documents: Texts, n_ways: int) -> Tensor:
    shape = (len(queries.lengths), n_ways)
    if len(documents.lengths) != shape[0] * n_ways:
        raise ValueError(
            f"{len(documents.lengths)} documents are not {n_ways} candidates for each of {shape[0]} queries"
        )
    if _single(queries) and _single(documents):
        with torch.autocast(queries.values.device.type, enabled=False):
            d_values = documents.values.float().unflatten(0, shape)
            return torch.einsum("qd,qnd->qn", queries.values.float(), d_values)
    kernels = _kernels(queries.values.device)
    if kernels is not None:
        return kernels(queries, documents, n_ways)
    return _Candidates.apply(queries.values, documents.values, queries[1:], documents[1:]).view(shape)


def _backend(device: torch.device) -> str:
    chosen = os.environ.get(BACKEND_VARIABLE, "auto")
    if chosen not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}={chosen!r} is none of {', '.join(BACKENDS)}")
    if device.type != "cuda":
        return "torch"
    if chosen == "auto":
        return "triton" if find_spec("triton") else "torch"
    return chosen


def _kernels(device: torch.device) -> Callable[[Texts, Texts, int], Tensor] | None:
    """Function of queries, documents and n_ways (0: all pairs) that scores on this device; None for ours in PyTorch."""
    backend = _backend(device)
    if backend == "triton":
        from colbert_zero.maxsim_triton import scores
    elif backend == "late-interaction-kernels":
        from colbert_zero.maxsim_late_interaction import scores
    else:
        return None
    return scores


def _single(texts: Texts) -> bool:
    return len(texts.values) == len(texts.lengths) and bool((texts.lengths == 1).all())


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


def _score_all(queries: Texts, documents: Texts, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Scores of all pairs and, to keep, the position of the best token, (documents, query tokens)."""
    device, limit = queries.values.device, _on(queries.values.device, BLOCK_ELEMENTS)
    q_values = queries.values.float()
    q_starts, d_starts = row_starts(queries.lengths), documents.starts
    lengths, order = documents.lengths.sort(stable=True)
    empty = int((lengths == 0).sum())
    scores = torch.full((len(queries.lengths), len(order)), EMPTY_DOCUMENT_SCORE, device=device)
    kept_shape = (len(order), len(q_values)) if keep else (0, 0)
    kept = torch.zeros(kept_shape, dtype=position_type(lengths), device=device)
    products = q_values.new_empty(0)
    for begin, end in _blocks(lengths[empty:].tolist(), limit // min(max(len(q_values), 1), 1024)):
        texts = order[empty + begin : empty + end]
        rows = _padded(d_starts[texts], documents.lengths[texts])
        tokens = documents.values.index_select(0, rows.flatten().to(device)).float()
        last_position = (documents.lengths[texts, None] - 1).to(device)
        texts = texts.to(device)
        for first, last in _chunks(queries.lengths, limit // len(tokens)):
            a, b = int(q_starts[first]), int(q_starts[last])
            if a == b:
                scores[first:last, texts] = 0
                continue
            torch.mm(tokens, q_values[a:b].T, out=products.resize_(len(tokens), b - a))
            best, position = _best_tokens(products.view(*rows.shape, b - a))
            every = torch.arange(b - a, device=device)
            scores[first:last, texts] = bag(best.T.contiguous(), every, q_starts[first : last + 1] - a)
            if keep:
                kept[texts, a:b] = torch.minimum(position, last_position).to(kept.dtype)
    return scores, kept if keep else None


def _score_listed(queries: Texts, documents: Texts, pair_q: Tensor, pair_d: Tensor) -> tuple[Tensor, Tensor]:
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


def _tokens(documents: Texts, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of some documents, float32, and each one's first row among them: a view if they lie close together."""
    starts, lengths = documents.starts[texts], documents.lengths[texts]
    begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
    if end - begin <= 2 * int(lengths.sum()) and bool((starts[1:] > starts[:-1]).all()):
        return documents.values[begin:end].float(), starts - begin
    rows = row_ranges(starts, lengths).to(documents.values.device)
    return documents.values.index_select(0, rows).float(), row_starts(lengths)[:-1]


_Places = tuple[Tensor, Tensor]
"""Starts and lengths of the texts of one side."""


def _row_bytes(documents: Texts) -> int:
    """Bytes of the kept positions of one query token."""
    return len(documents.lengths) * position_type(documents.lengths).itemsize


class _AllPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_values: Tensor, d_values: Tensor, q_places: _Places, d_places: _Places) -> Tensor:
        queries, documents = Texts(q_values, *q_places), Texts(d_values, *d_places)
        kept_bytes = len(q_values) * _row_bytes(documents)
        keep = any(ctx.needs_input_grad) and kept_bytes <= _on(q_values.device, KEPT_BYTES)
        scores, kept = _score_all(queries, documents, keep)
        ctx.places = q_places, d_places
        ctx.save_for_backward(q_values, d_values, kept)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q_values, d_values, kept = ctx.saved_tensors
        queries, documents = Texts(q_values, *ctx.places[0]), Texts(d_values, *ctx.places[1])
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
                part_queries = Texts(q_values[a:b], queries.starts[first:last] - a, queries.lengths[first:last])
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


class _Candidates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_values: Tensor, d_values: Tensor, q_places: _Places, d_places: _Places) -> Tensor:
        queries, documents = Texts(q_values, *q_places), Texts(d_values, *d_places)
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
        q_values, d_values, pair_q, pair_d, hits = ctx.saved_tensors
        queries, documents = Texts(q_values, *ctx.places[0]), Texts(d_values, *ctx.places[1])
        chunk_hits = _on(gradient.device, CHUNK_HITS)
        gradients = Gradients(queries, documents, ctx.needs_input_grad[:2], chunk_hits)
        weights, lengths = gradient[pair_d.to(gradient.device)], queries.lengths[pair_q]
        hit_starts = row_starts(lengths)
        for begin, end in _chunks(lengths, chunk_hits):
            part = hits[hit_starts[begin] : hit_starts[end]]
            gradients.add_listed(pair_q[begin:end], pair_d[begin:end], weights[begin:end], part)
        return (*gradients.result(), None, None)
