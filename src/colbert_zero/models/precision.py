"""In which arithmetic an encoder computes: what `auto` comes to on a device, attention fast in it, a copy to encode."""

import copy
from collections import OrderedDict
from contextlib import suppress
from typing import Any, Literal, cast

import torch

from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.checkpoints import Encoder, Trainable

Arithmetic = Literal["float32", "bfloat16"]
ARITHMETICS: tuple[Arithmetic, Arithmetic] = ("float32", "bfloat16")


def faster(device: torch.device) -> Arithmetic:
    """What a device multiplies faster: bfloat16 where it has units for that, float32 else.

    They are CUDA's from compute capability 8.0, and of a CPU AMX, or AVX-512's products of bfloat16 alone, by which a
    training step takes 0.57 to 0.78 of the time: docs/performance.md, "Arithmetic".
    """
    if device.type == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        half = device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bfloat16" if half else "float32"


def decided(asked: str, device: torch.device) -> Arithmetic:
    """What is asked for, and for `auto` what is faster here."""
    return faster(device) if asked == "auto" else cast(Arithmetic, asked)


def why(arithmetic: Arithmetic, processes: int = 1) -> str:
    """What `auto` came to, in words.

    Args:
        arithmetic: That.
        processes: That decided together.
    """
    units = "the device has" if processes == 1 else "every process's device has"
    other = "the device has no" if processes == 1 else "not every process's device has"
    return f"{arithmetic} here: {units if arithmetic == 'bfloat16' else other} units for bfloat16"


def attend_fast(model: Trainable, arithmetic: Arithmetic) -> None:
    """Let a model attend in plain products where it is trained in bfloat16 on a CPU.

    There the backward of PyTorch's fused attention is slower in bfloat16 than in float32, and eats much of what the
    other products gain: docs/performance.md, "Arithmetic". Plain products take more memory.
    """
    if arithmetic == "bfloat16" and model.device.type == "cpu":
        with suppress(ValueError):  # an architecture without it, which keeps its own
            cast(Any, model)[0].get_submodule("model").set_attn_implementation("eager")


def encoding_in(model: Encoder, arithmetic: Arithmetic) -> Encoder:
    """The same model for encoding: in bfloat16 a copy whose encoder's weights are that; else itself.

    Hidden states are float32 again before they are projected, pooled and brought to length 1.

    Args:
        model: Dense or multi-vector; stays as it is.
        arithmetic: Of the copy's encoder.

    Raises:
        ColbertZeroError: bfloat16 of a model that does not begin with a transformer.
    """
    if arithmetic == "float32":
        return model
    first = copy.copy(cast(Any, model)[0])
    if "model" not in dict(first.named_children()):
        raise ColbertZeroError(
            f"the model begins with a {type(first).__name__} and has no encoder to compute in bfloat16; leave out the "
            "precision"
        )
    encoder = copy.deepcopy(first.get_submodule("model"))
    # Weights alone: frequencies of positions, which are buffers, would be off by half a turn at some hundred tokens.
    for weights in encoder.parameters():
        weights.data = weights.data.to(torch.bfloat16)
    first._modules, first._forward_hooks = {**first._modules, "model": encoder}, OrderedDict(first._forward_hooks)
    first.register_forward_hook(_in_float32)
    own = copy.copy(model)
    own._modules = {**own._modules, next(iter(own._modules)): first}
    return own


def _in_float32(_: Any, __: Any, features: dict[str, Any]) -> dict[str, Any]:
    return features | {"token_embeddings": features["token_embeddings"].float()}
