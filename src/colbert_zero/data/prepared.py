"""Prepared sources: Arrow files, memory-mapped."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from colbert_zero.data.streams import is_streamed, streamed_parts
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import damaged_file, read_json, write_checksums, write_json
from colbert_zero.recipe.data import SourceSpec
from colbert_zero.recipe.schema import Phase


class Rows(Protocol):
    """How many rows a part has, and of how many texts."""

    @property
    def scored(self) -> bool:
        """Whether they are candidates with scores rather than pairs."""

    def __len__(self) -> int: ...

    def lengths(self) -> list[int]:
        """The different numbers of candidates, or of hard negatives, that rows have."""


class Part(Rows, Protocol):
    """What training needs of a part of a source, be it prepared or streamed."""

    @property
    def name(self) -> str:
        """SOURCE/PART."""

    @property
    def block(self) -> int | None:
        """Rows that are shuffled among themselves, whole batches; None: all of them."""

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Columns of these rows as texts: `query`, and `document` and `negatives`, or `documents` and `scores`."""

    def sample(self, most: int) -> Iterator[dict[str, list[Any]]]:
        """Columns of the rows a tokenizer is trained on, a thousand at a time; `most` is for what is streamed."""

    def for_phase(self, spec: Phase) -> "Part":
        """The part as a phase reads it."""


MINED = pa.schema([("query", pa.string()), ("document", pa.int64()), ("negatives", pa.list_(pa.int64()))])

DOCUMENTS = pa.schema([("text", pa.string())])

_BATCH_ROWS, _BATCH_CHARACTERS, _LENGTHS_ROWS = 1000, 1 << 24, 1 << 18


@dataclass(frozen=True)
class ArrowPart:
    """Rows of one part of a prepared source, memory-mapped.

    Attributes:
        name: SOURCE/PART.
        rows: The Arrow table.
        documents: Texts that row numbers in the table refer to; None where the table holds the texts.
    """

    name: str
    rows: Dataset
    documents: Dataset | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def scored(self) -> bool:
        """Whether its rows are candidates with scores rather than pairs."""
        return "scores" in self.rows.column_names

    @property
    def block(self) -> None:
        """All rows are shuffled among themselves."""
        return None

    def lengths(self) -> list[int]:
        """The different numbers of candidates, or of hard negatives, that rows have."""
        column = self.rows.data.column("documents" if self.scored else "negatives")
        different = dict[int, None]()
        for start in range(0, len(column), _LENGTHS_ROWS):
            lengths = pc.list_value_length(column.slice(start, _LENGTHS_ROWS))
            different |= dict.fromkeys(pc.unique(lengths).to_pylist())
        return list(different)

    def sample(self, most: int) -> Iterator[dict[str, list[Any]]]:
        """Columns of all rows, a thousand at a time."""
        for row in range(0, len(self), _BATCH_ROWS):
            yield self.read(range(row, min(row + _BATCH_ROWS, len(self))))

    def for_phase(self, spec: Phase) -> "ArrowPart":
        """Itself: every phase reads it alike."""
        return self

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Columns of these rows as texts: `query`, and `document` and `negatives`, or `documents` and `scores`."""
        columns = dict(self.rows[np.asarray(indices, np.int64)])
        if self.documents is None:
            return columns
        if "document" in columns:
            columns["document"] = self.texts(columns["document"])
        for name in ("negatives", "documents"):
            if name in columns:
                flat = self.texts([i for row in columns[name] for i in row])
                ends = np.cumsum([len(row) for row in columns[name]]).tolist()
                columns[name] = [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return columns

    def texts(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """Documents by number."""
        assert self.documents is not None
        return list(self.documents[np.asarray(indices, np.int64)]["text"]) if len(indices) else []


@dataclass(frozen=True)
class Source:
    """A prepared source: its parts, its record for data.json, and the fingerprint of all that made it."""

    name: str
    id: str
    folder: Path
    record: dict[str, Any]
    parts: Mapping[str, Part]

    @property
    def tables(self) -> dict[str, ArrowPart]:
        """The parts of a source that is prepared, not streamed."""
        return {name: part for name, part in self.parts.items() if isinstance(part, ArrowPart)}

    @property
    def documents(self) -> Dataset | None:
        """The table of documents that mined and scored sources share among their parts; None of others."""
        return next((part.documents for part in self.tables.values()), None)


def source_folder(data: Path, name: str, identity: str) -> Path:
    """Where a source of that id is, or will be, kept."""
    return data / f"{name}-{identity}"


def is_made(folder: Path) -> bool:
    """Whether a source is there; its folder appears only whole."""
    return (folder / "source.json").is_file()


def open_source(name: str, folder: Path, spec: SourceSpec | None = None) -> Source:
    """A prepared source from its folder; a streamed one from its entry and what was looked up of it.

    Raises:
        ColbertZeroError: A file of it was damaged since it was written.
    """
    if damaged := damaged_file(folder):
        raise ColbertZeroError(
            f"{folder / damaged}: not as it was written; delete the folder {folder}, and it is prepared again"
        )
    record = read_json(folder / "source.json")
    if is_streamed(spec):
        return Source(name, record["id"], folder, record, streamed_parts(name, spec, record))
    documents = folder / "documents.arrow"
    table = Dataset.from_file(str(documents)) if documents.is_file() else None
    parts = {}
    for number, part in enumerate(record["parts"]):
        rows = Dataset.from_file(str(folder / f"{number}.arrow"))
        parts[f"{name}/{part}"] = ArrowPart(f"{name}/{part}", rows, table)
    return Source(name, record["id"], folder, record, parts)


def write_record(folder: Path, identity: str, parts: dict[str, int], started: float, **more: Any) -> None:
    """Write down what a source is: its parts and their rows, what was left out (`more`), and how long it took."""
    known = {"id": identity, "parts": parts, "rows": sum(parts.values()), "dropped": {}, "held_out": 0}
    write_json(folder / "source.json", {**known, **more, "seconds": round(time.monotonic() - started, 3)})
    write_checksums(folder)


@contextmanager
def arrow_file(path: Path, schema: pa.Schema) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write rows to an Arrow file, in batches of at most a thousand rows and few megabytes."""
    buffer: list[dict[str, Any]] = []
    characters = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:

        def flush() -> None:
            nonlocal characters
            if buffer:
                writer.write_batch(pa.RecordBatch.from_pylist(buffer, schema))
                buffer.clear()
                characters = 0

        def write(row: dict[str, Any]) -> None:
            nonlocal characters
            buffer.append(row)
            for value in row.values():
                for text in value if isinstance(value, list) else (value,):
                    characters += len(text) if isinstance(text, str) else 8
            if len(buffer) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
                flush()

        yield write
        flush()
