"""Make an index, and add documents to one: encoded block by block, committed segment by segment.

    main process     first pass: reads all, checks all, compares it with what is there
    every process    second pass: reads all; makes its share of the segments, each with a record (`coming`)
    main process     gives the manifest the segments that are made, in the corpus' order

A run that was killed goes on with the same command and any number of processes: what is there already, with the same
text and metadata, is passed over, and so are segments that are made. Where a segment ends, and what is encoded
together, follows from the corpus alone, so all runs end in the same index, whoever made its segments.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from dataclasses import replace as with_values
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from colbert_zero.data.documents import Document, Documents, metadata_json
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.evaluation.ranking import embed
from colbert_zero.files import Progress, Tell, atomic_folder, to_json, writing
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.graphs import Graph, computed_by
from colbert_zero.models.pooling import pooling_of, with_pooling
from colbert_zero.models.precision import decided, encoding_in
from colbert_zero.processes import appears, from_main, is_main, process_rank, wait, world_size
from colbert_zero.recipe.entry import Precision
from colbert_zero.serving.identity import load_identified, load_known
from colbert_zero.serving.index.changing import (
    DeletedNow,
    checked_segments,
    close,
    damage_told,
    sweep,
    with_deleted,
)
from colbert_zero.serving.index.coming import Made, made_of, numbers_made, record_of, write_made
from colbert_zero.serving.index.manifest import (
    COMING,
    LONGEST_NAME,
    MOST_SEGMENTS,
    NAME,
    PYTORCH,
    PYTORCH_HALF,
    SEGMENT_DOCUMENTS,
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
from colbert_zero.serving.index.segments import Passages, Segment, SegmentWriter
from colbert_zero.serving.index.storage import to_stored
from colbert_zero.serving.passages import Cutter
from colbert_zero.watch import stop_if_asked

BLOCK_DOCUMENTS, BLOCK_CHARACTERS = 2048, 1_000_000
"""A block of documents encoded together ends at either."""

_KEYS = 1000
"""Names of metadata that are remembered."""

_Item = TypeVar("_Item")

Find = Callable[[list[Document]], dict[str, tuple[str, int, bool]]]
"""{id: (segment, number, whether it is the very same)} of those documents whose ids are taken."""


@dataclass(frozen=True)
class Settings:
    """How an index keeps its vectors.

    Attributes:
        storage: float16, float32 or int8.
        pool: Tokens of a document that become one vector, about; None: as the model does.
        passages: Tokens that the passages of long documents overlap by; None: a document is one, its end cut off.
        segment_documents: Documents of a segment, which are committed together.
        graph: That encodes documents in PyTorch's place, of the same model.
        precision: PyTorch's: float32, bfloat16, or auto, which is what the device is faster in.
    """

    storage: Storage = "float16"
    pool: float | None = None
    passages: int | None = None
    segment_documents: int = SEGMENT_DOCUMENTS
    graph: Graph | None = None
    precision: Precision = "float32"


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
        longest: Tokens of a document that the model reads.
        left_out: What was passed over, by reason.
        finished: The index was made of this corpus before, so nothing was done.
    """

    documents: int = 0
    there: int = 0
    replaced: int = 0
    cut: int = 0
    unfindable: int = 0
    longest: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    finished: bool = False

    def told(self, index: object) -> list[str]:
        """What was added to an index and what not, in sentences."""
        if self.finished:
            return [
                f"{index}: it was finished before with this corpus, and nothing is changed; to add documents: "
                f"colbert-zero index add {index} --corpus PATH"
            ]
        told = [f"{self.documents:,} documents added"]
        told += [f"{self.there:,} there already"] if self.there else []
        told += [f"{self.replaced:,} replaced"] if self.replaced else []
        lines = [f"{index}: {', '.join(told)}"]
        lines += [f"  left out, {reason}: {count:,}" for reason, count in self.left_out.items()]
        if self.cut:
            lines.append(
                f"  {self.cut:,} documents are longer than the {self.longest} tokens that the model reads: their ends "
                "are cut off and cannot be found; --passages 32 would cut them into passages instead"
            )
        if self.unfindable:
            lines.append(f"  {self.unfindable:,} documents have no token that is scored, and are never found")
        return lines


def build(
    model: str,
    documents: Documents,
    out: Path,
    settings: Settings = DEFAULTS,
    tell: Tell = print,
    progress: Progress | None = None,
) -> Added:
    """Index a corpus; one that a killed run has left goes on. Called in every process of those that work together.

    Once it is finished nothing is done, so that what was deleted or replaced since stays so.

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
    if is_main() and out.exists() and not (out / NAME).is_file() and (not out.is_dir() or any(_foreign(out))):
        raise ColbertZeroError(f"--out {out} is there and no index; name another, or remove it")
    with _held(out, tell):
        seen: Seen = from_main(Seen.of(documents, out, True) if is_main() else None)
        if seen.corpus.documents == 0:
            raise ColbertZeroError(f"--corpus: no document with a text in {', '.join(documents.paths)}")
        on_cpu: dict[str, Any] = {"device": "cpu"} if settings.graph else {}
        encoder, identity = load_identified(model, "MODEL", tell, **on_cpu)
        encoded_by = from_main(_encoded_by(settings, encoder.device, out) if is_main() else None)
        encoder = computed_by(encoder, settings.graph) if settings.graph else _in(encoder, encoded_by)
        encoder = encoder if settings.pool is None else with_pooling(encoder, settings.pool)
        Cutter(encoder, settings.passages)
        manifest = Manifest(
            model=identity,
            storage=settings.storage,
            pool=pooling_of(encoder),
            passages=settings.passages,
            segment_documents=settings.segment_documents,
            encoded_by=encoded_by,
            corpus=seen.corpus.model_copy(update={"paths": documents.paths}),
            unfinished=Unfinished(digest=seen.corpus.digest, documents=seen.corpus.documents),
        )
        finished = False
        if is_main():
            if (out / NAME).is_file():
                there = read_manifest(out)
                _check_same(there, manifest, out)
                finished = there.unfinished is None or there.unfinished.digest != there.corpus.digest
            else:
                write_manifest(out, manifest)
        if from_main(finished):
            return Added(finished=True)
        return _add(out, encoder, documents, seen, progress)


def add(
    index: Path,
    documents: Documents,
    replace: bool = False,
    model: str | None = None,
    tell: Tell = print,
    progress: Progress | None = None,
    loaded: tuple[ModelIdentity, Encoder] | None = None,
    graph: Graph | None = None,
) -> Added:
    """Add documents to an index. Of the same id, text and metadata as one that is there, it is passed over.

    Called in every process of those that work together.

    Args:
        index: Its folder.
        documents: To be added.
        replace: Let a document take the place of another one of its id.
        model: Where the index's model is now; where it was, without.
        tell: Told what is unusual.
        progress: Told how far it is.
        loaded: A model that is loaded already; taken if it is the index's.
        graph: That encodes documents in PyTorch's place: the one that the index was made with.

    Raises:
        ColbertZeroError: A document cannot be used, has no id, or its id is taken; the model is not there, or another.
    """
    documents = with_values(documents, needs_ids=True)
    read_manifest(index)
    with _held(index, tell):
        seen: Seen = from_main(Seen.of(documents, index, replace) if is_main() else None)
        manifest = read_manifest(index)
        _check_encoded_alike(manifest, graph, index)
        same = loaded is not None and loaded[0] == manifest.model
        encoder = loaded[1] if loaded and same else load_known(manifest.model, model, tell, graph)
        encoder = with_pooling(_in(encoder, manifest.encoded_by), manifest.pool)
        return _add(index, encoder, documents, seen, progress)


@contextmanager
def _held(index: Path, tell: Tell) -> Iterator[None]:
    """The index is this run's alone; the main process holds it for the others."""
    with writing(index, tell) if is_main() else nullcontext():
        yield


def _foreign(out: Path) -> Iterator[Path]:
    """What of a folder is not of a build that was killed before its first commit."""
    return (path for path in out.iterdir() if path.name not in (".lock", SEGMENTS, COMING) and path.suffix != ".tmp")


def _check_encoded_alike(there: Manifest, graph: Graph | None, index: Path) -> None:
    """Refuse to put vectors of one arithmetic beside those of another."""
    by_pytorch = there.encoded_by in (PYTORCH, PYTORCH_HALF)
    own = graph.words if graph else PYTORCH
    if own != there.encoded_by and not (by_pytorch and graph is None):
        mend = "leave --graph out" if by_pytorch else "name that graph (--graph, --runtime)"
        raise ColbertZeroError(f"{index}: its documents were encoded by {there.encoded_by}, not {own}; {mend}")


def _encoded_by(settings: Settings, device: torch.device, out: Path) -> str:
    """What computes the documents' vectors; where `auto` was decided before, that stays."""
    if settings.graph:
        return settings.graph.words
    if settings.precision == "auto" and (out / NAME).is_file():
        before = read_manifest(out).encoded_by
        if before in (PYTORCH, PYTORCH_HALF):
            return before
    return PYTORCH_HALF if decided(settings.precision, device) == "bfloat16" else PYTORCH


def _in(encoder: Encoder, encoded_by: str) -> Encoder:
    return encoding_in(encoder, "bfloat16" if encoded_by == PYTORCH_HALF else "float32")


def _check_same(there: Manifest, wanted: Manifest, out: Path) -> None:
    """Refuse to go on with another model, other settings or another corpus.

    Raises:
        ColbertZeroError: Names what differs.
    """
    for what in ("storage", "pool", "passages", "segment_documents", "encoded_by"):
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

    index: Path
    manifest: Manifest | None
    segments: dict[str, Segment]

    @classmethod
    def of(cls, index: Path, manifest: Manifest | None) -> "_Known":
        """What an index has by its manifest, which the main process may have changed since; None: it is none yet."""
        return cls(index, manifest, {} if manifest is None else checked_segments(index, manifest))

    def close(self) -> None:
        """Close the segments."""
        close(self.segments)

    def find(self, documents: list[Document]) -> dict[str, tuple[str, int, bool]]:
        """As `Find`."""
        if self.manifest is None:
            return {}
        asked = {document.id: document for document in documents}
        found = {}
        with damage_told(self.index, self.manifest):
            for name, segment in self.segments.items():
                for row in segment.find(list(asked)):
                    mine = asked[row.id]
                    same = (row.text, row.metadata) == (mine.text, metadata_json(mine.metadata))
                    found[row.id] = name, row.number, same
        return found


@dataclass(frozen=True)
class Seen:
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
    def of(cls, documents: Documents, index: Path, replace: bool) -> "Seen":
        """Read all documents, check them, and compare them with those that are there.

        Raises:
            ColbertZeroError: A document cannot be used, or its id is taken.
        """
        manifest = read_manifest(index) if (index / NAME).is_file() else None
        with closing(_Known.of(index, manifest)) as known:
            return cls.compared(documents, known.find, replace)

    @classmethod
    def compared(cls, documents: Documents, find: Find, replace: bool) -> "Seen":
        """As `of`, with what is there found in whatever way."""
        left_out, digest = Counter[str](), Digest()
        new, keys, hashes = 0, dict[str, None](), []
        for block in _placed(documents, left_out):
            stop_if_asked()
            taken = find([document for _, document in block])
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
        known = [key for key in keys if len(key) <= LONGEST_NAME][:_KEYS]
        if unknown := len(keys) - len(known):
            left_out["a name of metadata that cannot be filtered by, too long or one too many"] += unknown
        return cls(corpus, new, known, left_out)


class Digest:
    """Changes whenever a document or their order does."""

    def __init__(self) -> None:
        self.documents, self._digest = 0, hashlib.blake2b(digest_size=16)

    def add(self, document: Document) -> None:
        """Take the next document."""
        self.documents += 1
        row = [document.id, document.text, metadata_json(document.metadata)]
        self._digest.update(to_json(row).encode() + b"\n")

    def hexdigest(self) -> str:
        """Of the documents so far."""
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


def blocks(items: Iterable[_Item], text: Callable[[_Item], str]) -> Iterator[list[_Item]]:
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
    return blocks(documents.read(left_out), lambda item: item[1].text)


@dataclass(frozen=True)
class New:
    """A document to be added, and the one whose place it takes: its segment and number."""

    document: Document
    replaces: tuple[str, int] | None


def _add(index: Path, encoder: Encoder, documents: Documents, seen: Seen, progress: Progress | None) -> Added:
    """The second pass; the index is held by this run."""
    manifest, made = from_main(_begun(index, seen) if is_main() else None)
    adding, digest = _Adding(index, encoder, manifest, seen), Digest()
    with closing(_Known.of(index, manifest)) as known:
        coming = new_documents(documents, known.find, digest, seen, adding.added, progress)
        left = 0
        for number, unit in enumerate(_units(coming, manifest.segment_documents), manifest.next_segment):
            if number not in made:
                if left % world_size() == process_rank():
                    adding.make(number, unit)
                left += 1
            deque(unit, maxlen=0)  # whoever does not make it passes over it
            if is_main():
                adding.name_made()
    if digest.hexdigest() != seen.corpus.digest:
        raise ColbertZeroError(
            f"the corpus changed while it was read; {index} holds what was read of it, in part as it was before. Leave "
            "the files as they are, and start anew with another --out"
        )
    wait()
    added: Added = from_main(adding.end() if is_main() else None)
    return added


def _begun(index: Path, seen: Seen) -> tuple[Manifest, set[int]]:
    """The manifest that an addition begins with, and the numbers of the segments that a killed run has made."""
    manifest = read_manifest(index)
    if -(-seen.new // manifest.segment_documents) > MOST_SEGMENTS - len(manifest.segments):
        raise ColbertZeroError(
            f"{index} would have more than {MOST_SEGMENTS} segments; make few of the many first (`colbert-zero index "
            f"compact {index}`), or take larger ones (--segment-documents)"
        )
    sweep(index, seen.corpus.digest)
    keys = list(dict.fromkeys([*manifest.metadata_keys, *seen.keys]))[:_KEYS]
    return manifest.model_copy(update={"metadata_keys": keys}), numbers_made(index)


def _units(coming: Iterator[New], size: int) -> Iterator[Iterator[New]]:
    """The documents of each segment to be made."""
    for first in coming:
        yield chain([first], islice(coming, size - 1))


def new_documents(
    documents: Documents, find: Find, digest: Digest, seen: Seen, added: Added, progress: Progress | None
) -> Iterator[New]:
    """The second pass: what is not there yet. Those that are there are counted, and all are added to the digest."""
    new = 0
    for block in _placed(documents, Counter()):
        taken = find([document for _, document in block])
        for _, document in block:
            digest.add(document)
            name, number, same = taken.get(document.id, ("", 0, False))
            if same:
                added.there += 1
            else:
                yield New(document, (name, number) if name else None)
                new += 1
        if progress:
            progress(new, seen.new)


class Encoded(NamedTuple):
    """Documents, encoded.

    Attributes:
        embedded: Vectors of their passages.
        passages: Of these documents.
        cut: Numbers of the documents whose ends the model does not read.
        unfindable: How many have no token that is scored.
    """

    embedded: Packed
    passages: Passages
    cut: list[int]
    unfindable: int


def encoded(encoder: Encoder, cutter: Cutter, texts: list[str]) -> Encoded:
    """Cut texts of documents into passages, and encode these."""
    places, cut = cutter.cut(texts)
    owners = np.repeat(np.arange(len(texts)), [len(parts) for parts in places])
    flat = [part for parts in places for part in parts]
    cut_out = [texts[owner][part.begin : part.end] for owner, part in zip(owners.tolist(), flat, strict=True)]
    embedded = embed(encoder, cut_out, "document")
    lengths = embedded.lengths.to("cpu", torch.int64).numpy()
    begins, ends = np.array(flat).reshape(-1, 2).T
    unfindable = int((np.bincount(owners, lengths, len(texts)) == 0).sum())
    return Encoded(embedded, Passages(lengths, owners, begins, ends), cut, unfindable)


class _Adding:
    """New documents on their way into segments, and segments on their way into the manifest."""

    def __init__(self, index: Path, encoder: Encoder, manifest: Manifest, seen: Seen):
        self._index, self._encoder, self._manifest, self._seen = index, encoder, manifest, seen
        self._cutter = Cutter(encoder, manifest.passages)
        self._last = manifest.next_segment - 1 + -(-seen.new // manifest.segment_documents)
        self.added = Added(longest=manifest.model.document_tokens, left_out=seen.left_out)

    def make(self, number: int, documents: Iterator[New]) -> None:
        """Encode a segment's documents, give it its name, and write down that it is made."""
        name, replaced, cut, unfindable = f"{number:06d}", DeletedNow(), 0, 0
        with (
            atomic_folder(self._index / SEGMENTS / name) as folder,
            SegmentWriter(folder, name, self._manifest) as writer,
        ):
            for block in blocks(documents, lambda new: new.document.text):
                stop_if_asked()
                more_cut, more_unfindable = self._encode([new.document for new in block], writer)
                cut, unfindable = cut + more_cut, unfindable + more_unfindable
                for new in block:
                    if new.replaces:
                        replaced.setdefault(new.replaces[0], []).append(new.replaces[1])
            entry = writer.finish()
        digest = self._seen.corpus.digest
        write_made(self._index, Made(entry=entry, digest=digest, cut=cut, unfindable=unfindable, replaced=replaced))

    def name_made(self) -> None:
        """Let the manifest name the segments that come next and are made, with what they replace."""
        while (made := made_of(self._index, self._manifest.next_segment)) is not None:
            added, manifest = self.added, with_deleted(self._index, self._manifest, made.replaced)
            added.documents += made.entry.documents
            added.replaced += sum(map(len, made.replaced.values()))
            added.cut += made.cut
            added.unfindable += made.unfindable
            unfinished, left = manifest.unfinished, self._seen.new - added.documents
            if unfinished is None or unfinished.digest == self._seen.corpus.digest:
                unfinished = Unfinished(digest=self._seen.corpus.digest, documents=left) if left else None
            self._manifest = changed(
                manifest,
                segments=[*manifest.segments, made.entry],
                next_segment=manifest.next_segment + 1,
                unfinished=unfinished,
                cut=manifest.cut + made.cut,
            )
            write_manifest(self._index, self._manifest)

    def _encode(self, documents: list[Document], writer: SegmentWriter) -> tuple[int, int]:
        """Returns how many have an end that the model does not read, and how many no token that is scored."""
        found = encoded(self._encoder, self._cutter, [document.text for document in documents])
        stored, scales = to_stored(found.embedded.values, self._manifest.storage)
        rows = [(document.id, metadata_json(document.metadata), document.text) for document in documents]
        writer.add(rows, found.passages, stored, scales)
        return len(found.cut), found.unfindable

    def end(self) -> Added:
        """All is made: the manifest names it, also where nothing was new."""
        for number in range(self._manifest.next_segment, self._last + 1):
            appears(record_of(self._index, number))
        self.name_made()
        unfinished = self._manifest.unfinished
        if unfinished and unfinished.digest == self._seen.corpus.digest:
            self._manifest = changed(self._manifest, unfinished=None)
            write_manifest(self._index, self._manifest)
        sweep(self._index)
        return self.added
