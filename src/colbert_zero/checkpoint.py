"""Training checkpoints: atomic, checked, without pickles."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from transformers.trainer_callback import TrainerState

from colbert_zero.records import atomic_folder, file_fingerprint, read_json, write_json

_STATE = "trainer_state.json"


def save_checkpoint(folder: Path, weights: nn.Module, optimizer: Optimizer, schedule: Any, state: TrainerState) -> None:
    """Write weights (with the loss's own), optimiser, schedule, random states and trainer state, or nothing."""
    with atomic_folder(folder) as temporary:
        save_file({k: v.contiguous() for k, v in weights.state_dict().items()}, temporary / "weights.safetensors")
        optimiser = optimizer.state_dict()
        tensors = {
            f"{index}.{key}": value.contiguous()
            for index, values in optimiser["state"].items()
            for key, value in values.items()
        }
        save_file(tensors, temporary / "optimizer.safetensors")
        write_json(
            temporary / "schedule.json", {"groups": optimiser["param_groups"], "schedule": schedule.state_dict()}
        )
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        save_file(random, temporary / "random.safetensors")
        state.save_to_json(str(temporary / _STATE))
        write_json(temporary / "checksums.json", {f.name: file_fingerprint(f) for f in temporary.iterdir()})


def load_checkpoint(folder: Path, weights: nn.Module) -> None:
    """Put a checkpoint's weights into a module of the same shape."""
    weights.load_state_dict(load_file(folder / "weights.safetensors"))


def load_optimizer(folder: Path, optimizer: Optimizer, schedule: Any) -> None:
    """Put a checkpoint's optimiser state, schedule and random states back."""
    numbers = json.loads((folder / "schedule.json").read_text())
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": numbers["groups"]})
    schedule.load_state_dict(numbers["schedule"])


def load_random_states(folder: Path) -> None:
    """Put a checkpoint's random states back."""
    random = load_file(folder / "random.safetensors")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there with the bytes that were written."""
    try:
        checksums = read_json(folder / "checksums.json")
        return all(file_fingerprint(folder / name) == digest for name, digest in checksums.items())
    except (OSError, ValueError):
        return False


def last_checkpoint(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint of a phase, and the damaged ones that are newer."""
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    damaged: list[Path] = []
    for path in found:
        if is_whole(path):
            return path, damaged
        damaged.append(path)
    return None, damaged
