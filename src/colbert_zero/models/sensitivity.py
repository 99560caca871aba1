"""What each part of an encoder does: how far token vectors move without it, one part at a time.

A head is left out by zeros in its columns of the matrix that joins the heads, a layer's feed-forward part by zeros in
the matrix out of its neurons; biases and residual connections stay. A layer is left out whole.

Source of the question: Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (arXiv 1905.10650), section 3.1,
which leaves out one head at a time; there what changes is a task's score.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor

from colbert_zero.models.axes import Table, table_of
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.shrinking import (
    both_ways,
    deviation_of,
    encoder_of,
    keep_layers,
    layers_in,
    with_encoder,
)
from colbert_zero.watch import stop_if_asked

FEW_TEXTS = 8
"""That token vectors are compared of, where there are more."""


class Sensitivity(TypedDict):
    """1 − the mean cosine of token vectors without a part and with it; 0: the part does nothing.

    Attributes:
        heads: Of each layer each head's.
        attention: Of each layer's heads together.
        neurons: Of each layer's feed-forward part.
        layers: Of each layer as a whole; None where it cannot be left out.
        texts: How many were encoded, as queries and as documents.
    """

    heads: list[list[float]]
    attention: list[float]
    neurons: list[float]
    layers: list[float | None]
    texts: int


def sensitivity(
    model: Encoder, texts: list[str], whose: str, progress: Callable[[int, int], None] | None = None
) -> Sensitivity:
    """Leave out each head, each layer's attention and feed-forward part, and each layer, one at a time.

    Args:
        model: Dense or multi-vector; stays as it is.
        texts: Encoded as queries and as documents, once for each part.
        whose: How messages of errors begin.
        progress: Called after each part with how many were left out, and are to be.

    Raises:
        ColbertZeroError: The model type has no table.
    """
    encoder = encoder_of(model, whose)
    table = table_of(encoder, whose)
    heads, layers = int(getattr(encoder.config, table.keys["heads"])), range(layers_in(encoder, table))
    own = copy.deepcopy(encoder)
    state, without, before = own.state_dict(), with_encoder(model, own), both_ways(model, texts)
    leave = [layer for layer in layers if len(layers) > 1 and not (layer == 0 and table.first_stays)]
    trials, done = len(layers) * (heads + 2) + len(leave), 0

    def moved(other: Encoder) -> float:
        nonlocal done
        stop_if_asked()
        found = 1 - deviation_of(before, both_ways(other, texts)).cosine
        done += 1
        if progress:
            progress(done, trials)
        return found

    def zeroed(part: Tensor) -> float:
        with _zeros(part):
            return moved(without)

    found = Sensitivity(heads=[], attention=[], neurons=[], layers=[], texts=len(texts))
    for layer in layers:
        begin = table.layer.format(layer)
        joining = state[f"{begin}{_from_heads(table)}.weight"]
        found["heads"].append([zeroed(columns) for columns in joining.chunk(heads, dim=1)])
        found["attention"].append(zeroed(joining))
        found["neurons"].append(zeroed(state[f"{begin}{table.out_of}.weight"]))
        others = [other for other in layers if other != layer]
        found["layers"].append(
            moved(with_encoder(model, keep_layers(encoder, others, whose))) if layer in leave else None
        )
    return found


def _from_heads(table: Table) -> str:
    """The module of a layer whose matrix has the heads, head by head, as its columns."""
    return next(name for name, array in table.within.items() if array.axes == ("hidden", "heads"))


@contextmanager
def _zeros(part: Tensor) -> Iterator[None]:
    """A view of a weight is 0 inside, and as it was after."""
    kept = part.clone()
    with torch.no_grad():
        part.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            part.copy_(kept)
