"""MaxSim as it is written, a block of products at a time: the backend "plain", by which the others are judged.

Nothing but operations that every device has, differentiated by PyTorch: right where the faster ones are not, and slow,
since it pads and its backward pass computes each block again.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from colbert_zero.maxsim.packed import EMPTY_DOCUMENT_SCORE, Spans, padded

BLOCK_ELEMENTS = 1 << 22
"""Token products alive at once, or those of one document."""


def scores(queries: Spans, documents: Spans, n_ways: int = 0) -> Tensor:
    """MaxSim of all pairs, or of candidates.

    Args:
        queries: One without tokens scores 0.
        documents: One without tokens scores -1e9, without gradient.
        n_ways: 0 for all pairs; else documents q * n_ways ... (q + 1) * n_ways - 1 are the candidates of query q.

    Returns:
        (queries, documents), or (queries, n_ways); float32, or float64 of such values; differentiable in both `values`.
    """
    shape = (len(queries.lengths), n_ways or len(documents.lengths))
    kind = torch.promote_types(queries.values.dtype, torch.float32)
    if 0 in shape:
        return queries.values.new_zeros(shape, dtype=kind)
    with torch.autocast(queries.values.device.type, enabled=False):
        q, q_mask = padded(queries)
        d, d_mask = padded(documents)
        q, d = q.to(kind), d.to(kind)
        if n_ways:
            step = max(1, BLOCK_ELEMENTS // (n_ways * q.shape[1] * d.shape[1]))
            sides = (q, q_mask, d.unflatten(0, shape), d_mask.unflatten(0, shape))
            blocks = list(zip(*(side.split(step) for side in sides), strict=True))
        else:
            step = max(1, BLOCK_ELEMENTS // (q.shape[0] * q.shape[1] * d.shape[1]))
            blocks = [
                (q, q_mask, *part) for part in zip(d[None].split(step, 1), d_mask[None].split(step, 1), strict=True)
            ]
        if len(blocks) == 1:
            return _block(*blocks[0])
        # Of a block only the inputs are kept for the backward pass.
        scored = [checkpoint(_block, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
        return torch.cat(scored, 0 if n_ways else 1)


def _block(q: Tensor, q_mask: Tensor, d: Tensor, d_mask: Tensor) -> Tensor:
    """Scores (queries, documents) of padded texts: q (queries, q_tokens, dim), d (queries or 1, n, d_tokens, dim)."""
    if len(d) == 1:
        products = torch.einsum("qid,njd->qnij", q, d[0])
    else:
        products = torch.einsum("qid,qnjd->qnij", q, d)
    best = products.masked_fill(~d_mask[:, :, None], float("-inf")).max(3).values
    found = best.masked_fill(~q_mask[:, None], 0).sum(2)
    return found.masked_fill(~d_mask.any(2), EMPTY_DOCUMENT_SCORE)
