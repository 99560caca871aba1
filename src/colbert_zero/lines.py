"""Lines of text files, plain or gzipped, in bounded memory; and whether a file is still the one that was read."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from colbert_zero.errors import ColbertZeroError

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


def short(text: str) -> str:
    """Text from the data on one short printable line."""
    text = text if len(text) <= 60 else text[:57] + "…"
    return text if text.isprintable() else ascii(text)


def reason(error: Exception) -> str:
    """A library's error in a line: its first, of printable characters."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def file_state(path: Path) -> list[int]:
    """Size and time of the last change: what tells at no cost whether a file was written to.

    Raises:
        OSError: It is not there.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
