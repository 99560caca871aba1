"""What a training is made of."""

from dataclasses import dataclass, field
from typing import Any

from colbert_zero.data.order import Order
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.heads import Head
from colbert_zero.models.scored_tokens import ScoredTokens
from colbert_zero.recipe.schema import Phase


@dataclass(frozen=True)
class Training:
    """All that the training of a phase is made of.

    Attributes:
        name: The phase.
        id: Fingerprint of all that was asked for (`Study.phase_id`); a checkpoint of another id is not taken.
        chain: The phases before it and itself.
        parent: Id of the phase it starts from.
        start: Folder or Hub id of its start.
        spec: The phase's recipe entry.
        alignment: Prompts, markers, lengths.
        seed: Of dropout, and of a new head's random weights.
        order: Of the data.
        steps: Optimiser steps.
        dim: Width of a token vector.
        head: What it has where its start has no head of its kind, or where a new one is asked for.
        scored: Skip list, query expansion and token pooling.
        options: `attn_implementation`; `revision` and `trust_remote_code` of a Hub start.
    """

    name: str
    id: str
    chain: tuple[str, ...]
    parent: str | None
    start: str
    spec: Phase
    alignment: Alignment
    seed: int
    order: Order
    steps: int
    dim: int
    head: Head = field(default_factory=Head)
    scored: ScoredTokens = field(default_factory=ScoredTokens)
    options: dict[str, Any] = field(default_factory=dict)
