"""What processes exchange: documents for in-batch negatives, and gradients. With one process nothing happens."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from colbert_zero.maxsim import Packed


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
    rank = dist.get_rank()
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sum(sizes[:rank])


def gather_documents(documents: Packed) -> Packed:
    """Documents of all processes; the gradient of this process's own is summed over all, in one exchange."""
    if world_size() == 1:
        return documents
    lengths, _ = gather_rows(documents.lengths.to(documents.values.device))
    return Packed(_Gather.apply(documents.values), lengths.cpu())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gathered, ctx.start = gather_rows(values)
        ctx.count = len(values)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten().float() for parameter in trained if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= world_size()
    start = 0
    for parameter in trained:
        part = flat[start : start + parameter.numel()].view_as(parameter)
        parameter.grad = part.to(parameter.dtype)
        start += parameter.numel()
