"""Make an index, and add documents to one: encoded block by block, committed segment by segment.

A run that was killed goes on with the same command: what is there already, with the same text and metadata, is passed
over. Where a segment ends follows from the corpus alone, so an interrupted run and one that was not end in the same.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from colbert_zero.data.documents import Document, Documents, metadata_json
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.evaluation.ranking import embed
from colbert_zero.files import atomic_folder, to_json, writing
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.pooling import pooling_of, with_pooling
from colbert_zero.serving.changing import DeletedNow, checked_segments, close, sweep, with_deleted
from colbert_zero.serving.identity import load_identified, load_known
from colbert_zero.serving.manifest import (
    MOST_SEGMENTS,
    NAME,
    SEGMENTS,
    Corpus,
    Manifest,
    ModelIdentity,
    Storage,
    Unfinished,
    changed,
    read_manifest,
    write_manifest,
)
from colbert_zero.serving.passages import Cutter
from colbert_zero.serving.segments import Passages, Segment, SegmentWriter
from colbert_zero.serving.storage import to_stored
from colbert_zero.watch import stop_if_asked

SEGMENT_DOCUMENTS = 32_768

BLOCK_DOCUMENTS, BLOCK_CHARACTERS = 2048, 1_000_000
"""A block of documents encoded together ends at either."""

_KEYS = 1000
"""Names of metadata that are remembered."""

Tell = Callable[[str], None]
_Item = TypeVar("_Item")

Advance = Callable[[int, int], None]
"""Called with the documents done, and all."""


@dataclass(frozen=True)
class Settings:
    """How an index keeps its vectors.

    Attributes:
        storage: float16, float32 or int8.
        pool: Tokens of a document that become one vector, about; None: as the model does.
        passages: Tokens that the passages of long documents overlap by; None: a document is one, its end cut off.
        segment_documents: Documents of a segment, which are committed together.
    """

    storage: Storage = "float16"
    pool: float | None = None
    passages: int | None = None
    segment_documents: int = SEGMENT_DOCUMENTS


DEFAULTS = Settings()


@dataclass
class Added:
    """What an addition did.

    Attributes:
        documents: Added.
        there: Passed over, since the very same is there.
        replaced: Deleted, since another of their id came.
        cut: Added documents whose ends the model does not read.
        unfindable: Added documents without a token that is scored, which no search finds.
        left_out: What was passed over, by reason.
    """

    documents: int = 0
    there: int = 0
    replaced: int = 0
    cut: int = 0
    unfindable: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def build(
    model: str,
    documents: Documents,
    out: Path,
    settings: Settings = DEFAULTS,
    tell: Tell = print,
    progress: Advance | None = None,
) -> Added:
    """Index a corpus; one that a killed run has left goes on.

    Args:
        model: Folder or Hub id, multi-vector or dense.
        documents: The corpus.
        out: The index's folder.
        settings: How it is kept.
        tell: Told what is unusual.
        progress: Told how far it is.

    Raises:
        ColbertZeroError: A document cannot be used, two have one id, the model cannot be loaded, or `out` holds
            something else.
    """
    if out.exists() and not (out / NAME).is_file() and (not out.is_dir() or any(_foreign(out))):
        raise ColbertZeroError(f"--out {out} is there and no index; name another, or remove it")
    with writing(out, tell), _opened(out) as segments:
        there = read_manifest(out) if (out / NAME).is_file() else None
        seen = _Seen.of(documents, segments, True)
        if seen.corpus.documents == 0:
            raise ColbertZeroError(f"--corpus: no document with a text in {', '.join(documents.paths)}")
        encoder, identity = load_identified(model, "MODEL", tell)
        encoder = encoder if settings.pool is None else with_pooling(encoder, settings.pool)
        Cutter(encoder, settings.passages)
        manifest = Manifest(
            model=identity,
            storage=settings.storage,
            pool=pooling_of(encoder),
            passages=settings.passages,
            segment_documents=settings.segment_documents,
            corpus=seen.corpus.model_copy(update={"paths": documents.paths}),
            unfinished=Unfinished(digest=seen.corpus.digest, documents=seen.corpus.documents),
        )
        if there:
            _check_same(there, manifest, out)
        else:
            write_manifest(out, manifest)
        return _add(out, encoder, documents, seen, segments, progress)


def add(
    index: Path,
    documents: Documents,
    replace: bool = False,
    model: str | None = None,
    tell: Tell = print,
    progress: Advance | None = None,
    loaded: tuple[ModelIdentity, Encoder] | None = None,
) -> Added:
    """Add documents to an index. Of the same id, text and metadata as one that is there, it is passed over.

    Args:
        index: Its folder.
        documents: To be added.
        replace: Let a document take the place of another one of its id.
        model: Where the index's model is now; where it was, without.
        tell: Told what is unusual.
        progress: Told how far it is.
        loaded: A model that is loaded already; taken if it is the index's.

    Raises:
        ColbertZeroError: A document cannot be used, or its id is taken; the model is not there, or another.
    """
    read_manifest(index)
    with writing(index, tell), _opened(index) as segments:
        seen, manifest = _Seen.of(documents, segments, replace), read_manifest(index)
        same = loaded is not None and loaded[0] == manifest.model
        encoder = loaded[1] if loaded and same else load_known(manifest.model, model, tell)
        return _add(index, with_pooling(encoder, manifest.pool), documents, seen, segments, progress)


@contextmanager
def _opened(index: Path) -> Iterator[dict[str, Segment]]:
    """The segments that are there before an addition, by name, what a killed run left swept away."""
    segments: dict[str, Segment] = {}
    if (index / NAME).is_file():
        sweep(index)
        segments = checked_segments(index, read_manifest(index))
    try:
        yield segments
    finally:
        close(segments)


def _foreign(out: Path) -> Iterator[Path]:
    """What of a folder is not of a build that was killed before its first commit."""
    return (path for path in out.iterdir() if path.name not in (".lock", SEGMENTS) and path.suffix != ".tmp")


def _check_same(there: Manifest, wanted: Manifest, out: Path) -> None:
    """Refuse to go on with another model, other settings or another corpus.

    Raises:
        ColbertZeroError: Names what differs.
    """
    for what in ("storage", "pool", "passages", "segment_documents"):
        if getattr(there, what) != getattr(wanted, what):
            raise ColbertZeroError(
                f"--out {out} holds an index whose {what} is {getattr(there, what)}, not {getattr(wanted, what)}; "
                "name another --out, or remove it"
            )
    if (there.model.commit, there.model.contents) != (wanted.model.commit, wanted.model.contents):
        raise ColbertZeroError(f"--out {out} holds an index of another model, {there.model.place}; name another --out")
    if there.corpus.digest != wanted.corpus.digest:
        raise ColbertZeroError(
            f"--out {out} holds an index of another corpus ({', '.join(there.corpus.paths)}: "
            f"{there.corpus.documents:,} documents), or of an earlier state of this one; to add documents: "
            f"colbert-zero index add {out} --corpus PATH; or name another --out"
        )


# ---- The two passes over a corpus: all is checked before anything is encoded


@dataclass(frozen=True)
class _Known:
    """What is in the index already when an addition begins: segments by name, opened."""

    segments: dict[str, Segment]

    def find(self, documents: list[Document]) -> dict[str, tuple[str, int, bool]]:
        """{id: (segment, number, whether it is the very same)} of those whose ids are taken."""
        asked = {document.id: document for document in documents}
        found = {}
        for name, segment in self.segments.items():
            for row in segment.texts.find(list(asked)):
                if segment.live[row.number]:
                    mine = asked[row.id]
                    same = (row.text, row.metadata) == (mine.text, metadata_json(mine.metadata))
                    found[row.id] = name, row.number, same
        return found


@dataclass(frozen=True)
class _Seen:
    """What the first pass saw.

    Attributes:
        corpus: Its size and digest.
        new: Documents that are not there yet.
        keys: Names of their metadata.
        left_out: What is passed over.
    """

    corpus: Corpus
    new: int
    keys: list[str]
    left_out: Counter[str]

    @classmethod
    def of(cls, documents: Documents, segments: dict[str, Segment], replace: bool) -> "_Seen":
        """Read all documents, check them, and compare them with those that are there.

        Raises:
            ColbertZeroError: A document cannot be used, or its id is taken.
        """
        left_out, digest, known = Counter[str](), _Digest(), _Known(segments)
        new, keys, hashes = 0, dict[str, None](), []
        for block in _placed(documents, left_out):
            stop_if_asked()
            taken = known.find([document for _, document in block])
            for place, document in block:
                digest.add(document)
                hashes.append(hashlib.blake2b(document.id.encode(), digest_size=8).digest())
                keys |= dict.fromkeys(document.metadata)
                _, _, same = taken.get(document.id, ("", 0, True))
                if not same and not replace:
                    raise ColbertZeroError(
                        f"{place}: the id {short(repr(document.id))} is taken by a document with another text or "
                        "metadata; --replace puts this one in its place"
                    )
                new += not (document.id in taken and same)
        _check_unique(documents, hashes)
        corpus = Corpus(paths=[], documents=digest.documents, digest=digest.hexdigest())
        return cls(corpus, new, [short(key) for key in keys][:_KEYS], left_out)


class _Digest:
    """Changes whenever a document or their order does."""

    def __init__(self) -> None:
        self.documents, self._digest = 0, hashlib.blake2b(digest_size=16)

    def add(self, document: Document) -> None:
        self.documents += 1
        row = [document.id, document.text, metadata_json(document.metadata)]
        self._digest.update(to_json(row).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _check_unique(documents: Documents, hashes: list[bytes]) -> None:
    """Refuse two documents of one id. Eight bytes an id are held, whatever its length.

    Raises:
        ColbertZeroError: Names the id and both places.
    """
    values, counts = np.unique(np.frombuffer(b"".join(hashes), "<u8"), return_counts=True)
    twice = {int(value) for value in values[counts > 1]}
    if not twice:
        return
    places: dict[str, str] = {}
    for place, document in documents.read(Counter()):
        value = int.from_bytes(hashlib.blake2b(document.id.encode(), digest_size=8).digest(), "little")
        if value in twice and document.id in places:
            raise ColbertZeroError(
                f"{place}: the id {short(repr(document.id))} is there twice, first in {places[document.id]}; make the "
                "ids unique"
            )
        if value in twice:
            places[document.id] = place


def _blocks(items: Iterable[_Item], text: Callable[[_Item], str]) -> Iterator[list[_Item]]:
    """So many at a time as are encoded together."""
    block: list[_Item] = []
    characters = 0
    for item in items:
        block.append(item)
        characters += len(text(item))
        if len(block) == BLOCK_DOCUMENTS or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _placed(documents: Documents, left_out: Counter[str]) -> Iterator[list[tuple[str, Document]]]:
    return _blocks(documents.read(left_out), lambda item: item[1].text)


@dataclass(frozen=True)
class _New:
    """A document to be added, and the one whose place it takes: its segment and number."""

    document: Document
    replaces: tuple[str, int] | None


def _add(
    index: Path,
    encoder: Encoder,
    documents: Documents,
    seen: _Seen,
    segments: dict[str, Segment],
    progress: Advance | None,
) -> Added:
    """The second pass; the index is held by this process."""
    manifest, digest = read_manifest(index), _Digest()
    if -(-seen.new // manifest.segment_documents) > MOST_SEGMENTS - len(manifest.segments):
        raise ColbertZeroError(
            f"{index} would have more than {MOST_SEGMENTS} segments; make few of the many first (`colbert-zero index "
            f"compact {index}`), or take larger ones (--segment-documents)"
        )
    keys = list(dict.fromkeys([*manifest.metadata_keys, *seen.keys]))[:_KEYS]
    adding = _Adding(index, encoder, manifest.model_copy(update={"metadata_keys": keys}), seen, progress)
    coming = _new_documents(documents, segments, digest, adding.added)
    for first in coming:
        adding.segment(chain([first], islice(coming, manifest.segment_documents - 1)))
    if digest.hexdigest() != seen.corpus.digest:
        raise ColbertZeroError(
            f"the corpus changed while it was read; {index} holds what was read of it, in part as it was before. Leave "
            "the files as they are, and start anew with another --out"
        )
    return adding.end()


def _new_documents(documents: Documents, segments: dict[str, Segment], digest: _Digest, added: Added) -> Iterator[_New]:
    """The second pass: what is not there yet."""
    known = _Known(segments)
    for block in _placed(documents, Counter()):
        taken = known.find([document for _, document in block])
        for _, document in block:
            digest.add(document)
            name, number, same = taken.get(document.id, ("", 0, False))
            if same:
                added.there += 1
            else:
                yield _New(document, (name, number) if name else None)


class _Adding:
    """New documents on their way into segments."""

    def __init__(self, index: Path, encoder: Encoder, manifest: Manifest, seen: _Seen, progress: Advance | None):
        self._index, self._encoder, self._manifest, self._seen = index, encoder, manifest, seen
        self._cutter, self._progress = Cutter(encoder, manifest.passages), progress
        self.added = Added(left_out=seen.left_out)

    def segment(self, coming: Iterable[_New]) -> None:
        """Encode a segment's documents; give it its name, and let the manifest name it, with what it replaces."""
        manifest, cut_before = self._manifest, self.added.cut
        name, replaced = f"{manifest.next_segment:06d}", DeletedNow()
        with (
            atomic_folder(self._index / SEGMENTS / name) as folder,
            SegmentWriter(folder, name, manifest.model.dim, manifest.storage) as writer,
        ):
            for block in _blocks(coming, lambda new: new.document.text):
                stop_if_asked()
                self._encode([new.document for new in block], writer)
                for new in block:
                    if new.replaces:
                        replaced.setdefault(new.replaces[0], []).append(new.replaces[1])
            entry = writer.finish()
        self.added.replaced += sum(map(len, replaced.values()))
        manifest = with_deleted(self._index, manifest, replaced)
        unfinished, left = manifest.unfinished, self._seen.new - self.added.documents
        if unfinished is None or unfinished.digest == self._seen.corpus.digest:
            unfinished = Unfinished(digest=self._seen.corpus.digest, documents=left) if left else None
        self._manifest = changed(
            manifest,
            segments=[*manifest.segments, entry],
            next_segment=manifest.next_segment + 1,
            unfinished=unfinished,
            cut=manifest.cut + self.added.cut - cut_before,
        )
        write_manifest(self._index, self._manifest)

    def _encode(self, documents: list[Document], writer: SegmentWriter) -> None:
        texts = [document.text for document in documents]
        passages, cut = self._cutter.cut(texts)
        owners = np.repeat(np.arange(len(texts)), [len(parts) for parts in passages])
        places = [part for parts in passages for part in parts]
        cut_out = [texts[owner][part.begin : part.end] for owner, part in zip(owners.tolist(), places, strict=True)]
        embedded = embed(self._encoder, cut_out, "document")
        stored, scales = to_stored(embedded.values, self._manifest.storage)
        lengths = embedded.lengths.to("cpu", torch.int64).numpy()
        begins, ends = np.array(places).reshape(-1, 2).T
        rows = [(document.id, metadata_json(document.metadata), document.text) for document in documents]
        writer.add(rows, Passages(lengths, owners, begins, ends), stored, scales)
        self.added.documents += len(documents)
        self.added.cut += cut
        self.added.unfindable += int((np.bincount(owners, lengths, len(documents)) == 0).sum())
        if self._progress:
            self._progress(self.added.documents, self._seen.new)

    def end(self) -> Added:
        """All is there, also where nothing was new."""
        unfinished = self._manifest.unfinished
        if unfinished and unfinished.digest == self._seen.corpus.digest:
            self._manifest = changed(self._manifest, unfinished=None)
            write_manifest(self._index, self._manifest)
        sweep(self._index)
        return self.added
