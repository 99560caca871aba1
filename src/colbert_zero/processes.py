"""What processes that train together tell each other. With one process nothing happens."""

import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colbert_zero.errors import ColbertZeroError

T = TypeVar("T")

LAG_SECONDS = 60.0
"""How long a shared disk may take to show one machine what another has written."""


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes and prints."""
    return process_rank() == 0


def wait() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def agree(value: int) -> int:
    """The main process's answer, for all: what one process sees on a shared disk, another may not see yet."""
    if world_size() == 1:
        return value
    answer = torch.tensor([value])
    dist.broadcast(answer, 0)
    return int(answer)


def made_by_main(make: Callable[[], Path], open_made: Callable[[Path], T]) -> T:
    """What the main process makes, alone, in a folder; the others wait for it and open it.

    Args:
        make: Called in the main process only; returns the folder, also of what was there already.
        open_made: Called in every process.

    Raises:
        ColbertZeroError: The folder does not appear here: the disk is not shared.
    """
    folder = from_main(str(make()) if is_main() else None)
    appears(Path(folder))
    return open_made(Path(folder))


def from_main(value: Any) -> Any:
    """The main process's value, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def appears(path: Path) -> None:
    """Wait until what another process made is to be seen here: a shared disk may lag.

    Raises:
        ColbertZeroError: It is not after `LAG_SECONDS`.
    """
    end = time.monotonic() + LAG_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise ColbertZeroError(
                f"{path}: made by the main process, but after {LAG_SECONDS:.0f} s not to be seen by process "
                f"{process_rank()} on {socket.gethostname()}; put --out on a disk that all machines share"
            )
        time.sleep(0.2)


def gather_objects(value: T) -> list[T]:
    """Every process's value, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share(global_batch_size: int, key: str) -> int:
    """Queries of a global batch that each process takes.

    Raises:
        ColbertZeroError: It does not divide; names the nearest sizes that do.
    """
    world = world_size()
    if global_batch_size % world:
        below = global_batch_size // world * world
        sizes = " and ".join(str(size) for size in (below, below + world) if size >= 2)
        raise ColbertZeroError(
            f"{key}: {global_batch_size} queries cannot be shared out evenly among {world} processes; "
            f"the nearest sizes that can are {sizes}"
        )
    return global_batch_size // world


def sums(*values: float) -> list[float]:
    """Each value summed over the processes, in one exchange."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, one process after the other, and where this process's begin. No gradient.

    Args:
        rows: (n, …); n may differ between processes, also be 0.
    """
    if world_size() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sum(sizes[: process_rank()])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange of float32.

    A parameter without a gradient in every process keeps none; the optimiser leaves it alone, as with one process.
    """
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    given = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    trained = [parameter for parameter, anywhere in zip(trained, given.tolist(), strict=True) if anywhere]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for parameter, part in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
