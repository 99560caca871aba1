"""In which arithmetic an encoder computes: what `auto` comes to on a device, and attention that is fast in it."""

from contextlib import suppress
from typing import Any, Literal, cast

import torch

from colbert_zero.models.checkpoints import Trainable

Arithmetic = Literal["float32", "bfloat16"]


def faster(device: torch.device) -> Arithmetic:
    """What a device multiplies faster: bfloat16 where it has matrix units for that, float32 else.

    They are CUDA's from compute capability 8.0, and AMX of a CPU. AVX-512's bfloat16 alone gains too little over its
    float32 to pay for the casts.
    """
    if device.type == "cuda":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        half = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return "bfloat16" if half else "float32"


def decided(asked: str, device: torch.device) -> Arithmetic:
    """What is asked for, and for `auto` what is faster here."""
    return faster(device) if asked == "auto" else cast(Arithmetic, asked)


def why(device: torch.device) -> str:
    """What `decided` went by, in words."""
    units = "matrix units" if faster(device) == "bfloat16" else "no matrix units"
    return f"here: this {'GPU' if device.type == 'cuda' else 'processor'} has {units} for bfloat16"


def attend_fast(model: Trainable, arithmetic: Arithmetic) -> None:
    """Let a model attend in plain products where it is trained in bfloat16 on a CPU.

    There the backward of PyTorch's fused attention is 3.5 times slower in bfloat16 than in float32, and eats all that
    the other products gain.
    """
    if arithmetic == "bfloat16" and model.device.type == "cpu":
        with suppress(ValueError):  # an architecture without it, which keeps its own
            cast(Any, model)[0].get_submodule("model").set_attn_implementation("eager")
