"""MaxSim in training: exact scores of all pairs or of candidates, in bounded memory, with sparse gradients.

MaxSim(q, d) = sum over the query's tokens of max over the document's tokens of their dot product
(ColBERT, arXiv 2004.12832, section 3.3). A dense embedding is a text of one token.

The backend "torch" (`cpu`) scores on a CPU always. On CUDA the environment variable COLBERT_ZERO_MAXSIM
chooses: "triton" (`triton_kernels`: bf16 and fp16 are multiplied as they are, with float32 sums), "torch",
"late-interaction-kernels" (`late_interaction`: float32 inputs are multiplied in fp16), or "auto", the default:
"triton" where it can be imported, else "torch". What "auto" takes follows from arithmetic; it has not been measured.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from colbert_zero.errors import ColbertZeroError
from colbert_zero.maxsim.cpu import AllPairs, Candidates
from colbert_zero.maxsim.packed import Packed, Spans, pack, row_starts

BACKEND_VARIABLE = "COLBERT_ZERO_MAXSIM"

BACKENDS = ("auto", "torch", "triton", "late-interaction-kernels")

_kept: list[str] = []


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
    kernels = _kernels(queries.values.device)
    if kernels is not None:
        return kernels(queries, documents, 0)
    sides = (queries.values, documents.values, queries[1:], documents[1:])
    scores: Tensor = AllPairs.apply(*sides)  # type: ignore[no-untyped-call]
    return scores


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
    kernels = _kernels(queries.values.device)
    if kernels is not None:
        return kernels(queries, documents, n_ways)
    sides = (queries.values, documents.values, queries[1:], documents[1:])
    scores: Tensor = Candidates.apply(*sides)  # type: ignore[no-untyped-call]
    return scores.view(shape)


def backend(device: torch.device) -> str:
    """What scores on a device: the choice of `scoring_with`, else that of the environment.

    Raises:
        ColbertZeroError: The environment names no backend, or one that is not installed.
    """
    if _kept:
        return _kept[-1]
    chosen = os.environ.get(BACKEND_VARIABLE) or "auto"
    if chosen not in BACKENDS:
        raise ColbertZeroError(f"{BACKEND_VARIABLE}={chosen!r} is none of {', '.join(BACKENDS)}")
    if device.type != "cuda":
        return "torch"
    if chosen == "auto":
        return "triton" if find_spec("triton") else "torch"
    if not can_score(chosen, device):
        raise ColbertZeroError(
            f"{BACKEND_VARIABLE}={chosen}: not installed; pip install colbert-zero[gpu], or unset it"
        )
    return chosen


def can_score(backend: str, device: torch.device) -> bool:
    """Whether a backend works on this host's device."""
    return backend == "torch" or (device.type == "cuda" and find_spec(backend.replace("-", "_")) is not None)


@contextmanager
def scoring_with(backend: str) -> Iterator[None]:
    """Inside, this backend scores, whatever the environment says: a training keeps the one it began with."""
    _kept.append(backend)
    try:
        yield
    finally:
        _kept.pop()


def _kernels(device: torch.device) -> Callable[[Spans, Spans, int], Tensor] | None:
    """Function of queries, documents and n_ways (0: all pairs) that scores on this device; None for ours in PyTorch."""
    chosen = backend(device)
    if chosen == "triton":
        from colbert_zero.maxsim.triton_kernels import scores
    elif chosen == "late-interaction-kernels":
        from colbert_zero.maxsim.late_interaction import scores
    else:
        return None
    return scores


def _single(texts: Spans) -> bool:
    return len(texts.values) == len(texts.lengths) and bool((texts.lengths == 1).all())


def min_max(scores: Tensor, flat: float = 1e-9) -> Tensor:
    """Scores of each row brought to [0, 1]; a row that spans less than `flat` becomes 0. Differentiable."""
    low, spans = scores.amin(1, keepdim=True), span(scores)[:, None]
    return ((scores - low) / spans.clamp_min(flat)).where(spans >= flat, 0)


def span(scores: Tensor) -> Tensor:
    """Largest less smallest score of each row, (rows,)."""
    return scores.amax(1) - scores.amin(1)
