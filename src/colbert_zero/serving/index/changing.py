"""Delete documents from an index, and make it compact again: both atomic, both beside readers."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from colbert_zero.data.rows import text_fault
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.files import Tell, atomic_file, atomic_folder, file_fingerprint, writing
from colbert_zero.serving.index.coming import keep_made
from colbert_zero.serving.index.manifest import (
    DELETED,
    SEGMENTS,
    Deletions,
    Manifest,
    SegmentEntry,
    changed,
    read_manifest,
    write_manifest,
)
from colbert_zero.serving.index.segments import (
    DamagedError,
    Passages,
    Segment,
    SegmentWriter,
    UnknownDocumentError,
    raise_open_files,
    ranges,
)
from colbert_zero.watch import stop_if_asked

_BLOCK_DOCUMENTS = 1024

DeletedNow = dict[str, list[int]]
"""Numbers of documents, by segment."""


def delete(index: Path, ids: list[str], tell: Tell = print) -> int:
    """Delete documents; returns how many. All are deleted, or none.

    Raises:
        UnknownDocumentError: An id is not there; nothing is deleted.
    """
    with writing(index, tell):
        sweep(index)
        manifest = read_manifest(index)
        segments = checked_segments(index, manifest)
        try:
            found: DeletedNow = {}
            missing = dict.fromkeys(ids)
            asked = [identifier for identifier in missing if not text_fault(identifier)]
            with damage_told(index, manifest):
                for name, segment in segments.items():
                    for row in segment.find(asked):
                        found.setdefault(name, []).append(row.number)
                        missing.pop(row.id, None)
        finally:
            close(segments)
        if missing:
            names = ", ".join(short(repr(identifier)) for identifier in list(missing)[:5])
            raise UnknownDocumentError(
                f"{index} has no document {names}{' …' if len(missing) > 5 else ''} ({len(missing):,} of "
                f"{len(set(ids)):,} ids are not there); nothing was deleted, leave these out"
            )
        write_manifest(index, changed(with_deleted(index, manifest, found)))
        sweep(index)
        return sum(map(len, found.values()))


def compact(index: Path, drop_damaged: bool = False, tell: Tell = print) -> Manifest:
    """Write segments anew without deleted documents, few in place of many; the documents' order stays.

    Segments that are full and whole from the first on stay as they are. Until all is written the index is as it was.
    Every byte that is copied is compared with its checksum before, so that damage never gets a new one.

    Args:
        index: Its folder.
        drop_damaged: Leave damaged segments out, documents and all; every segment is read for it.
        tell: Told which.

    Raises:
        ColbertZeroError: A segment is damaged, and not to be left out.
    """
    with writing(index, tell):
        sweep(index)
        manifest = read_manifest(index)
        drop = tell if drop_damaged else None
        segments = checked_segments(index, manifest, drop)
        sound = set[str]()
        try:
            while True:
                try:
                    newer = _compacted(index, manifest, segments, sound, drop_damaged)
                    break
                except DamagedError as error:
                    entry = next(entry for entry in manifest.segments if entry.name == error.segment)
                    _left_out(index, entry, error, drop)
                    segments.pop(error.segment).close()
        finally:
            close(segments)
        if newer != manifest:
            write_manifest(index, newer)
            sweep(index)
        return newer


def _compacted(
    index: Path, manifest: Manifest, segments: dict[str, Segment], sound: set[str], look_at_all: bool
) -> Manifest:
    """The manifest of these segments made compact, which are written; the same one where nothing is to be done.

    Raises:
        DamagedError: One is not what was written.
    """
    kept = [entry for entry in manifest.segments if entry.name in segments]
    full = [entry.deletions is None and entry.documents >= manifest.segment_documents for entry in kept]
    first = full.index(False) if False in full else len(kept)
    rest = [segments[entry.name] for entry in kept[first:]]
    is_one = len(rest) == 1 and rest[0].entry.deletions is None
    nothing = len(kept) == len(manifest.segments) and (not rest or is_one)
    for segment in segments.values() if look_at_all else [] if nothing else rest:
        stop_if_asked()
        if segment.name not in sound and (wrong := segment.damage(index)):
            raise DamagedError(segment.name, "; ".join(wrong))
        sound.add(segment.name)
    if nothing:
        return manifest
    entries = list(_rewritten(index, manifest, rest, manifest.next_segment))
    return changed(manifest, segments=[*kept[:first], *entries], next_segment=manifest.next_segment + len(entries))


def _rewritten(index: Path, manifest: Manifest, segments: list[Segment], number: int) -> Iterator[SegmentEntry]:
    """New segments of these ones' live documents."""
    left = sum(segment.entry.live for segment in segments)
    blocks = _live_blocks(segments, manifest.segment_documents)
    while left:
        name = f"{number:06d}"
        with (
            atomic_folder(index / SEGMENTS / name) as folder,
            SegmentWriter(folder, name, manifest) as writer,
        ):
            while writer.documents < min(left, manifest.segment_documents):
                stop_if_asked()
                writer.add(*next(blocks))
            entry = writer.finish()
        left, number = left - entry.documents, number + 1
        yield entry


_Copied = tuple[list[tuple[str, str, str]], Passages, np.ndarray, np.ndarray | None]


def _live_blocks(segments: list[Segment], segment_documents: int) -> Iterator[_Copied]:
    """What a writer takes, of live documents, cut so that new segments end where they are full."""
    written = 0
    for segment in segments:
        numbers = np.flatnonzero(segment.live)
        while len(numbers):
            room = segment_documents - written % segment_documents
            block, numbers = np.split(numbers, [min(_BLOCK_DOCUMENTS, room)])
            yield _copied(segment, block)
            written += len(block)


def _copied(segment: Segment, numbers: np.ndarray) -> _Copied:
    rows = [segment.row(int(number)) for number in numbers]
    counts = np.diff(segment.first_passages)[numbers]
    places = ranges(segment.first_passages[numbers], counts)
    lengths, _, begins, ends = (values[places] for values in segment.passages)
    tokens = ranges(segment.starts[places], lengths)
    passages = Passages(lengths, np.repeat(np.arange(len(numbers)), counts), begins, ends)
    scales = None if segment.scales is None else segment.scales[tokens]
    return [(row.id, row.metadata, row.text) for row in rows], passages, segment.vectors[tokens], scales


# ---- What all that write share


def checked_segments(index: Path, manifest: Manifest, drop: Tell | None = None) -> dict[str, Segment]:
    """The segments of an index by name, opened.

    Args:
        index: Its folder.
        manifest: Names them.
        drop: Leave damaged ones out, and tell of it here.

    Raises:
        ColbertZeroError: One is damaged, and not to be left out; or a file cannot be opened.
    """
    raise_open_files()
    found: dict[str, Segment] = {}
    for entry in manifest.segments:
        try:
            found[entry.name] = Segment(index.absolute(), entry, manifest)
        except DamagedError as error:
            if drop is None:
                close(found)
            _left_out(index, entry, error, drop)
        except ColbertZeroError:
            close(found)
            raise
    return found


def _left_out(index: Path, entry: SegmentEntry, error: DamagedError, drop: Tell | None) -> None:
    """Tell that a damaged segment is left out, or refuse to."""
    if drop is None:
        raise ColbertZeroError(
            f"{index}: segment {entry.name} is damaged: {error}. Restore it from a copy, or leave it out with "
            f"its {entry.live:,} documents (`colbert-zero index compact {index} --drop-damaged`)"
        ) from None
    drop(f"{index}: segment {entry.name} is left out with its {entry.live:,} documents: {error}")


@contextmanager
def damage_told(index: Path, manifest: Manifest) -> Iterator[None]:
    """A segment that turns out damaged is a message with its mend.

    Raises:
        ColbertZeroError: In a DamagedError's place.
    """
    try:
        yield
    except DamagedError as error:
        entry = next(entry for entry in manifest.segments if entry.name == error.segment)
        _left_out(index, entry, error, None)


def close(segments: dict[str, Segment]) -> None:
    """Close all of them."""
    for segment in segments.values():
        segment.close()


def with_deleted(index: Path, manifest: Manifest, deleted: DeletedNow) -> Manifest:
    """A manifest with more deletions, whose lists are written, and count once the manifest is."""
    entries = []
    for entry in manifest.segments:
        if numbers := deleted.get(entry.name):
            before = []
            if entry.deletions:
                before = np.fromfile(index / DELETED / entry.deletions.name, "<i4").tolist()
            together = np.array(sorted({*before, *numbers}), "<i4")
            path = index / DELETED / f"{manifest.generation + 1:06d}-{entry.name}"
            with atomic_file(path, "wb") as file:
                file.write(together.tobytes())
            deletions = Deletions(name=path.name, documents=len(together), checksum=file_fingerprint(path))
            entry = entry.model_copy(update={"deletions": deletions})
        entries.append(entry)
    return manifest.model_copy(update={"segments": entries})


def sweep(index: Path, digest: str | None = None) -> None:
    """Remove the files that the manifest does not name: of before a change, or of a writer that was killed.

    Args:
        index: Its folder.
        digest: Of a corpus that is added now: what its killed run has made stays.
    """
    manifest = read_manifest(index)
    segments = {entry.name for entry in manifest.segments} | keep_made(index, manifest.next_segment, digest)
    deletions = {entry.deletions.name for entry in manifest.segments if entry.deletions}
    for path in (index / SEGMENTS).glob("*"):
        if path.name not in segments:
            shutil.rmtree(path, ignore_errors=True)
    for path in (index / DELETED).glob("*"):
        if path.name not in deletions:
            with suppress(FileNotFoundError):
                path.unlink()
