"""What `doctor` finds: each problem has its mend, and only what would stop a run stops it."""

import errno
import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from colbert_zero import files
from colbert_zero.maxsim import backends, cpu
from colbert_zero.study import host
from helpers import processor_with

USABLE_CORES = host._usable_cores

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def quiet_host(monkeypatch, tmp_path):
    """A host without problems, whatever the tests run on."""
    for name in (*LAUNCHER, *(name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_", "ACCELERATE_")))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(host, "_usable_cores", lambda: 2.0)
    monkeypatch.setattr(host, "_CGROUPS", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    backends.fault.cache_clear()
    yield
    backends.fault.cache_clear()


def found(tmp_path):
    return list(host.look(tmp_path / "out"))


def problems(tmp_path):
    return [(topic, finding) for topic, finding in found(tmp_path) if finding.problem]


def test_a_host_without_problems_has_none_and_nothing_is_left_in_the_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".half.tmp").touch()
    assert problems(tmp_path) == []
    assert os.listdir(tmp_path / "out") == [".half.tmp"]
    topics = dict.fromkeys(topic for topic, _ in found(tmp_path))
    assert list(topics) == [
        "versions",
        "devices",
        "MaxSim",
        "processor",
        "memory",
        "disks",
        "Hub",
        "launcher",
        "terminal",
    ]
    names = {finding.name for _, finding in found(tmp_path)}
    assert {"python", "torch", "transformers", "sentence-transformers", "late-interaction-kernels"} <= names


def old_torch(monkeypatch, tmp_path):
    right = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "torch" else right(name))


def no_scipy(monkeypatch, tmp_path):
    right = metadata.version

    def version(name):
        if name == "scipy":
            raise metadata.PackageNotFoundError(name)
        return right(name)

    monkeypatch.setattr(metadata, "version", version)


def unseen_gpu(monkeypatch, tmp_path):
    right = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, *a: [1] if str(self) == "/dev" else right(self, *a))


def hidden_gpus(monkeypatch, tmp_path):
    unseen_gpu(monkeypatch, tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def tf32(monkeypatch, tmp_path):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")


def unknown_backend(monkeypatch, tmp_path):
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "cuda")


def wrong_backend(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "scores", None)


def few_cores(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(host, "_usable_cores", USABLE_CORES)


def idle_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_usable_cores", lambda: 64.0)


def little_memory(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")


def no_renames(monkeypatch, tmp_path):
    monkeypatch.setattr(files.os, "replace", fails(errno.ENOTSUP))


def no_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(files.fcntl, "flock", fails(errno.ENOLCK))


def read_only_out(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.TemporaryDirectory", fails(errno.EROFS))


def out_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "out").touch()


def read_only_caches(monkeypatch, tmp_path):
    monkeypatch.setattr(host.os, "access", lambda path, mode: False)


def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=fails(errno.ENETUNREACH)))


def half_a_launcher(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")


def many_tasks(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_NTASKS", "4")


def latin_1(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "sys", SimpleNamespace(stdout=SimpleNamespace(encoding="latin-1")))


def broken_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(host.psutil, "virtual_memory", fails(errno.EIO))


def fails(why):
    def call(*_, **__):
        raise OSError(why) if isinstance(why, str) else OSError(why, os.strerror(why))

    return call


@pytest.mark.parametrize(
    ("change", "topic", "mend", "stops"),
    [
        (old_torch, "versions", "pip install 'torch>=", True),
        (no_scipy, "versions", "is missing; pip install 'scipy>=", True),
        (unseen_gpu, "devices", "install a CUDA build of torch", False),
        (hidden_gpus, "devices", "CUDA_VISIBLE_DEVICES is empty", False),
        (tf32, "devices", "products of float32", False),
        (unknown_backend, "MaxSim", "'cuda' is none of auto", True),
        (wrong_backend, "MaxSim", "it fails with TypeError", False),
        (few_cores, "processor", "OMP_NUM_THREADS=1", False),
        (idle_cores, "processor", "OMP_NUM_THREADS=64", False),
        (little_memory, "memory", "ask the scheduler for more", False),
        (no_renames, "disks", "cannot put a finished file", True),
        (no_locks, "disks", "its disk has no locks", False),
        (read_only_out, "disks", "name another by --out", True),
        (out_is_a_file, "disks", "not a folder; name another", True),
        (read_only_caches, "disks", "XDG_CACHE_HOME names another", False),
        (no_hub, "Hub", "HF_ENDPOINT to a mirror", False),
        (half_a_launcher, "launcher", "unset WORLD_SIZE", True),
        (many_tasks, "launcher", "let it start torchrun", False),
        (latin_1, "terminal", "PYTHONIOENCODING=utf-8", False),
        (broken_driver, "memory", "cannot be looked at: OSError", False),
    ],
)
def test_a_problem_is_found_with_its_mend(change, topic, mend, stops, tmp_path, monkeypatch):
    change(monkeypatch, tmp_path)
    seen = [(where, finding.problem, finding.stops) for where, finding in problems(tmp_path)]
    assert any(where == topic and mend in problem and stop == stops for where, problem, stop in seen), seen
    assert any(stop for *_, stop in seen) == stops


def test_memory_of_a_control_group_is_what_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("8000000000\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    monkeypatch.setattr(host.psutil, "virtual_memory", lambda: SimpleNamespace(total=2**36, available=2**35))
    told = next(finding.found for _, finding in found(tmp_path) if finding.name == "memory")
    assert told.endswith("the control group allows 8.0 GB, 5.0 GB of it free")


def test_a_gpu_is_named_with_its_memory(monkeypatch, tmp_path):
    gpu = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: gpu)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda number: (4 * 10**9, 8 * 10**9))
    seen = {finding.name: finding.found for _, finding in found(tmp_path)}
    assert seen["cuda:1"] == "H100, compute capability 9.0, 4.0 GB of 8.0 GB free"
    assert "torchrun --nproc-per-node 2" in seen["GPUs"]


def test_secrets_are_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2@proxy")
    monkeypatch.setenv("HUGGINGFACE_API_KEY", "hf_hunter2")
    monkeypatch.setenv("HF_OF_TOMORROW", "hunter2")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:se@hunter2@mirror/hub")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://me:hunter2@mirror")
    for offline in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(
            "huggingface_hub.get_session", lambda: SimpleNamespace(head=fails("https://me:hunter2@mirror/ is gone"))
        )
        seen = {finding.name: finding for _, finding in found(tmp_path)}
        assert "https://mirror" in seen
        assert "hunter2" not in str(seen)
    shown = {name: seen[name].found for name in ("HF_TOKEN", "HTTPS_PROXY", "HUGGINGFACE_API_KEY", "HF_OF_TOMORROW")}
    assert set(shown.values()) == {"set"}
    assert (seen["HF_ENDPOINT"].found, seen["HF_HOME"].found) == ("https://mirror/hub", "/somewhere")


def test_mixed_precision_of_a_launcher_is_no_problem_since_nothing_reads_it(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    [finding] = [finding for _, finding in found(tmp_path) if finding.name == "ACCELERATE_MIXED_PRECISION"]
    assert (finding.found, finding.problem) == ("bf16, not read: the recipe's `precision` decides", "")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("avx2 avx512f amx_bf16", "bfloat16, in hardware"),
        ("avx2 avx512f avx512_bf16", "bfloat16, in hardware"),
        ("avx2", "float32, the faster one here"),
    ],
)
def test_what_the_processor_can_is_told(flags, told, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_cpu_flags", lambda: set(flags.split()))
    processor_with(monkeypatch, bfloat16="avx512_bf16" in flags, amx="amx" in flags)
    seen = {finding.name: finding.found for _, finding in found(tmp_path)}
    assert seen["features"] == ", ".join(flags.split())
    assert seen["precision: auto"] == told


@pytest.mark.parametrize("width", [80, 40, 20])
def test_the_command_shows_everything_within_the_width_and_ends_with_1_where_a_run_would_stop(
    width, command, monkeypatch, tmp_path
):
    stops = host.Finding("--out", "/a/very/long/path/" * 5, "its disk cannot put a finished file; name another", True)
    works = host.Finding("torch", "2.13.0")
    monkeypatch.setattr(host, "look", lambda out: [("versions", works), ("disks", stops)])
    monkeypatch.setattr("colbert_zero.cli.doctor.console.width", width)
    code, out, _ = command("doctor")
    assert code == 1
    assert max(map(len, out.splitlines())) <= width
    words = "".join(out.split())
    for told in (stops.found, stops.problem, "2.13.0", "1 problem, 1 that stops a run"):
        assert told.replace(" ", "") in words
    monkeypatch.setattr(host, "look", lambda out: [("versions", works)])
    code, out, _ = command("doctor")
    assert code == 0
    assert "No problems" in out
