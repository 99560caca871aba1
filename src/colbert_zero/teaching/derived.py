"""Sources made of another source's rows: its documents once, and rows that refer to them by number."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.prepared import DOCUMENTS, ArrowPart, Source, arrow_file, is_made, write_record
from colbert_zero.files import Progress, atomic_folder

RowsOf = Callable[[ArrowPart, np.ndarray], Iterable[dict[str, Any]]]
"""The new rows that a block of a part's rows, given by their numbers, becomes."""


def derive(
    folder: Path,
    identity: str,
    source: Source,
    queries: int | None,
    schema: pa.Schema,
    block: int,
    make: Callable[[], tuple[Iterable[str], RowsOf, dict[str, Any]]],
    progress: Progress | None,
) -> Path:
    """Write a source made of another's, once; returns its folder.

    Args:
        folder: Where it is kept.
        identity: Its id.
        source: What it is made of.
        queries: How many of its rows are used, spread over its parts in proportion; None: all.
        schema: Of the new rows.
        block: Rows made at a time.
        make: Called if there is something to do; returns the texts of all documents, what makes rows of a block, and
            what else the record says: a dict that may be completed while rows are made.
        progress: Called with the rows done and all.
    """
    if is_made(folder):
        return folder
    started, done = time.monotonic(), 0
    texts, rows_of, more = make()
    counts = share_out({part.name: len(part) for part in source.parts.values()}, queries)
    total, kept = sum(counts.values()), dict[str, int]()
    with atomic_folder(folder) as temporary:
        with arrow_file(temporary / "documents.arrow", DOCUMENTS) as write:
            for text in texts:
                write({"text": text})
        for part in source.tables.values():
            numbers = evenly_spaced(len(part), counts[part.name])
            with arrow_file(temporary / f"{len(kept)}.arrow", schema) as write:
                for start in range(0, len(numbers), block):
                    for row in rows_of(part, numbers[start : start + block]):
                        write(row)
                        done += 1
                    if progress:
                        progress(done, total)
            kept[part.name.split("/", 1)[1]] = len(numbers)
        write_record(temporary, identity, kept, started, of=source.name, **more)
    return folder


def share_out(rows: dict[str, int], total: int | None) -> dict[str, int]:
    """How many rows each part gives when `total` are spread in proportion to size (largest remainders first)."""
    size = sum(rows.values())
    if total is None or total >= size:
        return dict(rows)
    given = {name: count * total // size for name, count in rows.items()}
    by_remainder = sorted(rows, key=lambda name: (-(rows[name] * total % size), name))
    for name in by_remainder[: total - sum(given.values())]:
        given[name] += 1
    return given
