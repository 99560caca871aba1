"""What computes MaxSim on a device: what was asked for, if it does so rightly there.

"torch" (`cpu`) scores on a CPU always. On CUDA the environment variable COLBERT_ZERO_MAXSIM chooses: "triton"
(`triton_kernels`: bf16 and fp16 are multiplied as they are, with float32 sums), "torch", "late-interaction-kernels"
(`late_interaction`: float32 inputs are multiplied in fp16), "plain", or "auto", the default: "triton" where it can be
imported, else "torch". What "auto" takes follows from arithmetic; it has not been measured.

Before a backend first scores in a process, it scores a small case on this very device. One that fails, or differs from
the definition computed in float64 on the CPU, is not used: "torch" takes its place, and `plain` that of "torch".
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from sentence_transformers.util import get_device_name
from torch import Tensor

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.maxsim.packed import Spans, row_starts

BACKEND_VARIABLE = "COLBERT_ZERO_MAXSIM"

BACKENDS = ("auto", "torch", "triton", "late-interaction-kernels", "plain")

_MODULES = {"torch": "cpu", "triton": "triton_kernels", "late-interaction-kernels": "late_interaction"}

Kernels = Callable[[Spans, Spans, int], Tensor]
"""Scores of queries and documents, given n_ways (0: all pairs)."""

TOLERANCE = 0.02
"""Relative and absolute: products in fp16 and sums written in bf16 pass, a wrong token does not."""

_kept: list[str] = []

_told: set[str] = set()


def kernels(backend: str) -> Kernels:
    """A backend's function.

    Raises:
        ImportError: What it needs is not installed.
    """
    scores: Kernels = import_module(f"colbert_zero.maxsim.{_MODULES.get(backend, backend)}").scores
    return scores


def backend(device: torch.device) -> str:
    """What scores on a device: the choice of `scoring_with`, else the first of `wanted` that is right there.

    Raises:
        ColbertZeroError: The environment names no backend, or one that is not installed.
    """
    return _kept[-1] if _kept else next(name for name in wanted(device) if fault(name, device.type) is None)


def backend_here() -> str:
    """What scores on the device that models are loaded onto; raises as `backend`."""
    return backend(torch.device(get_device_name()))


def wanted(device: torch.device) -> list[str]:
    """The backend that the environment chooses for a device, and what takes its place.

    Raises:
        ColbertZeroError: The environment names no backend, or one that is not installed.
    """
    chosen = os.environ.get(BACKEND_VARIABLE) or "auto"
    if chosen not in BACKENDS:
        raise ColbertZeroError(f"{BACKEND_VARIABLE}={chosen!r} is none of {', '.join(BACKENDS)}")
    if device.type != "cuda":
        chosen = "torch"
    elif chosen == "auto":
        chosen = "triton" if find_spec("triton") else "torch"
    elif not _installed(chosen):
        raise ColbertZeroError(
            f"{BACKEND_VARIABLE}={chosen}: not installed; pip install colbert-zero[gpu], or unset it"
        )
    return ["plain"] if chosen == "plain" else list(dict.fromkeys((chosen, "torch", "plain")))


def refused(device: torch.device) -> dict[str, str]:
    """Backends that would score on a device and do not, each with its fault."""
    faults = {}
    for name in wanted(device):
        if (found := fault(name, device.type)) is None:
            break
        faults[name] = found
    return faults


def tell_refused(faults: dict[str, str], tell: Callable[[str], None]) -> None:
    """Tell what `refused` found, once a process."""
    for name, found in faults.items():
        if name not in _told:
            _told.add(name)
            tell(f"MaxSim: the backend {name} is not used, since on a small case on this device it {found}")


def can_score(backend: str, device: torch.device) -> bool:
    """Whether a backend works on this host's device."""
    there = backend in ("torch", "plain") or (device.type == "cuda" and _installed(backend))
    return there and fault(backend, device.type) is None


def _installed(backend: str) -> bool:
    return backend in ("torch", "plain") or find_spec(backend.replace("-", "_")) is not None


@contextmanager
def scoring_with(backend: str) -> Iterator[None]:
    """Inside, this backend scores, whatever the environment says: a training keeps the one it began with."""
    _kept.append(backend)
    try:
        yield
    finally:
        _kept.pop()


# ---- The comparison


@cache
def fault(backend: str, device_type: str) -> str | None:
    """What is wrong with a backend on the present device of a type, in words that follow "it"; None if it is right."""
    device = torch.device(device_type)
    with torch.inference_mode(False), torch.enable_grad():
        for dtype in _types(device) if backend != "plain" else ():
            for n_ways in (0, 2):
                try:
                    found = _computed(kernels(backend), device, dtype, n_ways)
                except Exception as error:  # of a compiler, a driver, a library that is not there
                    return f"fails with {type(error).__name__}: {reason(error)}"
                right = _computed(kernels("plain"), torch.device("cpu"), dtype, n_ways, exact=True)
                for what, mine, its in zip(("scores", "gradients", "gradients"), found, right, strict=True):
                    if not torch.allclose(mine, its, rtol=TOLERANCE, atol=TOLERANCE):
                        return f"gives other {what} in {str(dtype)[6:]} than the definition, by {_apart(mine, its):.1g}"
    return None


def _types(device: torch.device) -> list[torch.dtype]:
    """In which embeddings reach MaxSim there."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return [torch.float32, torch.bfloat16] if half else [torch.float32]


def _apart(mine: Tensor, its: Tensor) -> float:
    return (mine - its).abs().max().item()


def _computed(
    scores: Kernels, device: torch.device, dtype: torch.dtype, n_ways: int, exact: bool = False
) -> tuple[Tensor, ...]:
    """Scores and both gradients of the small case, float64 on the CPU.

    Each document has, for each of eight directions, one token that is far nearer to it than all others, so that
    rounding changes no best token: one direction's at its beginning, one's at its end. Texts of one token, of none,
    and as long as those of a usual recipe.
    """
    generator = torch.Generator().manual_seed(0)
    q_lengths = torch.tensor([32, 0, 32, 1, 32, 40])
    d_lengths = torch.tensor([180, 0, 1, 8, 64, 33, 130, 17, 32, 9, 16, 65][: len(q_lengths) * n_ways or 8])
    directions = torch.eye(8, 128)
    q = 0.05 * torch.randn(int(q_lengths.sum()), 128, generator=generator)
    q += directions[torch.arange(len(q)) % 8]
    d = 0.05 * torch.randn(int(d_lengths.sum()), 128, generator=generator)
    for length, start in zip(d_lengths.tolist(), row_starts(d_lengths).tolist(), strict=False):
        if length >= 8:
            between = torch.randperm(length - 2, generator=generator)[:6] + 1
            d[torch.cat([torch.tensor([0]), between, torch.tensor([length - 1])]) + start] += directions
    weights = torch.randn(len(q_lengths), n_ways or len(d_lengths), generator=generator)
    weights *= torch.rand(weights.shape, generator=generator) < 0.7
    sides = [values.to(dtype).to(device, torch.float64 if exact else dtype).requires_grad_() for values in (q, d)]
    found = scores(
        Spans(sides[0], row_starts(q_lengths)[:-1], q_lengths),
        Spans(sides[1], row_starts(d_lengths)[:-1], d_lengths),
        n_ways,
    )
    gradients = torch.autograd.grad((found * weights.to(found)).sum(), sides)
    return tuple(tensor.detach().to("cpu", torch.float64) for tensor in (found, *gradients))
