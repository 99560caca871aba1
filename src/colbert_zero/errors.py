"""The errors a user is meant to see, and how values are shown in them."""

import difflib
import json
from collections.abc import Iterable
from typing import Any


class ColbertZeroError(Exception):
    """A mistake the user can mend: the message says what, with which values, where, and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


class BadRow(Exception):
    """This row of the data cannot be used; the message says why, who catches it where and what to do."""


class Diverged(ColbertZeroError):
    """Training came to a loss that is not finite; the same training would come to it again."""


class ProcessLost(Exception):
    """Another process of this training has died or failed; the message names it. Exit code 1."""


class Stopped(BaseException):
    """The user or the scheduler asked to stop; the message says what is kept and how to go on. Exit code 0.

    Like KeyboardInterrupt no `Exception`: it comes anywhere, also where any error of a library is caught.
    """


STOPPED = "stopped by SIGTERM. What is finished is kept; the same command goes on"
"""What is said of it outside of training."""


def short(text: str) -> str:
    """Text from the data on one short printable line."""
    text = text if len(text) <= 60 else text[:57] + "…"
    return text if text.isprintable() else ascii(text)


def reason(error: Exception) -> str:
    """A library's error in a line: its first, of printable characters."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def near(word: Any, words: Iterable[Any]) -> str:
    """The end of a message about a word that is none of these: the one that was meant, or all of them."""
    words = [str(w) for w in words]
    if alike := difflib.get_close_matches(str(word), words, 1, cutoff=0.7):
        return f", did you mean {alike[0]}?"
    return f" (there are: {', '.join(words)})" if words else ""


def show(value: Any) -> str:
    """A value as the user wrote it, on one short line."""
    if isinstance(value, dict | list):
        return ("an empty " if not value else "a ") + ("mapping" if isinstance(value, dict) else "list")
    text = json.dumps(value, default=str, ensure_ascii=not str(value).isprintable())
    return text if len(text) <= 60 else text[:57] + "…"
