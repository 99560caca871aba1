"""Segments that are made and not named by the manifest yet: each has a record of its own, written last.

Several processes make segments at the same time, so a later one may be made before an earlier one. The manifest names
them in the corpus' order. A run after a killed one makes what has no record, whoever makes it.
"""

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import parse_json, write_json
from colbert_zero.serving.index.manifest import (
    COMING,
    SEGMENTS,
    Count,
    Digest,
    Part,
    SegmentEntry,
    SegmentName,
    first_mistake,
)


class Made(Part):
    """A segment that is made."""

    entry: SegmentEntry
    digest: Digest
    """Of the corpus whose documents it has."""
    cut: Count
    """Documents whose ends were cut off."""
    unfindable: Count
    """Documents without a token that is scored."""
    replaced: dict[SegmentName, list[Count]]
    """Numbers of the documents whose place its own take, by segment."""


def record_of(index: Path, number: int) -> Path:
    """The record of a segment."""
    return index / COMING / f"{number:06d}.json"


def write_made(index: Path, made: Made) -> None:
    """Write down that a segment is made; its files are on the disk."""
    write_json(record_of(index, int(made.entry.name)), made.model_dump(mode="json"))


def made_of(index: Path, number: int) -> Made | None:
    """The record of a segment; None where it is not made.

    Raises:
        ColbertZeroError: It is not what this program writes.
    """
    path = record_of(index, number)
    try:
        return Made.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        told = first_mistake(error) if isinstance(error, ValidationError) else reason(error)
        raise ColbertZeroError(f"{path}: cannot be used ({told}); remove it, and start again") from None


def numbers_made(index: Path) -> set[int]:
    """The segments that have a record."""
    return {int(path.stem) for path in (index / COMING).glob("[0-9]*.json")}


def keep_made(index: Path, first: int, digest: str | None) -> set[str]:
    """Remove all records but those of a corpus from a number on; returns the names of their segments."""
    kept = set()
    for path in (index / COMING).glob("*"):
        made = made_of(index, int(path.stem)) if digest and path.stem.isdecimal() and int(path.stem) >= first else None
        if made and made.digest == digest and (index / SEGMENTS / path.stem).is_dir():
            kept.add(path.stem)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
    return kept
