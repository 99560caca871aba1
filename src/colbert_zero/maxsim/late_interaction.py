"""MaxSim on a CUDA device by late-interaction-kernels (Apache-2.0; our extra `gpu`), written against its 0.4.5.

It wants padded texts and boolean masks. It numbers products and embeddings in 32 bits, so that a large batch is scored
in parts. Its "lowmem" backward pass is the deterministic one. float32 inputs it multiplies in fp16: scores and
gradients are then good to about three digits.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from colbert_zero.maxsim.packed import EMPTY_DOCUMENT_SCORE, Spans, padded

INDEX_LIMIT = (1 << 31) - 1
"""Most items that one call may number, on either side or as (query, document, padded query token)."""


def scores(queries: Spans, documents: Spans, n_ways: int = 0, kernel: Callable[..., Tensor] | None = None) -> Tensor:
    """MaxSim of all pairs, or of candidates.

    Args:
        queries: One without tokens scores 0.
        documents: One without tokens scores -1e9, without gradient.
        n_ways: 0 for all pairs; else documents q * n_ways ... (q + 1) * n_ways - 1 are the candidates of query q.
        kernel: Called as `late_interaction_kernels.maxsim`, which it is unless given.

    Returns:
        (queries, documents), or (queries, n_ways); float32, differentiable in both `values`.

    Raises:
        ImportError: late-interaction-kernels is not installed.
    """
    count, shape = len(queries.lengths), (len(queries.lengths), n_ways or len(documents.lengths))
    if 0 in shape:
        return queries.values.new_zeros(shape, dtype=torch.float32)
    kernel = kernel or _library()
    q, q_mask = padded(queries)
    d, d_mask = padded(documents)
    document_items = d[0].numel()
    if n_ways:
        step = max(1, INDEX_LIMIT // max(n_ways * document_items, n_ways * _bucket(q.shape[1]), q[0].numel()))
        sides = (q, d.unflatten(0, shape), q_mask, d_mask.unflatten(0, shape))
        parts = [kernel(*part, backward="lowmem") for part in zip(*(side.split(step) for side in sides), strict=True)]
    else:
        step = max(1, INDEX_LIMIT // max(document_items, count * _bucket(q.shape[1])))
        documents_parts = zip(d.split(step), d_mask.split(step), strict=True)
        parts = [kernel(q, part, q_mask, mask, backward="lowmem") for part, mask in documents_parts]
    found = torch.cat(parts, 0 if n_ways else 1)
    empty = (documents.lengths == 0).to(found.device)
    return found.masked_fill(empty.view(shape) if n_ways else empty, EMPTY_DOCUMENT_SCORE)


def _library() -> Callable[..., Tensor]:
    # Its check that embeddings have unit length counts our padding too.
    os.environ.setdefault("LIK_SUPPRESS_NORM_WARN", "1")
    try:
        from late_interaction_kernels import maxsim
    except ImportError as error:
        raise ImportError("late-interaction-kernels is missing; pip install 'colbert-zero[gpu]'") from error
    kernel: Callable[..., Tensor] = maxsim
    return kernel


def _bucket(tokens: int) -> int:
    """Query tokens after the library's own padding, or more."""
    return max(16, 1 << (tokens - 1).bit_length())
