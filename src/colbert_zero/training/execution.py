"""How a phase runs its encoder: with fewer activations kept, compiled. Neither changes what is learnt."""

from typing import Any

from transformers import PreTrainedModel

from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.pooling import with_pooling
from colbert_zero.recipe.schema import Phase


def as_trained(model: Encoder, spec: Phase) -> Encoder:
    """The same weights as a phase runs them in training, without token pooling.

    Args:
        model: Its evaluations are not concerned, save that its layers recompute while they are in training.
        spec: The phase.
    """
    encoder: Any = model[0].get_submodule("model")
    if spec.gradient_checkpointing:
        recompute(encoder)
    return with_pooling(model, 1)  # clustering teaches nothing, and takes a while for each document


def recompute(encoder: PreTrainedModel) -> None:
    """Let an encoder's layers keep what comes in alone, and compute the rest again in the backward pass.

    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    # Older releases of transformers have it under this old name alone, newer ones deprecate that.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})
