"""Atomic files, fingerprints and folders: everything this program writes goes through here."""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError


def to_json(value: Any) -> str:
    """Canonical JSON of a value: equal values give equal text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def fingerprint(*values: Any) -> str:
    """Twelve hexadecimal digits that differ, for all practical purposes, whenever a value differs."""
    return hashlib.blake2b(to_json(values).encode(), digest_size=6).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Fingerprint of a file's bytes, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync_folder(path: Path) -> None:
    """Make a rename durable: the folder's own entry list reaches the disk too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[Any]:
    """Open a file that appears under `path` only once whole: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` only if the block ends without an error.

    Every file in it is on the disk before the rename. A folder already at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in (f for f in temporary.rglob("*") if f.is_file()):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold a folder: no second run writes there meanwhile. What a killed one left half-written is deleted first.

    The lock goes with the process, however that ends.

    Raises:
        ColbertZeroError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ColbertZeroError(
                f"{folder}: another run ({file.read().strip()}) is writing there; wait for it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for leftover in folder.glob("**/.*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with atomic_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, default=str)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file this program wrote."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)
