"""What `max_relative` leaves out, found on a sample before a phase's first step."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from colbert_zero.data.prepared import Part
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.batches import least_negatives
from colbert_zero.training.losses import too_near
from colbert_zero.training.texts import some_rows

SAMPLE = 512
"""Rows of each part that are looked at."""


class Near(NamedTuple):
    """What is known of a sample of a part's rows.

    Attributes:
        rows: How many.
        candidates: Theirs, without the answers.
        left_out: Of these, score too near to their answer.
        fewer: Rows that keep fewer negatives than the phase asks for.
        without_shares: Rows whose answer scores 0 or less.
    """

    rows: int
    candidates: int
    left_out: int
    fewer: int
    without_shares: int


def check_near(
    name: str, spec: Phase, parts: Mapping[str, Part], say: Callable[[str], None], tell: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Say what is left out of each part, tell of answers that have no shares; returns what the record says of it."""
    found = {part_name: near_in(part, spec) for part_name, part in parts.items()} if spec.max_relative else {}
    for part, (rows, candidates, left_out, fewer, without_shares) in found.items():
        say(
            f"phases.{name}.max_relative: in a sample of {rows:,} rows of {part}, {left_out:,} of {candidates:,} "
            f"candidates score above {spec.max_relative:g} of their answer and are no negatives; {fewer:,} rows have "
            "fewer than asked for"
        )
        if without_shares:
            tell(
                f"phases.{name}.max_relative: in {without_shares:,} of {rows:,} rows of {part} the answer scores 0 or "
                "less, which has no shares, so there only what scores above the answer is left out; scores that are "
                "all above 0, such as a reranker's after its sigmoid, have shares"
            )
    return {part: near._asdict() for part, near in found.items()}


def near_in(part: Part, spec: Phase) -> Near:
    """What `max_relative` leaves out of a sample of a part's rows."""
    asked = None if spec.distils else spec.hard_negatives.of_part(least_negatives(part))
    assert spec.max_relative is not None
    candidates = left_out = fewer = without_shares = 0
    rows = some_rows(part, SAMPLE)["scores"]
    for row in rows:
        near = int(too_near(torch.tensor([row]), spec.max_relative).sum())
        candidates, left_out = candidates + len(row) - 1, left_out + near
        fewer += len(row) - 1 - near < (len(row) - 1 if asked is None else asked)
        without_shares += row[0] <= 0
    return Near(len(rows), candidates, left_out, fewer, without_shares)
