"""The index as it is on disk now: a change is picked up beside the searches, none of which waits for it."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import Tell
from colbert_zero.models.graphs import Graph
from colbert_zero.serving.index.manifest import NAME
from colbert_zero.serving.opening import AnyIndex, open_index
from colbert_zero.serving.qdrant.collection import Address, Record
from colbert_zero.serving.qdrant.opened import QdrantIndex

POLL_SECONDS = 0.5

_COUNTED_SHARE = 20
"""Times as long as counting the values of metadata took, it is not done again, however much is written."""


@dataclass(frozen=True)
class State:
    """An opened index, and what is known of it.

    Attributes:
        index: Searched by one thread alone.
        values: The values of its metadata, as `Index.metadata_values`, or of the state before it; None until they are
            counted.
        counted: Whether the values are its own.
    """

    index: AnyIndex
    values: dict[str, list[str] | None] | None = None
    counted: bool = False


class Current:
    """An index that is looked at every half second, and opened anew where it was changed or put in another's place.

    Args:
        path: Its folder, or where it is on Qdrant.
        model: Where its model is now; where it was when the index was made, without.
        memory_bytes: As of `Index.open`; Qdrant's memory is its own.
        tell: Told of changes.
        changed: Told of each newer state.
        graph: That encodes queries in PyTorch's place.

    Raises:
        ColbertZeroError: It is no index, or its model cannot be loaded.
    """

    def __init__(
        self,
        path: Path | Address,
        model: str | None,
        memory_bytes: int | None,
        tell: Tell,
        changed: Callable[[AnyIndex], None] = lambda _: None,
        graph: Graph | None = None,
    ):
        self._changed = changed
        self._path, self._tell = path.absolute() if isinstance(path, Path) else path, tell
        self._seen = self._look(None)
        options = {"memory_bytes": memory_bytes} if isinstance(path, Path) else {}
        index = open_index(path, model, tell, graph=graph, **options)
        if isinstance(index, QdrantIndex):
            self._seen = index.manifest
        index.encoder  # noqa: B018 - loaded now, not by the first request
        self._newest = self._taken = State(index)
        self._lock, self._refreshing, self._ended = threading.Lock(), threading.Lock(), threading.Event()
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._watch, name="index-watch", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """The newest; to look at, not to search in."""
        return self._newest

    @property
    def trouble(self) -> str | None:
        """Why answers come from an older state than what is on disk, or from an index that is gone."""
        return self._trouble

    @property
    def alive(self) -> bool:
        """Whether the index is looked at."""
        return self._thread.is_alive()

    @property
    def notes(self) -> list[str]:
        """What every answer lacks, and why."""
        return [*self._newest.index.notes, *([self._trouble] if self._trouble else [])]

    def take(self) -> AnyIndex:
        """The newest state to search in, for the one thread that searches; what it had before is closed."""
        with self._lock:
            if self._taken.index is not self._newest.index:
                self._taken.index.close()
            self._taken = self._newest
            return self._taken.index

    def refresh(self) -> None:
        """Look now; what was written before this call is found by the next search."""
        with self._refreshing:
            try:
                if (seen := self._look(self._newest.index)) != self._seen:
                    index = self._newest.index.anew()
                    index.encoder  # noqa: B018 - another index may have another model
                    keys, before = index.manifest.metadata_keys, self._newest.values
                    values = None if before is None else {key: before.get(key) for key in keys}
                    self._replace(State(index, values))
                    self._seen = seen
                    self._changed(index)
                    self._tell(f"{self._path}: generation {index.manifest.generation}, {len(index):,} documents")
                trouble = None
            except (ColbertZeroError, OSError) as error:
                trouble = f"{error}; answers come from {len(self._newest.index):,} documents opened before that"
            if trouble != self._trouble:
                self._tell(trouble or f"{self._path}: is there again")
                self._trouble = trouble

    def close(self) -> None:
        """End; nobody searches any more."""
        self._ended.set()
        self._thread.join()
        for state in (self._taken, self._newest):
            state.index.close()

    def _look(self, index: AnyIndex | None) -> tuple[int, int, int] | Record | None:
        """What of the manifest differs after any change; None where there is none."""
        if isinstance(index, QdrantIndex):
            return index.newest()
        if isinstance(self._path, Address):
            return None
        with suppress(FileNotFoundError, NotADirectoryError):
            status = (self._path / NAME).stat()
            return status.st_ino, status.st_size, status.st_mtime_ns
        return None

    def _replace(self, state: State) -> None:
        with self._lock:
            if self._newest.index not in (self._taken.index, state.index):
                self._newest.index.close()
            self._newest = state

    def _watch(self) -> None:
        again = self._count_values()
        while not self._ended.wait(POLL_SECONDS):
            self.refresh()
            if not self._newest.counted and time.monotonic() >= again:
                again = self._count_values()

    def _count_values(self) -> float:
        """Count them in an index of this thread's own; returns when it may be done again."""
        state, began = self._newest, time.monotonic()
        with suppress(ColbertZeroError, OSError), state.index.anew() as own:
            if own.manifest == state.index.manifest:
                values = own.metadata_values()
                with self._lock:
                    if self._newest.index is state.index:
                        self._newest = State(state.index, values, True)
        now = time.monotonic()
        return now + _COUNTED_SHARE * (now - began)
