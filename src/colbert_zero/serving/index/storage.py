"""Token vectors as they are kept: float32, float16, or int8 with a scale a vector.

int8: a vector's largest magnitude becomes 127, so each number is off by at most a 254th of it.
"""

import numpy as np
import torch
from torch import Tensor

from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving.index.manifest import Storage

TYPES: dict[Storage, np.dtype] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "int8": np.dtype("i1")}


def to_stored(values: Tensor, storage: Storage) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors as they are kept, and the scales of int8.

    Args:
        values: (tokens, dim), float32.
        storage: How.

    Raises:
        ColbertZeroError: A value is not finite, or beyond what float16 holds.

    Example:
        >>> vectors, scales = to_stored(torch.tensor([[0.6, -0.8]]), "int8")
        >>> vectors.tolist(), (vectors * scales[:, None]).round(2).tolist()
        ([[95, -127]], [[0.6, -0.8]])
    """
    if not torch.isfinite(values).all():
        raise ColbertZeroError("the model gives vectors that are not finite; its training has diverged")
    whole = values.to("cpu", torch.float32).numpy()
    if storage == "int8":
        scales = (np.abs(whole).max(axis=1, initial=0) / 127).astype("<f4")
        divisors = np.where(scales > 0, scales, 1)[:, None]
        return np.rint(whole / divisors).clip(-127, 127).astype(np.int8), scales
    if storage == "float16" and np.abs(whole).max(initial=0) > np.finfo(np.float16).max:
        raise ColbertZeroError("the model gives vectors beyond what float16 holds; take --store float32")
    return whole.astype(TYPES[storage]), None


def means(vectors: np.ndarray, scales: np.ndarray | None, lengths: np.ndarray) -> np.ndarray:
    """The mean of each document's vectors at length 1; 0 of a document without vectors.

    Args:
        vectors: Of all documents, one after the other, as they are kept, (tokens, dim).
        scales: Of int8.
        lengths: Tokens of each document.

    Returns:
        (documents, dim), float16.
    """
    ends = np.cumsum(lengths)
    found = np.zeros((len(lengths), vectors.shape[1]), np.float16)
    # One by one, so that a document's mean does not depend on those around it.
    for number, (begin, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        mean = vectors[begin:end].astype(np.float32)
        mean = (mean if scales is None else mean * scales[begin:end, None]).sum(0)
        found[number] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return found


def from_stored(vectors: np.ndarray, scales: np.ndarray | None) -> Tensor:
    """Vectors to be scored: of int8 in float32, else as they are, without a copy."""
    found = torch.from_numpy(vectors)
    return found if scales is None else found.float().mul_(torch.from_numpy(scales)[:, None])
