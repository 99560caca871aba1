"""Files and folders: read in bounded memory, written whole or not at all, known by their fingerprints."""

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from colbert_zero.errors import ColbertZeroError, short

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

Tell = Callable[[str], None]
"""Called with a line for the user."""

LONGEST_LINE = 1 << 26

LONGEST_TEXT = 1_000_000
"""Characters; anything longer is a file put into a row by mistake."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, the line without its end) of each line that is not blank.

    Raises:
        ColbertZeroError: The file cannot be read, is damaged, or has no line ends.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
                if len(line) == LONGEST_LINE:
                    raise ColbertZeroError(
                        f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB; is this JSON lines, one object "
                        "a line?"
                    )
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ColbertZeroError(
            f"{path}: damaged gzip file after line {number} ({error}); fetch or compress it again"
        ) from None
    except FileNotFoundError:
        raise ColbertZeroError(f"{path} does not exist") from None
    except OSError as error:
        raise ColbertZeroError(f"{path}: cannot be read ({error.strerror or error}); mend it or its rights") from None


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file:line, the line) of each line that is not blank, plain or gzip.

    Raises:
        ColbertZeroError: The file cannot be read, is damaged, or is not UTF-8 text.
    """
    for number, line in read_lines(path):
        if b"\0" in line:
            raise ColbertZeroError(f"{path}:{number}: a NUL byte; the file is damaged or not UTF-8")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ColbertZeroError(f"{path}:{number}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
        yield f"{path}:{number}", text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {short(twice)} stands twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(text: str) -> Any:
    """A value from JSON; a key that stands twice in an object is a mistake, not a choice.

    Raises:
        ValueError: It is none; the message says in a few words why.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, column {error.colno}") from None
    except ValueError as error:
        # Python's own message on a number of thousands of digits ends in advice that is not for the user.
        raise ValueError(str(error).split(": value has")[0]) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def file_state(path: Path) -> list[int]:
    """Size and time of the last change: what tells at no cost whether a file was written to.

    Raises:
        OSError: It is not there.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


_CHECKSUMS = "checksums.json"


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


def is_inside(file: Path, folder: Path) -> bool:
    """Whether a file, its links followed, lies in a folder, or in the store that a Hub snapshot's links lead to."""
    real, root = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    store = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    return real.is_relative_to(root) or real.is_relative_to(store)


def place_of(name: str) -> str:
    """The folder that a name means, if it is one; else the name as it is, for the Hub."""
    folder = os.path.expanduser(name)
    return folder if os.path.isdir(folder) else name


def is_commit(revision: str | None) -> bool:
    """Whether a revision on the Hub is a whole commit hash, which cannot move."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def user_cache() -> Path | None:
    """The user's folder for what is kept between studies; None where there is no home, or nothing can be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "colbert-zero"
    if not folder.is_absolute():
        return None
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def write_checksums(folder: Path) -> None:
    """Write down size, time and fingerprint of every file in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    write_json(
        folder / _CHECKSUMS,
        {str(f.relative_to(folder)): {"state": file_state(f), "fingerprint": file_fingerprint(f)} for f in files},
    )


def damaged_file(folder: Path, read_all: bool = False) -> str | None:
    """A file of a folder that is not the one `write_checksums` saw; None where all are, or nothing was written down.

    A file whose size and time are as they were is not read, unless all are: what a disk turns over by itself goes
    unseen.
    """
    if not (folder / _CHECKSUMS).is_file():
        return None
    name = _CHECKSUMS
    try:
        written: dict[str, Any] = read_json(folder / _CHECKSUMS)
        for name, seen in written.items():
            size, time = file_state(folder / name)
            if size != seen["state"][0]:
                return name
            changed = read_all or time != seen["state"][1]
            if changed and file_fingerprint(folder / name) != seen["fingerprint"]:
                return name
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return name
    return None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync_folder(path: Path) -> None:
    """Make a rename durable: the folder's own entry list reaches the disk too, where a disk does that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a disk that knows no such thing
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
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
    with temporary_folder(path) as temporary:
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


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is not whole yet, deleted in the end.

    Those that a killed process left there are deleted first. A process at work holds a lock on its own, which goes with
    it; a disk without locks keeps them. Two machines that write to one place are not told apart on a disk that hides
    their locks from each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    named = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for left in path.parent.iterdir():
        if named.fullmatch(left.name) and left.is_dir():
            with suppress(OSError), _locked(left):
                shutil.rmtree(left)
    with ExitStack() as held:
        yield _made(path, held)


def _made(path: Path, held: ExitStack) -> Path:
    """A new temporary folder, which goes when `held` ends; with its lock, where its disk has locks."""
    while True:
        temporary = _temporary(path)
        temporary.mkdir()
        held.callback(shutil.rmtree, temporary, ignore_errors=True)
        try:
            held.enter_context(_locked(temporary))
        except (BlockingIOError, FileNotFoundError):  # another that makes the same was quicker, and deletes it
            continue
        except OSError:
            pass  # its disk has no locks, so that nobody deletes it either
        return temporary


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock.

    Raises:
        BlockingIOError: Another process has it.
        FileNotFoundError: The folder is gone.
        OSError: Its disk has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()
        yield
    finally:
        os.close(descriptor)


@contextmanager
def writing(folder: Path, tell: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a folder: no second run writes there meanwhile. What a killed one left half-written is deleted first.

    The lock goes with the process, however that ends.

    Args:
        folder: Made if it is not there.
        tell: Told where its disk has no locks.

    Raises:
        ColbertZeroError: Another process holds it, or nothing can be kept whole there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_renames(folder)
    except (FileExistsError, NotADirectoryError):
        raise ColbertZeroError(f"--out {folder}: not a folder; name another") from None
    except OSError as error:
        raise ColbertZeroError(
            f"--out {folder}: cannot be written ({error.strerror or error}); mend its rights, or name another"
        ) from None
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ColbertZeroError(
                f"{folder}: another run ({file.read().strip()}) is writing there; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            tell(f"{folder}: its disk has no locks ({error.strerror}); see to it that no second run writes there")
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for leftover in folder.glob("**/.*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield


def _check_renames(folder: Path) -> None:
    """Refuse a disk on which nothing appears whole: that puts no file in another's place, or gives no folder a name.

    Raises:
        ColbertZeroError: It cannot; found now, and not with the first checkpoint.
        OSError: Nothing can be written there.
    """
    trial = folder / f".disk.{uuid.uuid4().hex[:8]}.tmp"
    (trial / "new").mkdir(parents=True)
    try:
        for name in ("old.file", "new.file"):
            (trial / name).write_text(name)
        try:
            os.replace(trial / "new.file", trial / "old.file")
            os.replace(trial / "new", trial / "named")
        except OSError as error:
            raise ColbertZeroError(
                f"--out {folder}: its disk cannot put a finished file in the place of another, or rename a folder "
                f"({error.strerror or error}), so nothing would be kept whole; name a folder on a local disk or on a "
                "network disk such as NFS, and copy the results"
            ) from None
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    with atomic_file(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1, default=str)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file this program wrote."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)
