"""What processes exchange: documents for in-batch negatives, and gradients. With one process nothing happens."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from colbert_zero.maxsim import Packed
from colbert_zero.processes import world_size


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
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
