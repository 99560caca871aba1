"""Training checkpoints: atomic, checked, without pickles."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_folder, damaged_file, read_json, write_checksums, write_json
from colbert_zero.processes import gather_rows, is_main, process_rank, world_size

_FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "schedule.json", "state.json")


def checkpoint_path(work: Path, step: int) -> Path:
    """Where the checkpoint after so many steps lies."""
    return work / f"step-{step}"


def save_checkpoint(
    folder: Path, weights: nn.Module, optimizer: Optimizer, schedule: LRScheduler, state: dict[str, Any]
) -> None:
    """Write all that training goes on from, or nothing. Called by all processes; the main one writes.

    Args:
        folder: The checkpoint's.
        weights: The model, with the objective's own parameters.
        optimizer: Its moments and settings.
        schedule: The learning rate's.
        state: JSON: `id` of whose training it is (all that made it, hashed), `step`, the log, what was spent, positions
            in streamed sources, what the machine did.

    Raises:
        ColbertZeroError: It cannot be written, as on a full disk; what was there before is still whole.
    """
    random = {name: gather_rows(state_[None])[0] for name, state_ in _random_states().items()}
    if not is_main():
        return
    try:
        with atomic_folder(folder) as temporary:
            save_model(weights, str(temporary / "weights.safetensors"))  # tied weights once
            optimiser = optimizer.state_dict()
            tensors = {
                f"{index}.{key}": value.contiguous()
                for index, values in optimiser["state"].items()
                for key, value in values.items()
            }
            save_file(tensors, temporary / "optimizer.safetensors")
            numbers = {"groups": optimiser["param_groups"], "schedule": schedule.state_dict()}
            write_json(temporary / "schedule.json", numbers)
            save_file(random, temporary / "random.safetensors")
            write_json(temporary / "state.json", state)
            write_checksums(temporary)
    except (OSError, SafetensorError) as error:
        before = last_checkpoint(folder.parent, state["id"])[0]
        raise ColbertZeroError(
            f"{folder}: this checkpoint cannot be written ({error}), so training stops. "
            + (f"The one before it, {before.name}, is whole; " if before else "There is none before it; ")
            + "make room or mend the disk, and the same command goes on from there"
        ) from None


def load_weights(folder: Path, weights: nn.Module) -> None:
    """Put a checkpoint's weights into a module of the same shape."""
    load_model(weights, folder / "weights.safetensors")


def load_checkpoint(
    folder: Path, weights: nn.Module, optimizer: Optimizer, schedule: LRScheduler, seed: int
) -> dict[str, Any]:
    """Put everything back that `save_checkpoint` wrote; returns its state.

    Args:
        folder: The checkpoint's.
        weights: As for `save_checkpoint`; `optimizer` and `schedule` too.
        optimizer: See there.
        schedule: See there.
        seed: Of new random states, where another number of processes wrote these.
    """
    load_weights(folder, weights)
    numbers = read_json(folder / "schedule.json")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": numbers["groups"]})
    schedule.load_state_dict(numbers["schedule"])
    state: dict[str, Any] = read_json(folder / "state.json")
    random = load_file(folder / "random.safetensors")
    if len(random["cpu"]) != world_size():
        # Another number of processes than before: new random states, still the same at every attempt.
        seed_process(seed + state["step"])
        return state
    torch.set_rng_state(random["cpu"][process_rank()].clone())  # a row of a table is not aligned as it wants
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"][process_rank()].clone())
    return state


def seed_process(seed: int) -> None:
    """Random states that differ between processes, so that their dropout does; the first has the seed itself."""
    torch.manual_seed(seed + process_rank() * 0x9E3779B9)


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


# ---- Which ones there are, and which are whole


def damage(folder: Path, phase_id: str) -> str | None:
    """What is wrong with a checkpoint; None where every file is there with the bytes that were written."""
    try:
        missing = {*_FILES, "checksums.json"} - {file.name for file in folder.iterdir()}
        if missing or (name := damaged_file(folder, read_all=True)):
            return f"{min(missing)} is missing" if missing else f"{name} is not what was written"
        if read_json(folder / "state.json")["id"] != phase_id:
            return "it belongs to another training"
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        return f"it cannot be read ({error})"
    return None


def checkpoints(work: Path) -> list[Path]:
    """A phase's checkpoints, the newest first, whole or not."""
    found = [path for path in work.glob("step-*") if path.name.removeprefix("step-").isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def last_checkpoint(work: Path, phase_id: str) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of a phase, and what is wrong with those that are newer."""
    damaged: dict[Path, str] = {}
    for path in checkpoints(work):
        if not (wrong := damage(path, phase_id)):
            return path, damaged
        damaged[path] = wrong
    return None, damaged


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; first its name, so that half of one is never taken for a whole."""
    doomed = folder.with_name(f".{folder.name}.deleted.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)
