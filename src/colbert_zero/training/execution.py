"""How a phase runs its encoder: with fewer activations kept, compiled. Neither changes what is learnt."""

import copy
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, cast

import torch
from sentence_transformers import CrossEncoder
from transformers import PreTrainedModel

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.models.checkpoints import Encoder, Trainable
from colbert_zero.models.pooling import with_pooling
from colbert_zero.recipe.schema import Phase
from colbert_zero.training.gradcache import Precision


def as_trained(model: Trainable, spec: Phase) -> Trainable:
    """The same weights as a phase runs them in training, without token pooling.

    Args:
        model: Its evaluations are not concerned, save that its layers recompute while they are in training.
        spec: The phase.
    """
    encoder: Any = model[0].get_submodule("model")
    if spec.gradient_checkpointing:
        recompute(encoder)
    # Clustering teaches nothing, and takes a while for each document.
    own = model if isinstance(model, CrossEncoder) else with_pooling(cast(Encoder, model), 1)
    return compiled(own) if spec.compile else own


def autocast_of(arithmetic: str, device: torch.device) -> Precision:
    """The context that a pass over a batch is encoded in."""
    if arithmetic == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def recompute(encoder: PreTrainedModel) -> None:
    """Let an encoder's layers keep what comes in alone, and compute the rest again in the backward pass.

    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    # Older releases of transformers have it under this old name alone, newer ones deprecate that.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def compiled(model: Trainable, **options: Any) -> Trainable:
    """The same weights with an encoder that is compiled; the model itself, which is evaluated and saved, stays.

    Args:
        model: In training.
        options: Of `torch.compile`.
    """
    own, transformer = copy.copy(model), copy.copy(model[0])
    encoder: Any = copy.copy(transformer.get_submodule("model"))
    # Random numbers as they are without compiling: the two passes of GradCache are two graphs with one dropout.
    encoder.compile(**({"dynamic": True, "options": {"fallback_random": True}} | options))
    transformer._modules = {**transformer._modules, "model": encoder}
    own._modules = {**own._modules, next(iter(own._modules)): transformer}
    return own


def check_compiler(device: torch.device, whose: str) -> None:
    """Refuse to compile where there is nothing to compile with.

    Raises:
        ColbertZeroError: Says what is missing, and the mend.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds, which others need not wait

    missing = ""
    try:
        get_cpp_compiler()
    except Exception as error:  # whatever searching for a compiler on this host may raise
        missing = reason(error)
    if device.type == "cuda" and find_spec("triton") is None:
        missing = "Triton is not installed"
    if missing:
        raise ColbertZeroError(f"{whose}.compile: cannot be done on this host ({missing}); install it, or leave it out")
