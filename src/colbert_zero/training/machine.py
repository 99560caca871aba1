"""What the machine did for a training, or a ranking, which a recipe does not say.

All of it is recorded. Who goes on with the training keeps the arithmetic, and what computes MaxSim and attention where
that host can; a change of the rest is told.
"""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from colbert_zero.maxsim.backends import can_score, refused, wanted
from colbert_zero.models.checkpoints import Trainable
from colbert_zero.models.precision import Arithmetic, decided, faster
from colbert_zero.processes import gather_objects

_TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")

_told: set[str] = set()


def agreed_precision(asked: str, device: torch.device) -> Arithmetic:
    """What a phase's `precision` comes to; `auto` is bfloat16 only if every process's device is faster in it."""
    found = set(gather_objects(decided(asked, device)))
    return found.pop() if len(found) == 1 else "float32"


def machine_of(model: Trainable, precision: Arithmetic = "float32") -> dict[str, Any]:
    """What this host would do: device, host, torch, threads a process, arithmetic, what computes MaxSim and attention.

    All processes call it, and all score alike: with a backend that is right on every one's device.
    """
    faults = {name: found for of_one in gather_objects(refused(model.device)) for name, found in of_one.items()}
    return {
        "device": str(model.device),
        "host": socket.gethostname(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "maxsim": next(name for name in wanted(model.device) if name not in faults),
        "maxsim_refused": faults,
        "precision": precision,
        "attention": attention_of(model),
        "tf32": tf32(),
    }


def attention_of(model: Trainable) -> str | None:
    """How a model attends; None of one that does not begin with a transformer."""
    encoder = dict(model[0].named_children()).get("model")
    return getattr(getattr(encoder, "config", None), "_attn_implementation", None)


def tf32() -> dict[str, str]:
    """What speaks of TF32 in place of float32 in CUDA's products, with its value: the environment, torch's own flag."""
    asked = {name: value for name in _TF32_VARIABLES if (value := os.environ.get(name))}
    if (flag := str(torch.backends.cuda.matmul.fp32_precision)) not in ("none", "ieee"):
        asked["torch.backends.cuda.matmul.fp32_precision"] = flag
    return asked


def tell_tf32(machine: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Tell, once a process, where products of float32 are TF32's on this machine's device."""
    asked = _in_words({name: value for name, value in machine["tf32"].items() if value != "0"})
    if asked and machine["device"].startswith("cuda") and asked not in _told:
        _told.add(asked)
        tell(f"products of float32 may be computed as TF32, with 10 bits in place of 23: {asked}; unset it for float32")


def going_on(
    model: Trainable, recorded: dict[str, Any], own: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """What a resumed training does: as its checkpoint recorded where this host can, and told where it cannot.

    Args:
        model: Gets the recorded attention.
        recorded: `machine_of` where the checkpoint was written.
        own: `machine_of` here.
        tell: Tells the user.
    """
    kept = dict(own)
    kept["precision"] = recorded.get("precision", own["precision"])  # older checkpoints have none
    if recorded["maxsim"] != own["maxsim"] and can_score(recorded["maxsim"], model.device):
        kept["maxsim"] = recorded["maxsim"]
    if recorded["attention"] != own["attention"]:
        with suppress(ImportError, ValueError):  # this host cannot, which is told below
            _transformer(model).set_attn_implementation(recorded["attention"])
            kept["attention"] = recorded["attention"]
            if "flash" not in recorded["attention"] and hasattr(model[0], "data_collator"):
                # It takes the padding out for flash attention, which the others need.
                setattr(model[0], "data_collator", None)  # noqa: B010
    if kept["precision"] == "bfloat16" and faster(model.device) == "float32" == own["precision"]:
        tell("goes on in bfloat16, as it began, though this host is faster in float32")
    pairs = {key: (recorded[key], kept[key]) for key in ("maxsim", "attention", "torch", "threads")}
    pairs["device"] = torch.device(recorded["device"]).type, model.device.type
    if "tf32" in recorded:  # older checkpoints have none
        before, here = (_in_words(asked["tf32"]) or "unset" for asked in (recorded, kept))
        pairs["tf32"] = before, here
    if changed := [f"{key} {before} → {here}" for key, (before, here) in pairs.items() if before != here]:
        tell(f"goes on otherwise than it began, since this host differs: {', '.join(changed)}; the numbers may too")
    return kept


def _in_words(asked: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in asked.items())


def _transformer(model: Trainable) -> Any:
    return model[0].get_submodule("model")
