"""Rows of files and Hub data sets: read one after the other, and checked."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero import hub
from colbert_zero import recipe as recipes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.lines import LONGEST_TEXT, parse_json, read_lines, reason, short

PAIRS = pa.schema([("query", pa.string()), ("document", pa.string()), ("negatives", pa.list_(pa.string()))])
_SCORES = pa.list_(pa.float32())
CANDIDATES = pa.schema([("query", pa.string()), ("documents", pa.list_(pa.int64())), ("scores", _SCORES)])
SCORED_TEXTS = pa.schema([("query", pa.string()), ("documents", pa.list_(pa.string())), ("scores", _SCORES)])
_LONGEST_ROW = 64 * LONGEST_TEXT
_LARGEST_SCORE = float(np.finfo(np.float32).max)
_BATCH_ROWS, _BATCH_BYTES = 1000, 1 << 26
_ALIASES = 1000
Rows = Iterator[tuple[str, Any]]


class Part(Protocol):
    """What training needs of a part of a source, be it prepared or streamed."""

    @property
    def name(self) -> str:
        """SOURCE/PART."""

    @property
    def scored(self) -> bool:
        """Whether its rows are candidates with scores rather than pairs."""

    @property
    def block(self) -> int | None:
        """Rows that are shuffled among themselves, whole batches; None: all of them."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Columns of these rows as texts: `query`, and `document` and `negatives`, or `documents` and `scores`."""

    def lengths(self) -> list[int]:
        """The different numbers of candidates, or of hard negatives, that rows have."""

    def sample(self, most: int) -> Iterator[dict[str, list[Any]]]:
        """Columns of the rows a tokenizer is trained on, a thousand at a time; `most` is for what is streamed."""

    def for_phase(self, spec: recipes.Phase) -> "Part":
        """The part as a phase reads it."""


class BadRow(Exception):
    """This row cannot be used; the message says why."""


def input_files(name: str, key: str, paths: list[str]) -> list[Path]:
    """The files of a source's entry, globs resolved, each once, under whichever names it comes.

    Raises:
        ColbertZeroError: There is none, or it is a folder or no ordinary file.
    """
    found: dict[str, Path] = {}
    for path in paths:
        expanded = os.path.expanduser(path)
        # A file's own name may have a glob's characters in it.
        matches = [expanded] if os.path.exists(expanded) else _matches(f"sources.{name}.{key}", path, expanded)
        if not matches:
            raise ColbertZeroError(f"sources.{name}.{key}: {path}: no such file (looked in {Path.cwd()})")
        for match in map(Path, matches):
            if match.is_dir():
                raise ColbertZeroError(f"sources.{name}.{key}: {match} is a folder; write {match}/* for its files")
            if match.exists() and not match.is_file():
                raise ColbertZeroError(f"sources.{name}.{key}: {match} is no ordinary file; copy its rows into one")
            try:
                str(match).encode()
            except UnicodeEncodeError:
                told = ascii(str(match))
                raise ColbertZeroError(f"sources.{name}.{key}: {told}: a name that is not UTF-8; rename it") from None
            found.setdefault(os.path.realpath(match), match)
    return list(found.values())


def _matches(entry: str, path: str, expanded: str) -> list[str]:
    """The files of a glob, each under its shortest name; a folder that links to one above it gives them many."""
    matches: dict[str, str] = {}
    seen = Counter[str]()
    for match in glob.iglob(expanded, recursive=True):
        file = os.path.realpath(match)
        matches[file] = min(match, matches.get(file, match), key=len)
        seen[file] += 1
        if seen[file] > _ALIASES:
            raise ColbertZeroError(
                f"{entry}: {path}: finds {matches[file]} again and again; a folder links to one above it, "
                "remove the link"
            )
    return sorted(matches.values())


def hub_path(spec: recipes.Hub) -> str:
    """The folder, if it is one; else the id."""
    folder = Path(spec.path).expanduser()
    return str(folder) if folder.is_dir() else spec.path


def tables(name: str, spec: Any, key: str) -> Iterator[tuple[str, str, Rows]]:
    """(part, its place for messages, its rows with theirs) of a file or Hub source, streamed.

    Raises:
        ColbertZeroError: A file or data set cannot be read; also while its rows are.
    """
    if isinstance(spec, recipes.Hub):
        yield from _hub_tables(name, spec, key)
        return
    read = _jsonl_rows if isinstance(spec, recipes.Jsonl) else _parquet_rows
    files = input_files(name, key, getattr(spec, key))
    for part, file in zip(part_names(files), files, strict=True):
        yield part, str(file), read(file)


def part_names(files: list[Path]) -> list[str]:
    """What the parts of these files are called: as the file, or as its path where two files share a name."""
    stems = [file.name.removesuffix(".gz").rsplit(".", 1)[0] for file in files]
    return [stem if stems.count(stem) == 1 else str(file) for file, stem in zip(files, stems, strict=True)]


def _hub_tables(name: str, spec: recipes.Hub, key: str) -> Iterator[tuple[str, str, Rows]]:
    path, told = hub_path(spec), f"sources.{name}: cannot load {spec.path!r}"
    configs = [getattr(spec, key)] if key != "path" else spec.configs or hub.config_names(path, spec.revision, told)
    for config in dict.fromkeys(configs):
        where = f"{spec.path} ({config})"
        table = hub.load(path, config, spec.split, spec.revision, told)
        yield config, where, ((f"{where}, row {n}", _or_bad(row)) for n, row in enumerate(hub.rows(table), 1))


def _jsonl_rows(path: Path) -> Rows:
    return ((f"{path}, line {number}", line) for number, line in read_lines(path))


def _parquet_rows(path: Path) -> Rows:
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ColbertZeroError(f"{path}: a column stands twice: {short(', '.join(names))}; rename or drop one")
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                # Rows of long texts come fewer at a time.
                count = _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
                for batch in file.iter_batches(min(_BATCH_ROWS, max(1, count)), [group]):
                    for row in _python_rows(batch):
                        number += 1
                        yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ColbertZeroError(
            f"{path}: not a readable Parquet file ({reason(error)}); fetch or write it again"
        ) from None


def _python_rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """Rows as dicts; one that holds what Python cannot (invalid UTF-8, the year 300,000) is a BadRow in its place."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for start in range(len(batch)):
            try:
                (row,) = batch.slice(start, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                row = _or_bad(error)
            yield row


def _or_bad(row: Any) -> Any:
    """A row, or the BadRow that tells why it could not be read."""
    if isinstance(row, UnicodeDecodeError):
        return BadRow("invalid UTF-8: write the texts as UTF-8")
    if isinstance(row, Exception):
        return BadRow(f"a value that cannot be read: {reason(row)}")
    return row


# ---- Checking


def as_object(row: Any) -> dict[str, Any]:
    """A row as a dict; a line of JSON is parsed."""
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, bytes):
        if b"\0" in row:
            raise BadRow("a NUL byte: this is not JSON in UTF-8")
        try:
            row = parse_json(row.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise BadRow("invalid UTF-8: save the file as UTF-8") from None
        except ValueError as error:
            raise BadRow(f"broken JSON: {error}; one object a line is expected") from None
    if not isinstance(row, dict):
        raise BadRow(f"not an object with keys: found {_type(row)}")
    return row


def _type(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
             bytes: "bytes (a binary column)"}  # fmt: skip
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)


def as_text(value: Any, key: str) -> str:
    """A value that is usable text."""
    if not isinstance(value, str):
        raise BadRow(f"`{key}` is not text: found {_type(value)}")
    if len(value) > LONGEST_TEXT:
        raise BadRow(f"`{key}` is too long: {len(value):,} characters, at most {LONGEST_TEXT:,}")
    if "\0" in value:
        raise BadRow(f"`{key}` has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"`{key}` has half a surrogate pair, which is no character") from None
    # Zero-width and control characters are no text either.
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise BadRow(f"`{key}` is empty")
    return value


def as_texts(values: list[Any], key: str) -> list[str]:
    """Usable texts, together not beyond what a batch of rows may hold."""
    texts = [as_text(value, key) for value in values]
    if (length := sum(map(len, texts))) > _LONGEST_ROW:
        raise BadRow(f"`{key}` is too long: {length:,} characters together, at most {_LONGEST_ROW:,}")
    return texts


def value_of(row: dict[str, Any], key: str) -> Any:
    """The value under a key that must be there."""
    if key not in row:
        raise BadRow(f"no `{key}`: the row has {short(', '.join(map(str, row))) or 'no keys'}")
    return row[key]


def as_identifier(value: Any, key: str) -> str:
    """Ids are compared as text: 7 and "7" are the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"`{key}` is not an id: found {_type(value)}, wanted text or a whole number")
    return value


def _two_or_more(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or len(value) < 2:
        found = f"{len(value)}" if isinstance(value, list) else _type(value)
        raise BadRow(f"`{key}` is not a list of two or more: found {found}")
    return value


def _scores(value: Any, key: str, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)}" if isinstance(value, list) else _type(value)
        raise BadRow(f"`{key}` is not one number a document: {count} documents, found {found}")
    for score in value:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= _LARGEST_SCORE:
            raise BadRow(f"`{key}` has something that is no finite number: {short(repr(score))}")
    return [float(score) for score in value]


def check_row(row: Any, columns: recipes.Columns) -> tuple[pa.Schema, dict[str, Any]]:
    """A row of pairs, or of candidates with scores, under our column names."""
    row = as_object(row)
    query = as_text(value_of(row, columns.query), columns.query)
    if columns.documents in row and columns.document not in row:
        texts = as_texts(_two_or_more(row[columns.documents], columns.documents), columns.documents)
        scores = _scores(value_of(row, columns.scores), columns.scores, len(texts))
        return SCORED_TEXTS, {"query": query, "documents": texts, "scores": scores}
    document = as_text(value_of(row, columns.document), columns.document)
    negatives = row.get(columns.negative)
    negatives = [] if negatives is None else negatives if isinstance(negatives, list) else [negatives]
    negatives = as_texts(negatives, columns.negative)
    return PAIRS, {"query": query, "document": document, "negatives": negatives}


def check_ids(
    row: Any, query_numbers: dict[str, int], document_numbers: dict[str, int], queries: pa.ChunkedArray
) -> tuple[pa.Schema, dict[str, Any]]:
    """A row of ids and scores, resolved."""
    row = as_object(row)
    query = as_identifier(value_of(row, "query_id"), "query_id")
    if query not in query_numbers:
        raise BadRow(f"`query_id` is not among the queries: {short(query)}")
    listed = _two_or_more(value_of(row, "document_ids"), "document_ids")
    documents = [as_identifier(document, "document_ids") for document in listed]
    if missing := [document for document in documents if document not in document_numbers]:
        raise BadRow(f"`document_ids` are not all among the documents: {short(', '.join(missing))}")
    scores = _scores(value_of(row, "scores"), "scores", len(documents))
    numbers = [document_numbers[document] for document in documents]
    return CANDIDATES, {"query": queries[query_numbers[query]].as_py(), "documents": numbers, "scores": scores}
