"""What a server computes: a thread that searches, explains and embeds, and one that writes, each with its queue."""

import errno
import sqlite3
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, NamedTuple

from colbert_zero.data.documents import GivenDocuments
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import embed
from colbert_zero.files import Tell
from colbert_zero.models.encoders import with_own_tokenizer
from colbert_zero.models.encoding import Task
from colbert_zero.models.graphs import Graph
from colbert_zero.models.pooling import with_pooling
from colbert_zero.serving.http.batching import Batcher, Group
from colbert_zero.serving.http.current import Current
from colbert_zero.serving.http.metrics import Metrics
from colbert_zero.serving.index.building import Added, add
from colbert_zero.serving.index.changing import compact, delete
from colbert_zero.serving.index.manifest import MOST_SEGMENTS, PYTORCH, read_manifest
from colbert_zero.serving.index.opened import Hit
from colbert_zero.serving.opening import AnyIndex
from colbert_zero.serving.passages import Cutter
from colbert_zero.serving.qdrant.collection import Address

_SEARCHED, _DEAR = 64, 4
"""Requests of a batch: the dear ones (explained, embedded, searched query by query) are few, so that a quick one does
not wait for many of them."""

_FOUND = 4000
"""Documents that the searches of a batch find together: their texts are in memory."""

_WRITES_WAITING = 16

_COMPACTED = MOST_SEGMENTS // 8
"""Segments from which on a write makes few of the many."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body_bytes: Of a request's body.
        characters: Of a query, and of each text to embed.
        k: Documents of an answer.
        explained: Documents of an answer with explanations.
        texts: To embed at once.
        seconds: From a request's first byte to its answer.
        answer_characters: Of the texts of an answer to a search; longer ones are cut.
        waiting: Requests in the queue.
    """

    body_bytes: int = 1_000_000
    characters: int = 10_000
    k: int = 1000
    explained: int = 50
    texts: int = 64
    seconds: float = 30.0
    answer_characters: int = 16_000_000
    waiting: int = 256


class DiskError(ColbertZeroError):
    """The index could not be written; it is as it was."""


class Embedded(NamedTuple):
    """Vectors of texts, and how many of these were cut."""

    vectors: list[Any]
    cut: int


class SearchOptions(NamedTuple):
    """What a search asks beside its query; those that ask alike are computed together.

    Attributes:
        k: Documents to find.
        where: Pairs of a name of metadata and its value as text, sorted.
        explain: Say of each document which words the query chose.
        first: A first stage, as `Index.search` has it.
        with_bm25: Weight of BM25 beside the model, as `Index.search` has it.
    """

    k: int
    where: tuple[tuple[str, str], ...] = ()
    explain: bool = False
    first: str | None = None
    with_bm25: float | None = None

    @property
    def dear(self) -> bool:
        """Whether each query takes a while by itself."""
        return self.explain or self.first is not None or self.with_bm25 is not None


class Service:
    """An index at work.

    Args:
        path: Its folder, or where it is on Qdrant; that is read only.
        limits: Of its queues.
        writable: Whether documents may be added and deleted.
        model: Where the index's model is now; where it was, without.
        memory_bytes: As of `Index.open`.
        tell: Told what happens to the index.
        graph: That encodes queries in PyTorch's place.

    Raises:
        ColbertZeroError: It is no index, or its model cannot be loaded.
    """

    def __init__(
        self,
        path: Path | Address,
        limits: Limits,
        writable: bool = False,
        model: str | None = None,
        memory_bytes: int | None = None,
        tell: Tell = print,
        graph: Graph | None = None,
    ):
        self.path, self.limits, self.writable = path, limits, writable
        self._tell, self._place = tell, model
        self.queries_encoded_by = graph.words if graph else PYTORCH
        self.current = Current(path, model, memory_bytes, tell, self._changed, graph)
        # Counted in from here on: what is only starting has no generation.
        self.metrics = Metrics()
        self._changed(self.current.state.index)
        self._reader = Batcher(self._compute, limits.waiting, "search", self._computed)
        self._writer = Batcher(self._write, _WRITES_WAITING, "write", self._compact) if writable else None
        self._stopping = threading.Event()

    def close(self) -> None:
        """Finish what was accepted, and let go of the index."""
        self._stopping.set()
        self._reader.close()
        if self._writer:
            self._writer.close()
        self.current.close()

    def _changed(self, index: AnyIndex) -> None:
        if hasattr(self, "metrics"):
            self.metrics.index(len(index), index.manifest.generation)

    def _computed(self, requests: int, seconds: float) -> None:
        self.metrics.batch(requests, seconds)
        self.metrics.waiting(self.waiting)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._reader.waiting

    def not_ready(self) -> str | None:
        """Why nothing should be sent here, or nothing."""
        if self._stopping.is_set():
            return "stopping"
        if not self._reader.alive:
            return "the thread that searches has ended"
        return self.current.trouble if self.current.alive else "the thread that looks at the index has ended"

    # ---- Asked for by the requests' threads

    def search(self, query: str, options: SearchOptions, deadline: float) -> "Future[Any]":
        """Queue a search; gives an Answer.

        Raises:
            QueueFullError: As many wait as may.
        """
        most = _DEAR if options.dear else max(1, min(_SEARCHED, _FOUND // options.k))
        return self._read(Group(options, most), query, deadline)

    def explain(self, query: str, identifier: str, deadline: float) -> "Future[Any]":
        """Queue an explanation; gives a Hit. Raises as `search`."""
        return self._read(Group("explain", _DEAR), (query, identifier), deadline)

    def embed(self, texts: list[str], kind: Task, deadline: float) -> "Future[Any]":
        """Queue texts to be embedded as queries or documents; gives an Embedded. Raises as `search`."""
        return self._read(Group(("embed", kind), _DEAR), texts, deadline)

    def add(self, rows: list[dict[str, Any]], replace: bool) -> "Future[Any]":
        """Queue documents to be added; gives an Added once they are found. Raises as `search`."""
        return self._written("add", (rows, replace))

    def delete(self, identifier: str) -> "Future[Any]":
        """Queue a document to be deleted; gives 1 once it is not found any more. Raises as `search`."""
        return self._written("delete", identifier)

    def _read(self, group: Group, asked: Any, deadline: float) -> "Future[Any]":
        try:
            return self._reader.submit(group, asked, deadline)
        finally:
            self.metrics.waiting(self.waiting)

    def _written(self, what: str, asked: Any) -> "Future[Any]":
        if self._writer is None:
            raise ColbertZeroError("the index is served read-only")
        return self._writer.submit(Group(what, 1), asked, float("inf"))

    # ---- In the thread that searches

    def _compute(self, what: Any, asked: list[Any]) -> list[Any]:
        index = self.current.take()
        if what == "explain":
            return [index.explain(query, identifier) for query, identifier in asked]
        if not isinstance(what, SearchOptions):
            return self._embedded(what[1], asked)
        ways = {name: way for name in ("first", "with_bm25") if (way := getattr(what, name)) is not None}
        answers = index.search_all(asked, what.k, dict(what.where), what.explain, **ways)
        cutter, longest = Cutter(index.encoder, None, "query"), index.manifest.model.query_tokens
        for query, answer in zip(asked, answers, strict=True):
            if cutter.cut([query])[1]:
                answer.notes.append(
                    f"the query is longer than the {longest} tokens that the model reads: its end is cut off"
                )
            if sum(len(hit.text) for hit in answer.hits) > self.limits.answer_characters:
                answer.notes.append(_shortened(answer.hits, self.limits.answer_characters))
        return answers

    def _embedded(self, kind: Task, asked: list[list[str]]) -> list[Embedded]:
        index = self.current.take()
        encoder, dense = index.encoder, index.manifest.model.representation == "dense"
        if kind == "document":
            encoder = with_pooling(encoder, index.manifest.pool)
        together = [text for texts in asked for text in texts]
        embedded = embed(encoder, together, kind)
        parts = iter(embedded.values.float().cpu().split(embedded.lengths.tolist()))
        found = []
        for texts in asked:
            vectors = [next(parts).tolist() for _ in texts]
            cut = len(Cutter(index.encoder, None, kind).cut(texts)[1])
            found.append(Embedded([rows[0] for rows in vectors] if dense else vectors, cut))
        return found

    # ---- In the thread that writes

    def _write(self, what: Any, asked: list[Any]) -> list[Any]:
        [one] = asked
        done: int | Added
        if not isinstance(path := self.path, Path):
            raise ColbertZeroError(f"{path}: an index on Qdrant is served read-only")
        try:
            if what == "delete":
                done = delete(path, [one], self._tell)
            else:
                rows, replace = one
                known = self.current.state.index
                # A tokenizer holds the length to cut to, and the thread that searches has its own at work.
                loaded = known.manifest.model, with_own_tokenizer(known.encoder)
                done = add(path, GivenDocuments([], [], rows=rows), replace, self._place, self._tell, None, loaded)
        except (OSError, sqlite3.OperationalError) as error:
            why = "the disk is full" if _is_full(error) else str(error)
            raise DiskError(f"{path} cannot be written: {why}; it is as it was before") from error
        except ColbertZeroError as error:  # whose lock, the first file that is written, may be what finds no room
            if error.__context__ is None or not _is_full(error.__context__):
                raise
            raise DiskError(f"{path} cannot be written: the disk is full; it is as it was before") from error
        finally:
            self.current.refresh()
        return [done]

    def _compact(self, *_: object) -> None:
        """Once a write is answered; what fails here undoes nothing, and is tried again after the next."""
        if not isinstance(path := self.path, Path):
            return
        try:
            if len(read_manifest(path).segments) >= _COMPACTED:
                began = time.monotonic()
                manifest = compact(path, tell=self._tell)
                self.current.refresh()
                self._tell(f"{path}: {len(manifest.segments)} segments in place of many, "
                           f"{time.monotonic() - began:.1f} s")  # fmt: skip
        except (ColbertZeroError, OSError, sqlite3.Error, MemoryError) as error:
            why = "the disk is full" if _is_full(error) else str(error)
            self._tell(f"{path}: its many segments stay as they are, and searches are slower: {why}")


def _is_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _shortened(hits: list[Hit], most: int) -> str:
    """Cut the texts of hits to so many characters together, the longest alone; says so."""
    share, left = 0, most
    lengths = sorted(len(hit.text) for hit in hits)
    for number, length in enumerate(lengths):
        share = left // (len(lengths) - number)
        if length > share:
            break
        left -= length
    cut = 0
    for place, hit in enumerate(hits):
        if len(hit.text) > share:
            hits[place], cut = replace_fields(hit, text=hit.text[:share]), cut + 1
    return (
        f"{cut} of the texts are cut to {share:,} characters, as an answer has at most {most:,}; ask for fewer "
        "documents to see them whole"
    )
