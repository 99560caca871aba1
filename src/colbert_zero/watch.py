"""Processes that train together: how they start, stop, and notice that one of them has died or hangs.

Started by `torchrun` or `accelerate launch`, every process runs the same command. The main process (rank 0) alone
writes and prints; what all need is made by it first. A collective operation whose partner has died fails or hangs,
depending on the backend; so every process keeps a heartbeat in a store of its own beside the process group, and a
thread that reads the others' ends the process with a message that names the dead one.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from colbert_zero import launcher
from colbert_zero.errors import STOPPED, ColbertZeroError, ProcessLost, Stopped, reason
from colbert_zero.processes import wait

BEAT_SECONDS = 2.0
"""Time between heartbeats."""

SILENCE_SECONDS = 40.0
"""A process that has not answered for so long counts as dead; one whose death the machine can see, at once."""

PATIENCE_SECONDS = 15.0
"""After so long a wait for the other processes to join, it is told whom this one waits for."""

_GRACE_SECONDS = 5.0

_ALIVE, _LEFT, _STOPPED, _FAILED = "alive", "left", "stopped", "failed"

# ---- Starting


_watch: "_Watch | None" = None


def start() -> None:
    """Join the processes that a launcher started; a process alone needs nothing.

    Raises:
        ColbertZeroError: The launcher's settings do not lead to the other processes.
    """
    global _watch
    if launcher.world() < 2 or dist.is_initialized():
        return
    use_cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    if use_cuda:
        local, gpus = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
        if local >= gpus:
            raise ColbertZeroError(
                f"LOCAL_RANK is {local}, but this machine has {gpus} GPU{'s' * (gpus > 1)}: start as many processes a "
                "machine as it has, torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local)
    # A handler of Python's cannot run while the others are waited for: until then SIGTERM ends the process.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    waiting = threading.Timer(PATIENCE_SECONDS, _tell_waiting)
    waiting.daemon = True
    waiting.start()
    try:
        # The watch, not this time limit, ends a wait for a process that has died; preparing data may take hours.
        limit = timedelta(days=7)
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise ColbertZeroError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the other processes cannot be reached ({error}); start "
            "with torchrun or accelerate launch, which set RANK, MASTER_ADDR and MASTER_PORT"
        ) from None
    finally:
        waiting.cancel()
        signal.signal(signal.SIGTERM, before)
    _watch = _Watch()


def _tell_waiting() -> None:
    """Say why nothing happens; where a scheduler has left a WORLD_SIZE, nobody will ever come."""
    of = os.environ
    print(
        f"colbert-zero: process {of['RANK']} of WORLD_SIZE={of['WORLD_SIZE']} waits for the others at "
        f"{of['MASTER_ADDR']}:{of['MASTER_PORT']}. If nobody started them, stop it and unset WORLD_SIZE",
        file=sys.stderr,
        flush=True,
    )


def leave(stopped: bool = False) -> None:
    """Say goodbye: from now on this process may end without the others taking it for dead.

    Args:
        stopped: It was asked to stop, and the others are to stop as well.
    """
    global _watch
    if _watch is not None:
        watch, _watch = _watch, None
        watch.leave(_STOPPED if stopped else _LEFT)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def fail(message: str) -> bool:
    """Tell the other processes why this one ends; returns whether it should print the message itself."""
    global _watch
    if _watch is None:
        return launcher.launched_rank() == "0"
    watch, _watch = _watch, None
    # A launcher ends the others as soon as one has failed; this one is ending already.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prints = watch.rank == 0 or not watch.main_says(message)
    watch.leave(f"{_FAILED}: {message}")
    return prints


def cause_of(error: RuntimeError) -> BaseException:
    """What made a collective operation fail: another process's end, if it is that, else the error itself."""
    if _watch is None:
        return error
    end = time.monotonic() + SILENCE_SECONDS + BEAT_SECONDS
    while not (cause := _watch.look()) and not _stop.is_set() and time.monotonic() < end:
        time.sleep(0.2)
    return Stopped(STOPPED) if _stop.is_set() and not cause else ProcessLost(cause) if cause else error


class _Watch:
    """Heartbeats of all processes, in a store that the main process keeps."""

    def __init__(self) -> None:
        self.world, self.rank = dist.get_world_size(), dist.get_rank()
        host = os.environ.get("MASTER_ADDR", "localhost")
        port = torch.zeros(1, dtype=torch.int64)
        limit = timedelta(seconds=SILENCE_SECONDS)
        store_class = dist.TCPStore  # type: ignore[attr-defined]  # public, though not in torch's __all__
        if self.rank == 0:
            self.store = store_class(host, 0, self.world, True, limit, wait_for_workers=False)
            port += self.store.port
        dist.broadcast(port, 0)
        if self.rank:
            self.store = store_class(host, int(port), self.world, False, limit, wait_for_workers=False)
        self.store.set(f"who/{self.rank}", f"{socket.gethostname()} {os.getpid()}")
        self.state = _ALIVE
        self._beat()
        wait()
        self.who = [self.store.get(f"who/{r}").decode().split() for r in range(self.world)]
        self.others = [r for r in range(self.world) if r != self.rank]
        self.heard = {r: ("", time.monotonic()) for r in self.others}
        self.cause: str | None = None
        self.lock = threading.Lock()
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        self.store.set(f"beat/{self.rank}", f"{time.monotonic()} {self.state}")

    def _read(self, other: int) -> str:
        return self.store.get(f"beat/{other}").decode()

    def _run(self) -> None:
        while not self.left.wait(BEAT_SECONDS):
            # The main thread may be in a collective operation that fails, and tells it; or in one that hangs.
            if self.look() and not self.left.wait(_GRACE_SECONDS):
                print(f"colbert-zero: {self.cause}", file=sys.stderr, flush=True)
                os._exit(1)

    def look(self) -> str | None:
        """Beat; returns what has happened to another process, if anything."""
        with self.lock:
            try:
                self._beat()
                for other in self.others if self.cause is None else ():
                    self.cause = self.cause or self._look_at(other)
            except (RuntimeError, OSError) as error:  # the store is gone, and with it the process that kept it
                self.cause = self.cause or self._gone(0, f"its store does not answer ({reason(error)})")
            return self.cause

    def _look_at(self, other: int) -> str | None:
        beat = self._read(other)
        state = beat.split(" ", 1)[1]
        if state == _STOPPED and not _stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        if state in (_LEFT, _STOPPED):
            return None
        if state != _ALIVE:
            return f"process {other} has stopped, and this one with it: {state.removeprefix(_FAILED + ': ')}"
        if beat != self.heard[other][0]:
            self.heard[other] = (beat, time.monotonic())
        if self._is_dead_here(other):
            return self._gone(other, "it was killed or crashed")
        silent = time.monotonic() - self.heard[other][1]
        return self._gone(other, f"it has not answered for {silent:.0f} s") if silent > SILENCE_SECONDS else None

    def _gone(self, other: int, why: str) -> str:
        host, pid = self.who[other]
        return (
            f"process {other} (pid {pid} on {host}) is gone: {why}. Process {self.rank} ends too; the same command "
            "goes on from the last checkpoint"
        )

    def _is_dead_here(self, other: int) -> bool:
        """Whether a process on this very machine has ended; those on others are known by their silence."""
        host, pid = self.who[other]
        if host != self.who[self.rank][0]:
            return False
        try:
            return psutil.Process(int(pid)).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True

    def main_says(self, message: str) -> bool:
        """Whether the main process ends with this very message, which then needs no second telling."""
        end = time.monotonic() + 2 * BEAT_SECONDS
        with suppress(RuntimeError, OSError):
            while time.monotonic() < end:
                if self._read(0).endswith(f" {_FAILED}: {message}"):
                    return True
                time.sleep(0.1)
        return False

    def leave(self, state: str) -> None:
        """Stop watching; the main process waits until the others have read its last words or are gone."""
        self.state = state
        self.left.set()
        # A thread that is in the store when the interpreter ends would end the process with an abort.
        self.thread.join(SILENCE_SECONDS)
        with suppress(RuntimeError, OSError):
            self._beat()
            end = time.monotonic() + 5 * BEAT_SECONDS
            while self.rank == 0 and time.monotonic() < end:
                if all(not self._read(r).endswith(f" {_ALIVE}") or self._is_dead_here(r) for r in self.others):
                    return
                time.sleep(0.1)


# ---- Stopping


_stop = threading.Event()

_finishes_its_step = False


def stop_requested() -> bool:
    """Whether this process was asked to stop (SIGTERM)."""
    return _stop.is_set()


def stop_if_asked() -> None:
    """End here if this process was asked to stop.

    Called between blocks of long work: Python swallows the exception of a signal that falls into a `__del__`.

    Raises:
        Stopped: It was asked to.
    """
    if _stop.is_set() and not _finishes_its_step:
        raise Stopped(STOPPED)


def stop_on_sigterm() -> None:
    """Take SIGTERM (pre-emption, a time limit) as the wish to go on later: training saves first, all else just ends."""

    def handle(*_: object) -> None:
        _stop.set()
        if not _finishes_its_step:
            raise Stopped(STOPPED)

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def finishing_its_step() -> Iterator[None]:
    """In this block SIGTERM is only noted: training looks at it after every step."""
    global _finishes_its_step
    _finishes_its_step = True
    try:
        yield
    finally:
        _finishes_its_step = False
