"""Rows of files and Hub data sets, read one after the other, each with its place."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.data import hub
from colbert_zero.data.columns import find_columns
from colbert_zero.errors import BadRow, ColbertZeroError, near, reason, short
from colbert_zero.files import place_of, read_lines
from colbert_zero.recipe.data import Columns, Hub, Jsonl, Parquet, Tsv

_BATCH_ROWS, _BATCH_BYTES = 1000, 1 << 26

_ALIASES = 1000

Rows = Iterator[tuple[str, Any]]

Table = Jsonl | Parquet | Tsv | Hub
"""Entries of sources that are read row by row."""


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


def tables(name: str, spec: Table, key: str) -> Iterator[tuple[str, str, Rows]]:
    """(part, its place for messages, its rows with theirs) of a file or Hub source, streamed.

    Raises:
        ColbertZeroError: A file or data set cannot be read; also while its rows are.
    """
    if isinstance(spec, Hub):
        yield from _hub_tables(name, spec, key)
        return
    read: Callable[[Path], Rows] = _jsonl_rows if isinstance(spec, Jsonl) else parquet_rows
    if isinstance(spec, Tsv):
        read = partial(_tsv_rows, columns=spec.columns)
    files = input_files(name, key, getattr(spec, key))
    for part, file in zip(part_names(files), files, strict=True):
        yield part, str(file), read(file)


def part_names(files: list[Path]) -> list[str]:
    """What the parts of these files are called: as the file, or as its path where two files share a name."""
    stems = [file.name.removesuffix(".gz").rsplit(".", 1)[0] for file in files]
    return [stem if stems.count(stem) == 1 else str(file) for file, stem in zip(files, stems, strict=True)]


def _hub_tables(name: str, spec: Hub, key: str) -> Iterator[tuple[str, str, Rows]]:
    path, told = place_of(spec.path), f"sources.{name}: cannot load {spec.path!r}"
    if key == "path":
        parts = hub.parts_of(spec, partial(hub.config_names, path, spec.revision, told))
    else:
        parts = {getattr(spec, key): (getattr(spec, key), spec.split)}
    # All splits of a configuration are made at once, whichever is asked for.
    splits = hub.load(path, next(iter(parts.values()))[0], None, spec.revision, told) if spec.splits else None
    for part, (config, split) in parts.items():
        where = f"{spec.path} ({part})"
        if splits is not None and split not in splits:
            raise ColbertZeroError(f"{told}: no split {split!r}{near(split, splits)}")
        table = hub.load(path, config, split, spec.revision, told) if splits is None else splits[split]
        yield part, where, ((f"{where}, row {n}", _or_bad(row)) for n, row in enumerate(hub.rows(table), 1))


def _jsonl_rows(path: Path) -> Rows:
    return ((f"{path}, line {number}", line) for number, line in read_lines(path))


def _tsv_rows(path: Path, columns: Columns) -> Rows:
    """Rows under the names of the header, if the first line is one, else under 1, 2, …; nothing is quoted."""
    names: list[str] = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            cells = line.decode("utf-8-sig" if number == 1 else "utf-8").split("\t")
        except UnicodeDecodeError as error:
            yield where, _or_bad(error)
            continue
        if not names:
            names = [str(position) for position in range(1, len(cells) + 1)]
            if _is_header(cells, columns):
                names = cells
                continue
            if all(cell.isdecimal() for cell in cells):
                raise ColbertZeroError(
                    f"{where}: ids, not texts: {short(' '.join(cells))}; put the texts in their place"
                )
        if len(cells) == len(names):
            yield where, dict(zip(names, cells, strict=True))
        else:
            yield where, BadRow(f"not {len(names)} columns as in the first line: found {len(cells)}")


def _is_header(cells: list[str], columns: Columns) -> bool:
    try:
        find_columns(tuple(cells), columns)
    except BadRow:
        return False
    return len(set(cells)) == len(cells)


def parquet_rows(path: Path) -> Rows:
    """Rows of a Parquet file; in the place of one that cannot be read stands a BadRow.

    Raises:
        ColbertZeroError: The file cannot be read, or a column stands twice.
    """
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
