"""A teacher whose scores say too little: its softmax over a query's candidates is nearly one-hot, or nearly flat."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch

from colbert_zero.data.prepared import Part
from colbert_zero.maxsim.scores import min_max, span
from colbert_zero.recipe.schema import Phase, Temperature
from colbert_zero.training.losses import entropies
from colbert_zero.training.texts import some_rows

SAMPLE = 512
"""Rows of each part that are looked at."""

ONE_HOT, FLAT = 0.05, 0.999
"""Entropy of a row's softmax, as a share of the most it can be, below or above which it says little."""

_SHARE = 0.5
"""Of rows, from which on it is told."""


def tell_saturated(name: str, spec: Phase, parts: Mapping[str, Part], tell: Callable[[str], None]) -> None:
    """Tell of a teacher that is saturated at the temperature at which a phase learns from it, and how many rows are."""
    if not spec.distils or spec.distillation_loss != "kl":
        return
    own = spec.temperature.initial if isinstance(spec.temperature, Temperature) else spec.temperature
    temperature = spec.teacher_temperature or own
    key = "teacher_temperature" if spec.teacher_temperature else "temperature"
    for part_name, part in parts.items():
        rows = some_rows(part, SAMPLE)["scores"] if part.scored else []
        scores = torch.tensor(rows) if rows else torch.empty(0, 2)
        # Of a teacher that prefers nothing no temperature makes more.
        found = entropies(min_max(scores[span(scores) > 0]) / temperature)
        for kind, share in saturated(found).items():
            if share > _SHARE:
                mend = "raise it" if kind == "one-hot" else "lower it"
                what = "one candidate counts" if kind == "one-hot" else "all candidates count alike"
                tell(
                    f"phases.{name}.{key}: at {temperature:g} the teacher's softmax is nearly {kind} in {share:.0%} of "
                    f"{len(found):,} rows of {part_name}: {what}, and the rest of its scores teaches little; {mend}"
                )


def saturated(entropies_of_rows: torch.Tensor) -> dict[Literal["one-hot", "flat"], float]:
    """Share of rows whose softmax is nearly one-hot, and nearly flat; of none 0.

    Args:
        entropies_of_rows: As shares of the most they can be, (rows,).
    """
    if not len(entropies_of_rows):
        return {"one-hot": 0.0, "flat": 0.0}
    one_hot, flat = entropies_of_rows < ONE_HOT, entropies_of_rows > FLAT
    return {"one-hot": one_hot.float().mean().item(), "flat": flat.float().mean().item()}
