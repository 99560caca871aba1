"""Floating-point operations, bytes of memory, and hours, from what a phase encodes and scores."""

from dataclasses import dataclass
from typing import Any

import torch

from colbert_zero.models.precision import faster
from colbert_zero.planning.model import Size
from colbert_zero.planning.work import Counts, Devices
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.record import Flops, flops_of

ENCODING, SCORING = (0.2, 0.4), (0.12, 0.33)
"""Shares of a GPU's peak, least and most. Scoring: what late-interaction-kernels reach in training shapes. Encoding:
.4 is the usual aim, nobody published more than .6, and the paper's own training had .05; --calibrate measures."""

ACTIVATIONS = {"bfloat16": 34, "float32": 66}
"""Bytes kept for the backward pass, of a token, a layer and a unit of the encoder's width, where attention keeps no
scores (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2 without its last term; float32 twice but for the masks)."""

WEIGHT, STATE = 4, 16
"""Bytes of a parameter in float32: its weight; in training with its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a phase, all devices together.

    Attributes:
        encoding: As its record will have them (`training.record.flops_of`).
        attention: Products of queries with keys and of weights with values, in all passes; at most, since it counts
            each layer as attending to all.
        maxsim: All products of the forward pass, and the backward through the best ones.
    """

    encoding: Flops
    attention: float
    maxsim: float

    @property
    def recorded(self) -> float:
        """What a phase's record calls `flops`."""
        return sum(self.encoding)


def operations_of(spec: Phase, counts: Counts, size: Size) -> Operations:
    """Operations of what is counted."""
    # Forward, backward twice that, GradCache's second forward, and what is computed again in the backward pass.
    passes = 3 + bool(counts.repeated) + spec.gradient_checkpointing
    return Operations(
        flops_of(spec, size.computing, size.trained, counts.tokens, counts.padding, counts.repeated),
        attention=4.0 * passes * size.layers * size.width * counts.squares,
        maxsim=2.0 * size.dim * counts.products + 4.0 * size.dim * counts.best,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a device, about.

    Attributes:
        states: Weights, gradients, moments.
        embeddings: Of a batch, with their gradient; documents of all devices.
        chunk: Activations of what is encoded at once.
        largest_chunk: Tokens that would fit beside the rest; None where the device's memory is not known.
    """

    states: int
    embeddings: int
    chunk: int
    largest_chunk: int | None

    @property
    def total(self) -> int:
        """Of all."""
        return self.states + self.embeddings + self.chunk


def memory_of(spec: Phase, counts: Counts, steps: int, size: Size, on: Devices, has: float | None) -> Memory:
    """Memory of one device.

    Args:
        spec: The phase.
        counts: Of all its steps.
        steps: Their number.
        size: Of its model.
        on: How many devices there are.
        has: Bytes of one, if known.
    """
    # With gradient_checkpointing a layer keeps what comes in, and one at a time all of it.
    kept_layers = 1 + size.layers * 2 * 2 / ACTIVATIONS["bfloat16"] if spec.gradient_checkpointing else size.layers
    of_token = ACTIVATIONS[_arithmetic(spec, on.kind == "cuda")] * kept_layers * size.width
    encoded = (counts.tokens + counts.padding) / steps / on.count
    kept = min(spec.mini_batch_tokens, encoded)
    vectors = counts.tokens if spec.representation == "multi-vector" else counts.texts
    embeddings = round(2 * 4 * size.dim * vectors / steps)  # as good as all of them are documents'
    states = WEIGHT * size.parameters + (STATE - WEIGHT) * size.trained
    room = None if has is None else max(0, int((0.9 * has - states - embeddings) // of_token))
    return Memory(states, embeddings, round(kept * of_token), room)


def hours_on(device: dict[str, Any], spec: Phase, operations: Operations, count: int) -> tuple[float, float]:
    """Hours on so many devices of the table, least and most; what they exchange is left out."""
    peak = device[_arithmetic(spec, gpu=True)] * 1e12 * count * 3600
    encoding, scoring = operations.recorded + operations.attention, operations.maxsim
    slow, fast = ((encoding / share + scoring / other) / peak for share, other in zip(ENCODING, SCORING, strict=True))
    return fast, slow


def _arithmetic(spec: Phase, gpu: bool) -> str:
    """What `auto` will come to: on every GPU of the table bfloat16; a processor is this one, or is not known."""
    if spec.precision != "auto":
        return spec.precision
    return "bfloat16" if gpu else faster(torch.device("cpu"))
