"""A segment: some thousands of documents, in two files that are written once.

`tokens` is raw and little-endian, each part beginning at a multiple of 64 bytes; the manifest says how many there are:

    vectors     (tokens, dim)    float16, float32 or int8
    scales      (tokens,)        float32, of int8 alone
    means       (documents, dim) float16, the mean of each document's vectors at length 1; of multi-vector models alone
    lengths     (passages,)      int32, tokens of each passage
    documents   (passages,)      int32, whose passage it is; they stand in the documents' order
    begins      (passages,)      int32, where in the document's text it begins, in characters
    ends        (passages,)      int32

`texts` has ids, texts, metadata (`texts`) and terms (`terms`). A document without passages asked for is one passage.
"""

import errno
import mmap
import resource
import sqlite3
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import file_fingerprint
from colbert_zero.serving.index.manifest import DELETED, SEGMENTS, Manifest, SegmentEntry
from colbert_zero.serving.index.storage import TYPES, from_stored, means
from colbert_zero.serving.index.terms import Postings
from colbert_zero.serving.index.texts import Row, Texts, metadata_of, write_texts

ALIGNMENT = 64

_NUMBERS, _SCALES, _MEANS = np.dtype("<i4"), np.dtype("<f4"), np.dtype("<f2")

_POSTING = 3
"""Numbers of a posting: the document's, how often it has the term, how many terms it has."""


_Read = TypeVar("_Read")


class DamagedError(Exception):
    """A segment cannot be used; the message says why, `segment` which one."""

    def __init__(self, segment: str, why: str):
        super().__init__(why)
        self.segment = segment


class UnknownDocumentError(ColbertZeroError):
    """No document of an index has this id."""


class _Place(NamedTuple):
    offset: int
    numbers: int
    dtype: np.dtype


def layout(entry: SegmentEntry, manifest: Manifest) -> tuple[dict[str, _Place], int]:
    """Where the parts of `tokens` stand, and its size in bytes."""
    dim = manifest.model.dim
    parts = {"vectors": (entry.tokens * dim, TYPES[manifest.storage])}
    if manifest.storage == "int8":
        parts["scales"] = (entry.tokens, _SCALES)
    if manifest.has_means:
        parts["means"] = (entry.documents * dim, _MEANS)
    parts |= dict.fromkeys(("lengths", "documents", "begins", "ends"), (entry.passages, _NUMBERS))
    places, end = {}, 0
    for name, (count, dtype) in parts.items():
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        places[name], end = _Place(offset, count, dtype), offset + count * dtype.itemsize
    return places, end


class Passages(NamedTuple):
    """Passages of one document or several, in order.

    Attributes:
        lengths: Tokens of each.
        documents: Whose each is, counted from the first document of these.
        begins: In the document's text, characters.
        ends: Likewise.
    """

    lengths: np.ndarray
    documents: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


class SegmentWriter:
    """Writes a segment into a folder of its own, vectors as they come; `finish` makes it whole.

    Args:
        folder: Empty; the caller gives it its name, once its files are on the disk.
        name: Under which the manifest will have it.
        manifest: Says how vectors are kept.
    """

    def __init__(self, folder: Path, name: str, manifest: Manifest):
        self._folder, self._name, self._manifest = folder, name, manifest
        self._file: IO[bytes] = open(folder / "tokens", "wb")  # noqa: SIM115 - closed by `finish`, or on leaving
        self._scales: list[np.ndarray] = []
        self._means: list[np.ndarray] = []
        self._passages: list[Passages] = []
        self._postings = Postings()
        self._rows: list[Row] = []
        self._tokens = 0

    @property
    def documents(self) -> int:
        """Documents so far."""
        return len(self._rows)

    def add(
        self, rows: list[tuple[str, str, str]], passages: Passages, vectors: np.ndarray, scales: np.ndarray | None
    ) -> None:
        """Take more documents.

        Args:
            rows: (id, metadata, text) of each.
            passages: Of these.
            vectors: Of the passages, as they are kept.
            scales: Of int8.
        """
        first = self.documents
        self._rows += [Row(first + number, *row) for number, row in enumerate(rows)]
        self._passages.append(passages._replace(documents=passages.documents + first))
        self._postings.add([text for _, _, text in rows])
        self._file.write(vectors.tobytes())
        self._tokens += len(vectors)
        if self._manifest.has_means:
            lengths = np.bincount(passages.documents, passages.lengths, len(rows)).astype(np.int64)
            self._means.append(means(vectors, scales, lengths))
        if scales is not None:
            self._scales.append(scales)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def finish(self) -> SegmentEntry:
        """Write what is left; returns what the manifest says of it."""
        passages = Passages(*map(np.concatenate, zip(*self._passages, strict=True)))
        nothing = "0" * 32
        entry = SegmentEntry(
            name=self._name,
            documents=self.documents,
            passages=len(passages.lengths),
            tokens=self._tokens,
            terms=self._postings.terms,
            texts_bytes=0,
            tokens_checksum=nothing,
            texts_checksum=nothing,
        )
        arrays = passages._asdict()
        arrays |= {
            name: np.concatenate(parts) for name, parts in (("scales", self._scales), ("means", self._means)) if parts
        }
        with self._file as file:
            for part, place in layout(entry, self._manifest)[0].items():
                if part != "vectors":
                    file.seek(place.offset)
                    file.write(np.asarray(arrays[part], place.dtype).tobytes())
        tokens, texts = self._folder / "tokens", self._folder / "texts"
        write_texts(texts, self._rows, self._postings)
        return entry.model_copy(
            update={
                "texts_bytes": texts.stat().st_size,
                "tokens_checksum": file_fingerprint(tokens),
                "texts_checksum": file_fingerprint(texts),
            }
        )


class Segment:
    """A segment, opened: its files stay readable whatever becomes of their names.

    Args:
        index: The index's folder, absolute.
        entry: What the manifest says of it.
        manifest: Says how vectors are kept.

    Raises:
        DamagedError: A file is not there, or not of its size.
        ColbertZeroError: A file cannot be opened, which says nothing of what it holds.
    """

    def __init__(self, index: Path, entry: SegmentEntry, manifest: Manifest):
        self.entry, self.name = entry, entry.name
        self._dim = manifest.model.dim
        self._places, size = layout(entry, manifest)
        folder = index / SEGMENTS / entry.name
        try:
            self._map = _mapped(folder / "tokens", size)
            if (folder / "texts").is_symlink() or (folder / "texts").stat().st_size != entry.texts_bytes:
                raise ValueError("its texts are not of the size they were written with")
            self._deleted = self._read_deleted(index)
            self.texts = Texts(folder / "texts", entry.documents * _POSTING * _NUMBERS.itemsize)
        except OSError as error:
            raise _of_the_system(self.name, folder, error) from None
        except sqlite3.Error as error:
            # Of its size a moment ago: it was removed since, or what keeps SQLite from opening it is not in it.
            cannot_open = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN
            if cannot_open and (folder / "texts").exists():
                raise ColbertZeroError(f"{folder / 'texts'}: cannot be opened; {_MEND}") from None
            raise DamagedError(self.name, reason(error)) from None
        except ValueError as error:
            raise DamagedError(self.name, reason(error)) from None

    def _read_deleted(self, index: Path) -> np.ndarray:
        deletions = self.entry.deletions
        if deletions is None:
            return np.zeros(0, _NUMBERS)
        path = index / DELETED / deletions.name
        if path.is_symlink() or path.stat().st_size != deletions.documents * _NUMBERS.itemsize:
            raise ValueError("the list of its deleted documents is not of its size")
        numbers = np.fromfile(path, _NUMBERS)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self.entry.documents):
            raise ValueError("the list of its deleted documents names others than its own")
        return numbers

    def close(self) -> None:
        """Let go of the texts; the map goes with its last array."""
        self.texts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _array(self, part: str) -> np.ndarray:
        place = self._places[part]
        return np.frombuffer(self._map, place.dtype, place.numbers, place.offset)

    @cached_property
    def vectors(self) -> np.ndarray:
        """(tokens, dim), as they are kept, memory-mapped."""
        return self._array("vectors").reshape(-1, self._dim)

    @cached_property
    def scales(self) -> np.ndarray | None:
        """(tokens,) float32, of int8 alone."""
        return self._array("scales") if "scales" in self._places else None

    @cached_property
    def means(self) -> np.ndarray:
        """(documents, dim) float16: the mean of each document's vectors, at length 1; 0 where it has none."""
        return self._array("means").reshape(-1, self._dim)

    @cached_property
    def passages(self) -> Passages:
        """All passages.

        Raises:
            DamagedError: They do not fit together.
        """
        found = Passages(*(self._array(part) for part in ("lengths", "documents", "begins", "ends")))
        steps = np.diff(found.documents, prepend=-1)
        fits = (steps >= 0).all() and steps[0] == 1 and (steps <= 1).all()
        fits = fits and found.documents[-1] == self.entry.documents - 1
        if not fits or (found.lengths < 0).any() or found.lengths.sum(dtype=np.int64) != self.entry.tokens:
            raise DamagedError(self.name, "its passages do not fit together")
        return found

    @cached_property
    def starts(self) -> np.ndarray:
        """(passages + 1,): row of each passage's first vector, int64."""
        return np.concatenate([[0], np.cumsum(self.passages.lengths, dtype=np.int64)])

    @cached_property
    def first_passages(self) -> np.ndarray:
        """(documents + 1,): each document's first passage, int64."""
        return np.searchsorted(self.passages.documents, np.arange(self.entry.documents + 1))

    @cached_property
    def live(self) -> np.ndarray:
        """(documents,) bool: those that are not deleted."""
        mask = np.ones(self.entry.documents, bool)
        mask[self._deleted] = False
        return mask

    @cached_property
    def found(self) -> np.ndarray:
        """(documents,) bool: those that are not deleted and have a token to be found by."""
        first = self.starts[self.first_passages]
        mask: np.ndarray = self.live & (first[1:] > first[:-1])
        return mask

    def stored(self, rows: slice | np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Vectors of rows as they are kept, (rows, dim), and of int8 their scales; of a slice without a copy."""
        scales = None if self.scales is None else torch.from_numpy(self.scales[rows])
        return torch.from_numpy(self.vectors[rows]), scales

    def tokens(self, begin: int, end: int) -> Tensor:
        """Vectors of rows to be scored: without a copy, or from int8 in float32, (rows, dim)."""
        return from_stored(self.vectors[begin:end], None if self.scales is None else self.scales[begin:end])

    def release(self, begin: int, end: int) -> None:
        """Let the memory of these rows go; read again, they come from the disk, or from what the system keeps of it."""
        width = self._dim * self.vectors.itemsize
        first = begin * width // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first, max(1, end * width - first))

    def id_of(self, number: int) -> str:
        """A document's id.

        Raises:
            DamagedError: It cannot be read.
        """
        return self._read(lambda: self.texts.id_of(number))

    def ids(self) -> list[tuple[int, str]]:
        """(number, id) of all documents; raises as `id_of`."""
        return self._read(self.texts.ids)

    def row(self, number: int) -> Row:
        """A document as it is kept; raises as `id_of`."""
        return self._read(lambda: self.texts.row(number))

    def document(self, number: int) -> tuple[Row, dict[str, Any]]:
        """A document and its metadata; raises as `id_of`."""
        row = self.row(number)
        return row, self._read(lambda: metadata_of(row))

    def find(self, ids: list[str]) -> list[Row]:
        """The documents of these ids that are here and not deleted; raises as `id_of`."""
        return [row for row in self._read(lambda: list(self.texts.find(ids))) if self.live[row.number]]

    def number_of(self, identifier: str) -> int | None:
        """A document's number, if it is here and not deleted; raises as `id_of`."""
        return next((row.number for row in self.find([identifier])), None)

    def values(self) -> Iterator[tuple[str, str]]:
        """(key, value as text) of the metadata of all documents that are not deleted; raises as `id_of`."""
        found = iter(self.texts.values())
        while (one := self._read(lambda: next(found, None))) is not None:
            number, key, value = one
            if self.live[number]:
                yield key, value

    def postings(self, term: str) -> np.ndarray:
        """(documents that have a term, 3) int32: number, how often, and terms of the document; raises as `id_of`."""
        read = self._read(lambda: self.texts.postings(term))
        if len(read) % (_POSTING * _NUMBERS.itemsize) == 0:
            found = np.frombuffer(read, _NUMBERS).reshape(-1, _POSTING)
            numbers, counts, lengths = found.T
            if (np.diff(numbers, prepend=-1, append=self.entry.documents) > 0).all() and (
                (counts > 0) & (counts <= lengths)
            ).all():
                return found
        raise DamagedError(self.name, "its terms do not fit together")

    def with_value(self, key: str, value: str) -> np.ndarray:
        """(documents,) bool: those whose metadata has a value, as text, under a key; raises as `id_of`."""
        mask = np.zeros(self.entry.documents, bool)
        mask[self._read(lambda: self.texts.with_value(key, value))] = True
        return mask

    def _read(self, read: Callable[[], _Read]) -> _Read:
        try:
            return read()
        except (sqlite3.ProgrammingError, UnicodeEncodeError):
            raise  # of what was asked, not of what is kept
        except (sqlite3.DatabaseError, ValueError) as error:
            raise DamagedError(self.name, f"its texts cannot be read: {reason(error)}") from None

    def damage(self, index: Path) -> list[str]:
        """What is wrong with its files, every byte read; nothing where all is well.

        Raises:
            ColbertZeroError: A file cannot be opened, which says nothing of what it holds.
        """
        folder, found = index / SEGMENTS / self.name, list[str]()
        files = [(folder / "tokens", self.entry.tokens_checksum), (folder / "texts", self.entry.texts_checksum)]
        if (deletions := self.entry.deletions) is not None:
            files.append((index / DELETED / deletions.name, deletions.checksum))
        for path, checksum in files:
            try:
                if file_fingerprint(path) != checksum:
                    found.append(f"{path} is not what was written")
            except OSError as error:
                wrong = _of_the_system(self.name, path, error)
                if isinstance(wrong, ColbertZeroError):
                    raise wrong from None
                found.append(f"{path}: {wrong}")
        return found


_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)

_MEND = "let this user read it, or this process have more files open (`ulimit -n 8192`), and start again"


def _of_the_system(segment: str, path: Path, error: OSError) -> DamagedError | ColbertZeroError:
    """A file that is gone or that the disk does not give is damage; rights, and too many open files, are not."""
    if error.errno in _DAMAGE:
        return DamagedError(segment, reason(error))
    return ColbertZeroError(f"{error.filename or path}: cannot be opened ({error.strerror or reason(error)}); {_MEND}")


def raise_open_files() -> None:
    """An index has up to 800 files open, and a process may have 1,024 by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i] ... starts[i] + lengths[i] - 1 of every i, one after the other."""
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(np.sum(lengths)))


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A file of this very size, its pages private, so that nothing here can change it."""
    if path.is_symlink():
        raise ValueError("its vectors are a link")
    with open(path, "rb") as file:
        if path.stat().st_size != size:
            raise ValueError("its vectors are not of the size they were written with")
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
