"""How progress reaches the user."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Show(Protocol):
    """How progress reaches the user; the command line has the real one."""

    def say(self, text: str) -> None:
        """One line."""

    def bar(self, name: str, total: int) -> "AbstractContextManager[Callable[[int, dict[str, Any]], None]]":
        """A progress bar; the callable takes what is done so far and figures to show."""


class Quiet:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        """Nothing."""
        yield lambda done, values: None
