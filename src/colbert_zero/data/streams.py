"""Sources that can only be streamed: nothing is copied, rows pass through a bounded block, the position can be saved.

The usable rows of a part are numbered as they come and cut into blocks of consecutive rows. A batch lies in one block
(data/order), so it is the same whether the block was reached from the start or from a saved position.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeGuard, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, IterableDataset, get_dataset_config_names, load_dataset_builder

from colbert_zero.data.columns import Reading
from colbert_zero.data.hub import check_inside, parts_of
from colbert_zero.data.readers import input_files, part_names
from colbert_zero.data.rows import SCORED_TEXTS, check_row, left_out, mixed, unusable
from colbert_zero.errors import BadRow, ColbertZeroError, reason
from colbert_zero.files import place_of
from colbert_zero.recipe.data import Hub, Parquet, SourceSpec
from colbert_zero.recipe.schema import Phase

T = TypeVar("T")

SHUFFLE_BUFFER = 65_536

UNUSED = "positives after their row's first, not used"

READ_AGAIN = "read again from the start, in place of rows left out"

_CHUNK = 1000

Position = dict[str, Any]
"""Where a stream stands: the library's state before a chunk, how many rows of the chunk (`read`) and of all rows
(`row`) came before, and whether the stream was begun `again`. JSON, for checkpoints."""

_START: Position = {"state": None, "read": 0, "row": 0, "again": False}


def is_streamed(spec: SourceSpec | None) -> TypeGuard[Parquet | Hub]:
    """Whether a source's entry asks for streaming."""
    return isinstance(spec, Parquet | Hub) and spec.streaming


class Stream:
    """The rows of one file or configuration, read one after the other by the `datasets` library.

    Args:
        name: The source.
        spec: Its recipe entry.
        where: The stream's place, for messages.
        open_dataset: Called when the first row is wanted.
    """

    def __init__(self, name: str, spec: Parquet | Hub, where: str, open_dataset: Callable[[], IterableDataset]):
        self.name, self.spec, self.where, self._open = name, spec, where, open_dataset
        self._dataset: IterableDataset | None = None
        self._state: dict[str, Any] | None = None
        self.position = _START

    def rows(self, position: Position) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) of all rows after a position; `position` follows. One iteration at a time."""
        read, number, again = position["read"], position["row"], position["again"]
        chunks = self._chunks(position["state"])
        while (chunk := self._next(chunks)) is not None:
            state, table = chunk
            for row in table.slice(read).to_pylist():
                read, number = read + 1, number + 1
                self.position = {"state": state, "read": read, "row": number, "again": again}
                yield number, row
            read = 0

    def _chunks(self, state: dict[str, Any] | None) -> Iterator[tuple[Any, pa.Table]]:
        """A thousand rows at a time, each with the state before them."""
        if self._dataset is None:
            self._dataset = self._open().with_format("arrow")
            self._state = self._dataset.state_dict()
        state = state or self._state
        self._dataset.load_state_dict(state)
        for table in self._dataset.iter(_CHUNK):
            following = self._dataset.state_dict()
            yield state, table
            state = following

    def _next(self, chunks: Iterator[tuple[Any, pa.Table]]) -> tuple[Any, pa.Table] | None:
        return _told(self.name, self.spec, self.where, lambda: next(chunks, None))


@dataclass
class StreamedPart:
    """A part of a streamed source. It holds the checked rows of one block, and no others.

    Attributes:
        name: SOURCE/PART.
        rows: How many rows an epoch has.
        spec: The source's recipe entry.
        scored: Whether its rows are candidates with scores rather than pairs.
        texts: Candidates, or hard negatives, of the first row.
        make_stream: The stream, not opened yet.
        block: Rows of a block.
        negatives: Hard negatives that every row must have.
    """

    name: str
    rows: int
    spec: Parquet | Hub
    scored: bool
    texts: int
    make_stream: Callable[[], Stream]
    block: int = SHUFFLE_BUFFER
    negatives: int = 0

    def __post_init__(self) -> None:
        self._stream, self._reading = self.make_stream(), Reading()
        # Where known blocks begin, and what was left out in each, by the block's number.
        self._positions: dict[int, Position] = {0: _START}
        self._dropped: dict[int, Counter[str]] = {}
        self._usable: Iterator[dict[str, Any]] = iter(())
        self._next_block: int | None = None  # the one that `_usable` comes to next
        self._held: list[dict[str, Any]] = []
        self._held_block: int | None = None
        self._counts = Counter[str]()

    def __len__(self) -> int:
        return self.rows

    def lengths(self) -> list[int]:
        """Candidates, or hard negatives, of the first row; later rows are held to it as they are read."""
        return [self.texts]

    def for_phase(self, spec: Phase) -> "StreamedPart":
        """A fresh one with blocks of whole batches, whose rows have the hard negatives that the phase takes."""
        size = spec.global_batch_size
        block = -(-(self.spec.shuffle_buffer or SHUFFLE_BUFFER) // size) * size
        return replace(self, block=block, negatives=spec.hard_negatives.of_part(self.texts))

    def sample(self, most: int) -> Iterator[dict[str, list[Any]]]:
        """Columns of the first `most` rows, a thousand at a time."""
        rows = islice(replace(self)._usable_rows(_START), min(most, self.rows))
        while chunk := list(islice(rows, _CHUNK)):
            yield _columns(chunk)

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Columns of these rows, which lie in one block."""
        wanted = np.asarray(indices, np.int64)
        blocks = np.unique(wanted // self.block).tolist()
        if len(blocks) != 1:
            raise ValueError(f"{self.name}: rows of one block are read at a time, not of the blocks {blocks}")
        if blocks[0] != self._held_block:
            self._hold(blocks[0])
        return _columns([self._held[row] for row in (wanted % self.block).tolist()])

    def _hold(self, block: int) -> None:
        """Hold a block, reading on from the nearest known position before it."""
        self._held, self._held_block = [], None  # before the next comes, for the memory's sake
        nearest = self._nearest(block)
        if self._next_block != nearest:
            self._usable = self._usable_rows(self._positions[nearest])
        for number in range(nearest, block + 1):
            self._next_block, self._counts = None, Counter()
            rows = islice(self._usable, min(self.block, self.rows - number * self.block))
            self._held = [row for row in rows if number == block]
            self._dropped[number] = self._counts
            self._next_block, self._positions[number + 1] = number + 1, self._stream.position
        self._held_block = block

    def _nearest(self, block: int) -> int:
        return max(known for known in list(self._positions) if known <= block)

    def _usable_rows(self, position: Position) -> Iterator[dict[str, Any]]:
        """Checked rows after a position, without end: where rows were left out, the first ones come again."""
        while True:
            usable = position["row"] > 0
            for number, row in self._stream.rows(position):
                known = self._reading.unused_positives
                try:
                    checked = self._checked(row, number)
                except BadRow as error:
                    if not position["again"]:
                        place = f"{self._stream.where}, row {number}"
                        self._counts[left_out(error, place, self._stream.name, self.spec)] += 1
                    continue
                if position["again"]:
                    self._counts[READ_AGAIN] += 1
                elif unused := self._reading.unused_positives - known:
                    self._counts[UNUSED] += unused
                usable = True
                yield checked
            if not usable:
                raise unusable(self._stream.where, self._stream.name)
            position = _START | {"again": True}

    def _checked(self, row: Any, number: int) -> dict[str, Any]:
        schema, checked = check_row(row, self.spec.columns, self._reading, self.spec.candidates)
        if (schema is SCORED_TEXTS) != self.scored:
            raise mixed(f"{self._stream.where}, row {number}")
        found = len(checked["documents"] if self.scored else checked["negatives"])
        if self.scored and found != self.texts:
            raise BadRow(
                f"`{self.spec.columns.documents}` are not as many as in the first row: {found}, not {self.texts}"
            )
        if found < self.negatives:
            raise BadRow(f"`{self.spec.columns.negative}` are too few for the phase: {found}, not {self.negatives}")
        return checked

    # ---- The saved position

    def state(self, block: int) -> dict[str, Any]:
        """From where a block can be read without reading the stream from its start; JSON."""
        nearest = self._nearest(block)
        dropped = {str(number): dict(counts) for number, counts in list(self._dropped.items()) if counts}
        return {"block": nearest, "position": self._positions[nearest], "dropped": dropped}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._positions[state["block"]] = state["position"]
        self._dropped |= {int(number): Counter(counts) for number, counts in state["dropped"].items()}

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out so far by reason, once each however often they were read, and rows read in their place."""
        return dict(sum(list(self._dropped.values()), Counter[str]()))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {column: [row[column] for row in rows] for column in rows[0]}


# ---- What a source's parts are


def look_up(name: str, spec: Parquet | Hub, reading: Reading) -> dict[str, tuple[int, dict[str, Any]]]:
    """Of each part: its rows, and whether its first usable row is `scored` and how many `texts` it has.

    `reading` takes note of what columns these rows have.

    Raises:
        ColbertZeroError: A part cannot be read or has no usable row, or the number of its rows cannot be known.
    """
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for part, where, split, make_builder in _builders(name, spec):
        builder = _told(name, spec, where, make_builder)
        rows = _told(name, spec, where, partial(_count, name, spec, where, split, builder))
        stream = Stream(name, spec, where, partial(_dataset, split, builder))
        found[part] = rows, _first(stream, reading)
        if found[part][1]["scored"] != next(iter(found.values()))[1]["scored"]:
            raise mixed(where)
    return found


def streamed_parts(name: str, spec: Parquet | Hub, record: dict[str, Any]) -> dict[str, StreamedPart]:
    """The parts of a source as its record has them, by their full names; none is opened yet."""
    if isinstance(spec, Hub):
        spec = spec.model_copy(update={"revision": record["revision"]})
    parts = {}
    for part, where, split, make_builder in _builders(name, spec, record["parts"]):
        stream = partial(Stream, name, spec, where, partial(_open, split, make_builder))
        full, rows, first = f"{name}/{part}", record["parts"][part], record["streamed"][part]
        parts[full] = StreamedPart(full, rows, spec, **first, make_stream=stream)
    return parts


def _builders(
    name: str, spec: Parquet | Hub, known: Iterable[str] | None = None
) -> list[tuple[str, str, str, Callable[[], DatasetBuilder]]]:
    """(part, its place for messages, its split, what makes its builder) of a source's files or configurations."""
    if isinstance(spec, Hub):
        path, revision = place_of(spec.path), spec.revision
        ask = partial(_told, name, spec, spec.path, partial(get_dataset_config_names, path, revision=revision))
        return [
            (part, f"{spec.path} ({part})", split, partial(_hub_builder, path, config, revision))
            for part, (config, split) in parts_of(spec, lambda: known or ask()).items()
        ]
    assert spec.path is not None
    files = input_files(name, "path", spec.path)
    return [
        (part, str(file), "train", partial(load_dataset_builder, "parquet", data_files=[glob.escape(str(file))]))
        for part, file in zip(known or part_names(files), files, strict=True)
    ]


def _hub_builder(path: str, config: str, revision: str | None) -> DatasetBuilder:
    if os.path.isdir(path):
        check_inside(path, config)
    return load_dataset_builder(path, config, revision=revision)


def _open(split: str, make_builder: Callable[[], DatasetBuilder]) -> IterableDataset:
    return _dataset(split, make_builder())


def _dataset(split: str, builder: DatasetBuilder) -> IterableDataset:
    if hasattr(builder.config, "batch_size"):
        builder.config.batch_size = _CHUNK  # Parquet's default is a whole row group
    dataset = builder.as_streaming_dataset(split=split)
    # A saved position is reached through its shard: of one file, by row groups. Of many, each would have to be asked.
    return dataset.reshard() if dataset.num_shards == 1 else dataset


def _count(name: str, spec: Parquet | Hub, where: str, split: str, builder: DatasetBuilder) -> int:
    """Rows of a part, at most `limit`."""
    if isinstance(spec, Hub):
        splits = builder.info.splits or {}
        rows = splits[split].num_examples if split in splits else 0
    else:
        rows = pq.read_metadata(where).num_rows
        if not rows:
            raise unusable(where, name)
    counts = [count for count in (rows, spec.limit) if count]
    if not counts:
        raise ColbertZeroError(
            f"sources.{name}.limit: how many rows {where} has is not known before it is read; say how many to use, as "
            "in `limit: 1000000`"
        )
    return min(counts)


def _first(stream: Stream, reading: Reading) -> dict[str, Any]:
    """What the first usable row is like."""
    for number, row in stream.rows(_START):
        try:
            schema, checked = check_row(row, stream.spec.columns, reading, stream.spec.candidates)
        except BadRow as error:
            left_out(error, f"{stream.where}, row {number}", stream.name, stream.spec)
        else:
            scored = schema is SCORED_TEXTS
            return {"scored": scored, "texts": len(checked["documents" if scored else "negatives"])}
    raise unusable(stream.where, stream.name)


# ---- What to say


def _told(name: str, spec: Parquet | Hub, where: str, read: Callable[[], T]) -> T:
    """The result; an error in the user's words."""
    try:
        return read()
    except ColbertZeroError:
        raise
    except Exception as error:  # the Hub's client lets through the errors of its HTTP library
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if isinstance(spec, Hub):
            mend = "once that is mended, the same command goes on where it was"
            raise ColbertZeroError(f"sources.{name}: cannot stream {where}: {reason(cause)}; {mend}") from error
        raise ColbertZeroError(
            f"{where}: not a readable Parquet file ({reason(cause)}); fetch or write it again"
        ) from error
