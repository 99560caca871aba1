"""MaxSim in training: exact scores of all pairs or of candidates, in bounded memory, with sparse gradients.

MaxSim(q, d) = sum over the query's tokens of max over the document's tokens of their dot product
(ColBERT, arXiv 2004.12832, section 3.3). A dense embedding is a text of one token.
What computes it is chosen in `backends`.
"""

import torch
from torch import Tensor

from colbert_zero.maxsim import cpu
from colbert_zero.maxsim.backends import backend, kernels
from colbert_zero.maxsim.packed import Packed, Spans, pack, row_starts


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


def span_scores(queries: Packed, documents: Spans) -> Tensor:
    """MaxSim of every query with documents that are rows of a table, of which some may be nobody's.

    Args:
        queries: As for `packed_scores`.
        documents: The table may be float16 or bfloat16, and lie in a mapped file; products are float32.

    Returns:
        As `packed_scores`.

    Raises:
        ValueError: The queries' lengths do not sum to their tokens.
    """
    return _all_pairs(_checked(queries), documents)


def scaled_scores(queries: Packed, documents: Spans, scales: Tensor) -> Tensor:
    """The same of a table of whole numbers with a scale a row, without gradients.

    Args:
        queries: As for `packed_scores`.
        documents: The table is int8; put into float32 block by block on a CPU where they stand in order.
        scales: Of each row of the table, (rows,), float32.

    Returns:
        As `packed_scores`.
    """
    spans, device = _checked(queries), queries.values.device
    if device.type == "cpu" and backend(device) == "torch" and cpu.in_order(documents):
        return cpu.score_in_order(spans, documents, scales)
    return _all_pairs(spans, documents._replace(values=documents.values.float() * scales[:, None]))


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

    Example:
        >>> from colbert_zero import maxsim_scores
        >>> from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
        >>> loss = MultiVectorMultipleNegativesRankingLoss(model, similarity_fct=maxsim_scores)
        >>> queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # one query of two tokens
        >>> documents = torch.tensor([[[[0.6, 0.8], [0.0, 1.0]]], [[[1.0, 0.0], [0.8, 0.6]]]])  # two of two
        >>> maxsim_scores(queries, documents)
        tensor([[1.6000, 1.6000]])
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

    Example:
        >>> from colbert_zero import candidate_scores
        >>> from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss
        >>> loss = MultiVectorDistillKLDivLoss(model, similarity_fct=candidate_scores)
        >>> queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # one query of two tokens
        >>> candidates = torch.tensor([[[[0.6, 0.8], [0.0, 1.0]], [[1.0, 0.0], [0.8, 0.6]]]])  # its two candidates
        >>> candidate_scores(queries, candidates)
        tensor([[1.6000, 1.6000]])
    """
    queries = _checked(pack(queries_embeddings, queries_mask))
    documents = _groups(documents_embeddings, documents_mask)
    return _candidates(queries, documents, documents_embeddings.shape[1])


def _checked(texts: Packed) -> Spans:
    if int(texts.lengths.sum()) != len(texts.values):
        raise ValueError(f"lengths sum to {int(texts.lengths.sum())}, but there are {len(texts.values)} tokens")
    lengths = texts.lengths.to("cpu", torch.int64)
    return Spans(texts.values, row_starts(lengths)[:-1], lengths)


def _groups(embeddings: Tensor, mask: Tensor | None) -> Spans:
    """Documents (groups, n, d_tokens, dim); left where they are if padding only follows their tokens."""
    width = embeddings.shape[2]
    if mask is None or mask.shape != embeddings.shape[:3]:
        return _checked(pack(embeddings.flatten(0, 1), None if mask is None else mask.flatten(0, 1)))
    real = mask.flatten(0, 1).bool()
    lengths = real.sum(1)
    if not bool((real == (torch.arange(width, device=real.device) < lengths[:, None])).all()):
        return _checked(pack(embeddings.flatten(0, 1), real))
    return Spans(embeddings.flatten(0, 2), torch.arange(len(real)) * width, lengths.cpu())


def _all_pairs(queries: Spans, documents: Spans) -> Tensor:
    if _single(queries) and _single(documents):
        with torch.autocast(queries.values.device.type, enabled=False):
            return queries.values.float() @ documents.values.float().T
    return kernels(backend(queries.values.device))(queries, documents, 0)


def _candidates(queries: Spans, documents: Spans, n_ways: int) -> Tensor:
    shape = (len(queries.lengths), n_ways)
    if len(documents.lengths) != shape[0] * n_ways:
        raise ValueError(
            f"{len(documents.lengths)} documents are not {n_ways} candidates for each of {shape[0]} queries"
        )
    if _single(queries) and _single(documents):
        with torch.autocast(queries.values.device.type, enabled=False):
            d_values = documents.values.float().unflatten(0, shape)
            return torch.einsum("qd,qnd->qn", queries.values.float(), d_values)
    return kernels(backend(queries.values.device))(queries, documents, n_ways)


def _single(texts: Spans) -> bool:
    return len(texts.values) == len(texts.lengths) and bool((texts.lengths == 1).all())


def min_max(scores: Tensor, flat: float = 1e-9) -> Tensor:
    """Scores of each row brought to [0, 1]; a row that spans less than `flat` becomes 0. Differentiable."""
    low, spans = scores.amin(1, keepdim=True), span(scores)[:, None]
    return ((scores - low) / spans.clamp_min(flat)).where(spans >= flat, 0)


def span(scores: Tensor) -> Tensor:
    """Largest less smallest score of each row, (rows,)."""
    return scores.amax(1) - scores.amin(1)
