"""Zeros that stay: a pruned model is trained with the numbers that were made 0 held there.

Each matrix of the layers is the product of what is trained and a mask, by torch's own parametrisation, so that neither
the optimiser nor the loop knows of it; folded, the model is an ordinary one again.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import read_json, write_json
from colbert_zero.models.axes import table_of
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.shrinking import encoder_of, matrices, zeros_in

RECORD = "compress.json"
"""In a checkpoint that was cut."""


def cut_record(place: str | Path) -> dict[str, Any] | None:
    """What a folder says of how its model was cut; None of one that was not, and of a Hub id, which is not asked.

    Raises:
        ColbertZeroError: It cannot be read.
    """
    file = Path(place) / RECORD
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = read_json(file)
        return record if record["kind"] == "compress" else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ColbertZeroError(f"{file}: cannot be read ({reason(error)}); delete it, or cut the model again") from None


def keeps_zeros(record: dict[str, Any] | None) -> bool:
    """Whether a checkpoint's zeros are to stay, by its record.

    Example:
        >>> keeps_zeros({"kind": "compress", "asked": {"zeros": 0.5}}), keeps_zeros(None)
        (True, False)
    """
    # Records of before `keep_zeros` have what was asked alone.
    return bool(record and record.get("keep_zeros", record.get("asked", {}).get("zeros")))


class _Kept(nn.Module):
    """Holds what is 0 there."""

    kept: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", weight.detach() != 0)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept


def hold_zeros(model: Encoder, whose: str) -> None:
    """Hold at 0, whatever is trained, what is 0 in the matrices of the layers; in place.

    Args:
        model: Dense or multi-vector, of a type that is known (`axes`).
        whose: How messages of errors begin.
    """
    for module in _modules(model, whose):
        register_parametrization(module, "weight", _Kept(module.get_parameter("weight")))


def held(model: nn.Module) -> dict[int, Tensor]:
    """Of each matrix that is trained with zeros held, by its identity, which numbers may move."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        parts = getattr(module, "parametrizations", None)
        if isinstance(parts, nn.ModuleDict) and "weight" in parts:
            weight: Any = parts["weight"]
            found |= {id(weight.original): part.kept for part in weight if isinstance(part, _Kept)}
    return found


def fold_zeros(model: Encoder, whose: str) -> None:
    """Make a model whose zeros were held an ordinary one, its zeros in its matrices; in place."""
    encoder = encoder_of(model, whose)
    with torch.no_grad():
        for module in list(encoder.modules()):
            if isinstance(kept := getattr(module, "parametrizations", None), nn.ModuleDict) and "weight" in kept:
                remove_parametrizations(module, "weight", leave_parametrized=True)


def write_kept(folder: Path, model: Encoder, record: dict[str, Any], phase: str) -> dict[str, int]:
    """Say beside a trained model that its zeros stay, for what is trained from it; returns how many there are."""
    zeros, numbers = zeros_in(model, str(folder))
    counted = {"zeros": zeros, "zeros_of": numbers}
    said = {"kind": "compress", "asked": record.get("asked", {}), "keep_zeros": True, "trained_by": phase}
    write_json(folder / RECORD, said | counted)
    return counted


def _modules(model: Encoder, whose: str) -> list[nn.Module]:
    encoder = encoder_of(model, whose)
    names = matrices(encoder, table_of(encoder, whose))
    return [encoder.get_submodule(name.removesuffix(".weight")) for name in names]
