"""Whether a model that is written for others gives what this program computes, of sample texts."""

from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.encoding import Task, encode

TOLERANCE = 1e-5
"""Of the largest number in what is compared, or of 1 where that is more."""

TEXTS: dict[Task, list[str]] = {
    "query": ["how is a run resumed", "What lifts a wing?", "a"],
    "document": [
        "A run that was killed goes on from its newest whole checkpoint.",
        "Lift grows with the angle of attack, until the flow separates. " * 40,
        "Oui: naïve façade – 10 µm, 日本.",
    ],
}
"""With a text of one letter, one that is cut off, and letters that a tokenizer may not know."""


def vectors_of(encoder: Encoder, of: Mapping[Task, list[str]] = TEXTS) -> list[torch.Tensor]:
    """(tokens, dim) of each text, as this program scores them; of the sample texts by default."""
    packed = [encode(encoder, texts, task) for task, texts in of.items()]
    return [vectors for side in packed for vectors in side.values.split(side.lengths.tolist())]


def difference(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """The largest, as `TOLERANCE` counts it; infinite where shapes differ, or a number is none.

    Example:
        >>> difference([torch.ones(2, 3)], [torch.ones(2, 3)]), difference([torch.ones(2, 3)], [torch.ones(1, 3)])
        (0.0, inf)
    """
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or not torch.isfinite(other).all():
            return float("inf")
        largest = max(largest, float((one - other).abs().max()) / max(1.0, float(one.abs().max())))
    return largest


def in_words(apart: float) -> str:
    """A difference that is more than rounding."""
    if apart == float("inf"):
        return "another number of them, or some that are not finite"
    return f"up to {apart:.1e} apart, and rounding is {TOLERANCE:.0e}"


def unknown_modules(encoder: Any) -> list[str]:
    """Classes of the modules of a multi-vector model, its encoder aside, that no export has a place for."""
    known = (Dense, Normalize, MultiVectorMask)
    return [type(module).__name__ for module in list(encoder)[1:] if not isinstance(module, known)]
