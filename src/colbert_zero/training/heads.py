"""A new head that starts from what a phase's documents are like."""

from collections.abc import Iterator, Mapping

import torch

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Part
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.heads import last_layer, principal_directions
from colbert_zero.processes import from_main, is_main
from colbert_zero.training.batches import document_texts
from colbert_zero.training.gradcache import Precision

TOKENS = 100_000
"""Of documents, whose principal directions a head starts with."""

_TEXTS_AT_ONCE = 32


@torch.no_grad()
def fit_head(model: Encoder, parts: Mapping[str, Part], order: Order, precision: Precision) -> None:
    """Set a new head's last layer to the principal directions of the documents that the phase reads first.

    All processes get what the main one finds, so that their number changes nothing.
    """
    with precision():
        found = principal_directions(model, _documents(parts, order), TOKENS) if is_main() else None
    last_layer(model).linear.weight.copy_(from_main(found))


def _documents(parts: Mapping[str, Part], order: Order) -> Iterator[list[str]]:
    """Documents of the order's first pass, some at a time."""
    for step in range(order.batches_per_epoch):
        name, rows = order.batch(step)
        for first in range(0, len(rows), _TEXTS_AT_ONCE):
            read = parts[name].read(rows[first : first + _TEXTS_AT_ONCE])
            yield document_texts({key: value for key, value in read.items() if key != "negatives"})
