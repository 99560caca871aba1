"""What the layers of an encoder add: the same queries ranked with them and without."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.shrinking import scores_of
from colbert_zero.evaluation.significance import bootstrap_means, percentile_interval
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.layers import without_layers


def layers_add(
    model: Encoder, collections: Sequence[Collection], whose: str, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """nDCG@10 with the layers and without, the mean over collections, each with the same weight.

    Args:
        model: Dense or multi-vector; stays as it is.
        collections: Small ones.
        whose: Named where it cannot be found out.
        say: Told why, then.

    Returns:
        What `LayersRecord` in training/record has; None where the layers cannot be taken out.
    """
    started = time.monotonic()
    try:
        bare = without_layers(model, whose)
    except ColbertZeroError as error:
        say(str(error))
        return None
    scores = [(scores_of(model, collection), scores_of(bare, collection)) for collection in collections]
    drawn = bootstrap_means([full - without for full, without in scores]).mean(axis=0)
    means = np.mean([[full.mean(), without.mean()] for full, without in scores], axis=0).tolist()
    return {
        "queries": sum(len(full) for full, _ in scores),
        "documents": sum(collection.documents_count for collection in collections),
        "score": means[0],
        "without": means[1],
        "difference": means[0] - means[1],
        "interval": list(percentile_interval(drawn)),
        "seconds": round(time.monotonic() - started, 3),
    }
