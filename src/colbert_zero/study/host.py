"""What a run on this host would use and find, each problem with its mend."""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import datasets
import huggingface_hub
import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from rich.filesize import decimal
from sentence_transformers.util import get_device_name

from colbert_zero import launcher
from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import user_cache, writing
from colbert_zero.maxsim.backends import fault, wanted
from colbert_zero.models.precision import faster
from colbert_zero.training.machine import tf32

_HUB_SECONDS = 5

_LEAST_MEMORY = 2 << 30
"""Bytes; imports alone take half of it."""

_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

_SHOWN = (
    "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET",
    "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ENABLE_HF_TRANSFER", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_OFFLINE", "HF_XET_CACHE",
    "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE",
)  # fmt: skip
"""Variables of the Hub's client whose values are no secrets; of the others it is told that they are set."""

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        found: Its value here.
        problem: What is wrong with it, and the mend; "" if nothing is.
        stops: Whether the problem would stop a run.
    """

    name: str
    found: str
    problem: str = ""
    stops: bool = False


def look(out: Path) -> Iterator[tuple[str, Finding]]:
    """Everything that can be known without a recipe, each under its heading.

    Args:
        out: Where a run would write.
    """
    topics: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "devices": _devices,
        "MaxSim": _maxsim,
        "processor": _processor,
        "memory": _memory,
        "disks": lambda: _disks(out),
        "Hub": _hub,
        "launcher": _launcher,
        "terminal": _terminal,
    }
    for topic, findings in topics.items():
        try:
            yield from ((topic, finding) for finding in findings())
        except Exception as error:  # of drivers and of files of /sys as nobody has seen them
            yield topic, Finding("", "", f"cannot be looked at: {type(error).__name__}: {reason(error)}")


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Finding("colbert-zero", metadata.version("colbert-zero"))
    shown = ("torch", "transformers", "sentence-transformers", "datasets", "huggingface-hub")
    for requirement in map(Requirement, metadata.requires("colbert-zero") or []):
        extra = str(requirement.marker or "").partition("extra ==")[2].strip(" \"'")
        if extra == "dev":
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if extra:
                yield Finding(requirement.name, f"not installed; pip install 'colbert-zero[{extra}]'")
            else:
                mend = f"is missing; pip install '{requirement.name}{requirement.specifier}'"
                yield Finding(requirement.name, "–", mend, True)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            mend = f"{requirement.specifier} is needed; pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(requirement.name, version, mend, not extra)
        elif extra or requirement.name in shown:
            yield Finding(requirement.name, version)


def _devices() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        gpu, (free, total) = torch.cuda.get_device_properties(number), torch.cuda.mem_get_info(number)
        yield Finding(
            f"cuda:{number}",
            f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {decimal(free)} of {decimal(total)} free",
        )
    gpus = torch.cuda.is_available()
    problem = ""
    if not gpus and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        problem = "CUDA_VISIBLE_DEVICES is empty and hides every GPU; unset it"
    elif not gpus and any(Path("/dev").glob("nvidia[0-9]*")):
        problem = (
            f"there is an NVIDIA device that torch {torch.__version__} does not use; install a CUDA build of torch for "
            "which the driver (nvidia-smi) is new enough"
        )
    device = get_device_name()
    yield Finding("a run uses", device, problem)
    found = faster(torch.device(device))
    yield Finding("precision: auto", f"{found}, {'in hardware' if found == 'bfloat16' else 'the faster one here'}")
    if value := os.environ.get("ACCELERATE_MIXED_PRECISION"):
        yield Finding("ACCELERATE_MIXED_PRECISION", f"{value}, not read: the recipe's `precision` decides")
    for name, value in tf32().items():
        problem = "changes products of float32 on CUDA, which the recipe's `precision` alone should say; unset it"
        yield Finding(name, value, "" if value == "0" else problem)


def _maxsim() -> Iterator[Finding]:
    device = torch.device(get_device_name())
    try:
        names = wanted(device)
    except ColbertZeroError as error:
        yield Finding("backend", "–", str(error), True)
        return
    for name in names:
        started = time.monotonic()
        wrong = fault(name, device.type)
        seconds = time.monotonic() - started
        if wrong is None:
            yield Finding("a run uses", f"{name}, right on a small case here ({seconds:.1f} s)")
            return
        yield Finding(name, "not used", f"on a small case here it {wrong}; update torch, the driver or {name}")


def _processor() -> Iterator[Finding]:
    features = ", ".join(cpu_features()) or "none of " + ", ".join(_CPU_FEATURES)
    usable, threads = _usable_cores(), torch.get_num_threads()
    yield Finding("features", features)
    yield Finding("cores", f"{usable:g} of {os.cpu_count()} may be used")
    problem = ""
    if threads > max(1, usable):
        problem = f"more than cores, so that they wait for each other; OMP_NUM_THREADS={max(1, int(usable))}"
    elif threads < usable / 2 and launcher.world() == 1:
        problem = f"cores lie idle; OMP_NUM_THREADS={int(usable)}"
    asked = os.environ.get("OMP_NUM_THREADS", "unset")
    yield Finding("threads", f"{threads} (OMP_NUM_THREADS {asked})", problem)


def processor() -> str:
    """The processor's name; what Python calls it where the system does not say."""
    named = (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name"))
    return next(named, "") or platform.processor()


def cpu_features() -> list[str]:
    """Of the instructions that arithmetic is chosen and timed by, those that this processor has."""
    flags = _cpu_flags()
    return [name for name in _CPU_FEATURES if name in flags]


def _cpu_flags() -> set[str]:
    flags = (line.partition(":")[2] for line in _cpu_lines() if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _usable_cores() -> float:
    """Cores that this process may run on, and that its control group lets it use."""
    allowed = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota, period = (_cgroup("cpu.max") or "max 1").split()
    return allowed if quota == "max" else min(allowed, int(quota) / int(period))


def _cgroup(name: str) -> str | None:
    """A file of this process's control group, version 2."""
    try:
        return (_CGROUPS / name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    free, told = memory.available, f"{decimal(memory.available)} of {decimal(memory.total)} free"
    limit = _cgroup("memory.max") or _cgroup("memory/memory.limit_in_bytes") or "max"
    if limit.isdecimal() and int(limit) < memory.total:
        used = _cgroup("memory.current") or _cgroup("memory/memory.usage_in_bytes") or "0"
        free = min(free, int(limit) - int(used))
        told += f"; the control group allows {decimal(int(limit))}, {decimal(max(0, free))} of it free"
    problem = "too little to train in; end other programs or ask the scheduler for more" if free < _LEAST_MEMORY else ""
    yield Finding("memory", told, problem)
    shared, problem = Path("/dev/shm"), ""  # noqa: S108
    if torch.cuda.device_count() > 1 and not os.access(shared, os.W_OK):
        problem = "NCCL exchanges between GPUs through it; docker run --shm-size 1g, or NCCL_SHM_DISABLE=1"
    found = decimal(shutil.disk_usage(shared).total) if shared.is_dir() else "not there"
    yield Finding(str(shared), found, problem)


def _disks(out: Path) -> Iterator[Finding]:
    told, stops = list[str](), False
    if out.exists() and not out.is_dir():
        yield Finding("--out", str(out), "not a folder; name another", True)
        return
    try:
        # Not in the folder itself: what a run has half-written there is its own to delete.
        with (
            tempfile.TemporaryDirectory(dir=_existing(out), prefix=".doctor-") as trial,
            writing(Path(trial), told.append),
        ):
            pass
    except ColbertZeroError as error:
        told, stops = [str(error)], True
    except OSError as error:
        told, stops = [f": cannot be written ({error.strerror}); mend its rights, or name another by --out"], True
    yield Finding("--out", _free(out), "".join(told).partition(": ")[2], stops)
    cache = user_cache()
    problem = "the user's cache cannot be written, so each study parses its own; XDG_CACHE_HOME names another"
    yield Finding("parsed docstrings", _free(cache) if cache else "in each study", "" if cache else problem)
    for name, variable, path in (
        ("models of the Hub", "HF_HUB_CACHE", constants.HF_HUB_CACHE),
        ("data sets of the Hub", "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE),
    ):
        problem = f"cannot be written, so nothing new can be had from the Hub; HF_HOME or {variable} names another"
        writable = os.access(_existing(Path(path)), os.W_OK)
        yield Finding(name, _free(Path(path)), "" if writable else problem)


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _free(path: Path) -> str:
    return f"{path}, {decimal(shutil.disk_usage(_existing(path)).free)} free"


def _hub() -> Iterator[Finding]:
    offline = "models and data sets come from folders and the caches alone"
    endpoint = _without_user(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        yield Finding(endpoint, f"not asked, since HF_HUB_OFFLINE is set: {offline}")
    else:
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
            yield Finding(endpoint, "answers")
        except Exception as error:  # the Hub's client lets through the errors of its HTTP library, which changed
            mend = (
                f"{_without_user(reason(error))}: {offline}; HTTPS_PROXY leads through a proxy, HF_ENDPOINT to a mirror"
            )
            yield Finding(endpoint, "does not answer", mend)
    for name in sorted(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY")):
            yield Finding(name, _without_user(os.environ[name]) if name in _SHOWN else "set")


def _without_user(text: str) -> str:
    """The text, its addresses without a user's name and password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _launcher() -> Iterator[Finding]:
    names = [name for name in launcher.VARIABLES if os.environ.get(name)]
    processes = f"{launcher.world()} process{'es' * (launcher.world() > 1)}"
    told = ", ".join(f"{name}={os.environ[name]}" for name in names) or "no launcher's variables"
    try:
        launcher.check_launched()
        yield Finding(processes, told)
    except ColbertZeroError as error:
        yield Finding(processes, told, str(error), True)
    gpus = torch.cuda.device_count()
    if gpus > 1 and launcher.world() == 1:
        yield Finding("GPUs", f"one of {gpus} is used; for all: torchrun --nproc-per-node {gpus} -m colbert_zero …")
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks not in ("", "1") and launcher.world() == 1:
        problem = "srun starts them without telling them of each other; let it start torchrun, as in docs/scale.md"
        yield Finding("Slurm", f"{tasks} tasks", problem)


def _terminal() -> Iterator[Finding]:
    encoding = getattr(sys.stdout, "encoding", None) or "none"
    try:
        "→–…".encode(encoding)
        problem = ""
    except (UnicodeEncodeError, LookupError):
        problem = "some characters are shown as ?; PYTHONIOENCODING=utf-8"
    yield Finding("encoding", encoding, problem)
