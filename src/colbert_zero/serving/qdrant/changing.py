"""Make an index on Qdrant, add documents to it, delete some, look whether it is whole.

A document is one point a passage. Its first passage is written last and deleted last, so it is there if and only if its
first passage is: after a kill the same command finds what is there by the digests in the collection, and goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from colbert_zero.data.documents import Document, Documents, metadata_json
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.files import Progress, Tell
from colbert_zero.models.checkpoints import Encoder
from colbert_zero.models.pooling import pooling_of, with_pooling
from colbert_zero.serving.identity import load_identified, load_known
from colbert_zero.serving.index.building import (
    Added,
    Digest,
    Encoded,
    Find,
    New,
    Seen,
    blocks,
    encoded,
    new_documents,
)
from colbert_zero.serving.index.manifest import Unfinished
from colbert_zero.serving.index.segments import UnknownDocumentError
from colbert_zero.serving.index.storage import to_stored
from colbert_zero.serving.index.texts import values_as_text
from colbert_zero.serving.passages import Cutter
from colbert_zero.serving.qdrant.collection import (
    KEY,
    MOST_NUMBERS,
    POOLED,
    TOKENS,
    Address,
    Collection,
    Quantization,
    Record,
    digest_of,
    point_id,
    where_of,
)
from colbert_zero.watch import stop_if_asked

if TYPE_CHECKING:
    from qdrant_client import models

_BATCH_NUMBERS = 1 << 19
"""Of the vectors of an upload's points: about 10 MB as JSON; a server takes 32 MB by default."""

_BATCH_POINTS = 256

_AT_ONCE = 1000
"""Points looked up, listed or deleted by one request."""

_LOCAL_DOCUMENTS = 20_000
"""More than these qdrant-client advises against keeping in its local mode."""


@dataclass(frozen=True)
class QdrantSettings:
    """How an index on Qdrant keeps its vectors.

    Attributes:
        storage: float16 or float32.
        quantization: Of the token vectors, beside the original ones: none, scalar (int8) or binary.
        pool: Tokens of a document that become one vector, about; None: as the model does.
        passages: Tokens that the passages of long documents overlap by; None: a document is one, its end cut off.
    """

    storage: str = "float16"
    quantization: Quantization = "none"
    pool: float | None = None
    passages: int | None = None


def build(
    model: str,
    documents: Documents,
    address: Address,
    settings: QdrantSettings,
    tell: Tell = print,
    progress: Progress | None = None,
) -> Added:
    """Index a corpus on Qdrant; one that a killed run has left goes on.

    Args:
        model: Folder or Hub id, multi-vector or dense.
        documents: The corpus.
        address: Where the collection is, or will be.
        settings: How it is kept.
        tell: Told what is unusual.
        progress: Told how far it is.

    Raises:
        ColbertZeroError: A document cannot be used, two have one id, the model cannot be loaded, the collection holds
            something else, or the server fails.
    """
    if settings.storage not in ("float16", "float32"):
        raise ColbertZeroError(
            f"--store {settings.storage}: Qdrant keeps float16 or float32; --quantization scalar puts int8 beside them"
        )
    collection = Collection(address, tell, make=True)
    try:
        there = _finished(collection, collection.record(), tell) if collection.exists() else None
        seen = Seen.compared(documents, _find(collection) if there else lambda _: {}, True)
        if seen.corpus.documents == 0:
            raise ColbertZeroError(f"--corpus: no document with a text in {', '.join(documents.paths)}")
        encoder, identity = load_identified(model, "MODEL", tell)
        encoder = encoder if settings.pool is None else with_pooling(encoder, settings.pool)
        record = Record.model_validate({
            "model": identity,
            "storage": settings.storage,
            "quantization": settings.quantization,
            "pool": pooling_of(encoder),
            "passages": settings.passages,
            "corpus": seen.corpus.model_copy(update={"paths": documents.paths}),
        })  # fmt: skip
        if there:
            _check_same(there, record, address)
        else:
            Cutter(encoder, settings.passages)
            _create(collection, record)
        _index_payloads(collection)
        return _add(collection, there or record, encoder, documents, seen, tell, progress)
    finally:
        collection.close()


def add(
    address: Address,
    documents: Documents,
    replace: bool = False,
    model: str | None = None,
    tell: Tell = print,
    progress: Progress | None = None,
) -> Added:
    """Add documents to an index on Qdrant. Of the same id, text and metadata as one that is there, it is passed over.

    Args:
        address: Of the collection.
        documents: To be added.
        replace: Let a document take the place of another one of its id.
        model: Where the index's model is now; where it was, without.
        tell: Told what is unusual.
        progress: Told how far it is.

    Raises:
        ColbertZeroError: A document cannot be used, or its id is taken; the model is not there, or another; or the
            server fails.
    """
    collection = Collection(address, tell)
    try:
        record = _finished(collection, collection.record(), tell)
        seen = Seen.compared(documents, _find(collection), replace)
        encoder = with_pooling(load_known(record.model, model, tell), record.pool)
        return _add(collection, record, encoder, documents, seen, tell, progress)
    finally:
        collection.close()


def delete(address: Address, ids: list[str], tell: Tell = print) -> int:
    """Delete documents; returns how many. None is deleted where one is not there; one that was stopped is finished too.

    Raises:
        UnknownDocumentError: An id is not there; nothing is deleted.
        ColbertZeroError: The server fails; the same call goes on.
    """
    collection = Collection(address, tell)
    try:
        record = collection.record()
        begun, asked = record.deleting or [], list(dict.fromkeys(ids))
        going = list(dict.fromkeys([*begun, *asked]))
        found = _passages(collection, going)
        missing = [identifier for identifier in asked if identifier not in found and identifier not in begun]
        if missing:
            names = ", ".join(short(repr(identifier)) for identifier in missing[:5])
            raise UnknownDocumentError(
                f"{address} has no document {names}{' …' if len(missing) > 5 else ''} ({len(missing):,} of "
                f"{len(asked):,} ids are not there); nothing was deleted, leave these out"
            )
        _tell_of(begun, asked, address, tell)
        _delete(collection, record, going, found)
        return len(found)
    finally:
        collection.close()


def _finished(collection: Collection, record: Record, tell: Tell) -> Record:
    """The record, once a deletion that was stopped is finished: half of a document may be gone."""
    if record.deleting is None:
        return record
    _tell_of(record.deleting, [], collection.address, tell)
    return _delete(collection, record, record.deleting, _passages(collection, record.deleting))


def _tell_of(begun: list[str], asked: list[str], address: Address, tell: Tell) -> None:
    if set(begun) - set(asked):
        tell(f"{address}: a deletion of {len(begun):,} documents was stopped; it is finished now")


def _passages(collection: Collection, ids: list[str]) -> dict[str, int]:
    """{id: passages} of the documents that are there."""
    found: dict[str, int] = {}
    for some in _slices(ids):
        points = collection.retrieve([point_id(identifier, 0) for identifier in some], ["document", "passages"])
        found |= {point.payload["document"]: point.payload["passages"] for point in points.values()}
    return found


def _delete(collection: Collection, record: Record, ids: list[str], found: dict[str, int]) -> Record:
    """Delete documents, by id and passages those that are still there; the record says meanwhile which."""
    collection.write(record.model_copy(update={"deleting": ids}))
    _remove(collection, [point_id(name, number) for name in found for number in range(1, found[name])])
    _remove(collection, [point_id(name, 0) for name in found])
    record = record.model_copy(update={"deleting": None, "generation": record.generation + 1})
    collection.write(record)
    return record


@dataclass
class QdrantState:
    """What an index on Qdrant holds.

    Attributes:
        record: What it is.
        documents: In it.
        points: Passages of them.
        status: Green, or what Qdrant says of itself: yellow while it optimises.
        cut: Documents longer than the model reads, whose ends were cut off.
        broken: Documents that are not as they were written, and why.
    """

    record: Record
    documents: int = 0
    points: int = 0
    status: str = ""
    cut: int = 0
    broken: dict[str, str] = field(default_factory=dict)


def check(address: Address, tell: Tell = print) -> QdrantState:
    """Read the payload of every point: are texts and metadata as they were written, and all passages there?

    Raises:
        ColbertZeroError: It cannot be reached, or is no index.
    """
    collection = Collection(address, tell)
    try:
        state = QdrantState(collection.record())
        state.status = str(getattr(collection.ask(lambda c: c.get_collection(collection.name)).status, "value", ""))
        passages: dict[str, int] = {}
        for payload in _payloads(collection):
            state.points += 1
            name = payload.get("document")
            if not isinstance(name, str):
                state.broken["?"] = "a point without a document"
                continue
            passages[name] = passages.get(name, 0) + 1
        for payload in _payloads(collection, first=True):
            state.documents += 1
            state.cut += payload.get("cut") is True
            name = str(payload.get("document"))
            try:
                same = payload["digest"] == digest_of(Document(name, payload["text"], payload["metadata"]))
                count = payload["passages"]
            except (KeyError, TypeError, ValueError):
                same, count = False, 0
            if not same:
                state.broken[name] = "its text or metadata are not as they were written"
            elif passages.pop(name, 0) != count:
                state.broken[name] = "passages of it are missing, or left over"
            passages.pop(name, None)
        state.broken |= dict.fromkeys(passages, "its first passage is missing")
        return state
    finally:
        collection.close()


# ---- What is there


def _find(collection: Collection) -> Find:
    """What is there: of a document not its segment and number, but the collection and how many passages it has."""

    def find(documents: list[Document]) -> dict[str, tuple[str, int, bool]]:
        found = {}
        for some in _slices(documents):
            ids = {point_id(document.id, 0): document for document in some}
            for key, point in collection.retrieve(list(ids), ["digest", "passages"]).items():
                document = ids[key]
                same = point.payload["digest"] == digest_of(document)
                found[document.id] = collection.name, point.payload["passages"], same
        return found

    return find


def _slices(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def _payloads(collection: Collection, first: bool = False) -> Iterator[dict[str, Any]]:
    """Of all points, without texts; or of all first passages, whole."""
    from qdrant_client import models

    only, wanted, offset = None, ["document"], None
    if first:
        only = models.Filter(must=[models.FieldCondition(key="passage", match=models.MatchValue(value=0))])
        wanted = ["document", "digest", "text", "metadata", "passages", "cut"]
    while True:
        stop_if_asked()
        points, offset = collection.ask(
            lambda client, offset=offset: client.scroll(  # type: ignore[misc]
                collection.name, scroll_filter=only, limit=_AT_ONCE, offset=offset, with_payload=wanted
            )
        )
        for point in points:
            yield point.payload or {}
        if offset is None:
            return


def _check_same(there: Record, wanted: Record, address: Address) -> None:
    """Refuse to go on with another model, other settings or another corpus.

    Raises:
        ColbertZeroError: Names what differs.
    """
    if there.model.dim != wanted.model.dim:
        raise ColbertZeroError(
            f"{address} holds vectors of {there.model.dim} numbers, the model gives {wanted.model.dim}; name another "
            "--out"
        )
    if (there.model.commit, there.model.contents) != (wanted.model.commit, wanted.model.contents):
        raise ColbertZeroError(f"{address} holds an index of another model, {there.model.place}; name another --out")
    for what in ("storage", "quantization", "pool", "passages"):
        if getattr(there, what) != getattr(wanted, what):
            raise ColbertZeroError(
                f"{address} holds an index whose {what} is {getattr(there, what)}, not {getattr(wanted, what)}; name "
                "another --out"
            )
    if there.corpus.digest != wanted.corpus.digest:
        raise ColbertZeroError(
            f"{address} holds an index of another corpus ({', '.join(there.corpus.paths)}: {there.corpus.documents:,} "
            "documents), or of an earlier state of this one; to add documents: colbert-zero index add; or name another "
            "--out"
        )


# ---- Making and filling


def _create(collection: Collection, record: Record) -> None:
    from qdrant_client import models

    quantised: dict[str, Any] = {
        "none": None,
        "scalar": models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        ),
        "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    }
    tokens = models.VectorParams(
        size=record.model.dim,
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        hnsw_config=models.HnswConfigDiff(m=0),
        quantization_config=quantised[record.quantization],
        datatype=models.Datatype(record.storage),
        on_disk=True,
    )
    pooled = models.VectorParams(size=record.model.dim, distance=models.Distance.COSINE)
    collection.ask(
        lambda client: client.create_collection(
            collection.name,
            vectors_config={TOKENS: tokens, POOLED: pooled},
            on_disk_payload=True,
            metadata={KEY: record.model_dump(mode="json")},
        )
    )
    collection.record()


def _index_payloads(collection: Collection) -> None:
    """What filters and groups ask for; the local mode has no such indexes."""
    from qdrant_client import models

    if collection.address.remote:
        keyword, integer = models.PayloadSchemaType.KEYWORD, models.PayloadSchemaType.INTEGER
        for key, schema in (("where", keyword), ("document", keyword), ("passage", integer)):
            collection.send(
                lambda client, key=key, schema=schema: client.create_payload_index(collection.name, key, schema)  # type: ignore[misc]
            )


def _add(
    collection: Collection,
    record: Record,
    encoder: Encoder,
    documents: Documents,
    seen: Seen,
    tell: Tell,
    progress: Progress | None,
) -> Added:
    """The second pass."""
    cutter, digest, added = (
        Cutter(encoder, record.passages),
        Digest(),
        Added(longest=record.model.document_tokens, left_out=seen.left_out),
    )
    if not collection.address.remote and seen.corpus.documents > _LOCAL_DOCUMENTS:
        tell(
            f"{collection.address}: Qdrant's local mode holds all vectors in memory and compares them one by "
            f"one; for more than {_LOCAL_DOCUMENTS:,} documents run a Qdrant server (--url)"
        )
    keys = list(dict.fromkeys([*record.metadata_keys, *seen.keys]))

    stopped = record.unfinished

    def write(left: int) -> None:
        nonlocal record
        # What another addition has left unfinished stays so.
        unfinished = stopped
        if stopped is None or stopped.digest == seen.corpus.digest:
            unfinished = Unfinished(digest=seen.corpus.digest, documents=left) if left > 0 else None
        changes = {"unfinished": unfinished, "metadata_keys": keys}
        record = record.model_copy(update={**changes, "generation": record.generation + 1})
        collection.write(record)

    if seen.new:
        write(seen.new)
    coming = new_documents(documents, _find(collection), digest, seen, added, progress)
    for block in blocks(coming, lambda new: new.document.text):
        stop_if_asked()
        found = encoded(encoder, cutter, [new.document.text for new in block])
        _upload(collection, record, block, found)
        added.documents += len(block)
        added.cut += len(found.cut)
        added.unfindable += found.unfindable
        added.replaced += sum(new.replaces is not None for new in block)
        write(seen.new - added.documents)
    if digest.hexdigest() != seen.corpus.digest:
        raise ColbertZeroError(
            f"the corpus changed while it was read; {collection.address} holds what was read of it, in part as it was "
            "before. Leave the files as they are, and start again"
        )
    if stopped and not seen.new:
        write(0)
    return added


def _upload(collection: Collection, record: Record, block: list[New], found: Encoded) -> None:
    """Documents' further passages, and then their first ones, with which they are there."""
    counts = np.bincount(found.passages.documents, minlength=len(block)).tolist()
    surplus = [
        point_id(new.document.id, number)
        for new, count in zip(block, counts, strict=True)
        for number in range(count, new.replaces[1] if new.replaces else 0)
    ]
    _remove(collection, surplus)
    points = list(_points(record, block, found))
    for first in (False, True):
        _send(collection, [point for number, point in points if (number == 0) == first])


def _remove(collection: Collection, ids: list[str]) -> None:
    for some in _slices(ids):
        collection.send(lambda client, some=some: client.delete(collection.name, some, wait=True))  # type: ignore[misc]


def _points(record: Record, block: list[New], found: Encoded) -> Iterator[tuple[int, "models.PointStruct"]]:
    """(number, point) of each passage, in order."""
    from qdrant_client import models

    stored, _ = to_stored(found.embedded.values, record.storage)
    vectors = torch.from_numpy(stored).float().split(found.passages.lengths.tolist())
    counts = np.bincount(found.passages.documents, minlength=len(block)).tolist()
    place, cut = 0, set(found.cut)
    for owner, (new, count) in enumerate(zip(block, counts, strict=True)):
        document, digest = new.document, digest_of(new.document)
        values = [where_of(key, value) for key, value in values_as_text(metadata_json(document.metadata))]
        for number in range(count):
            own = vectors[place]
            if own.numel() >= MOST_NUMBERS:
                raise ColbertZeroError(
                    f"the document {short(repr(document.id))} has {len(own):,} vectors of {record.model.dim} numbers; "
                    f"Qdrant takes fewer than {MOST_NUMBERS:,} numbers a passage. Index with --passages or --pool"
                )
            payload: dict[str, Any] = {
                "document": document.id, "passage": number, "begin": int(found.passages.begins[place]),
                "end": int(found.passages.ends[place]), "digest": digest, "where": values,
            }  # fmt: skip
            if number == 0:
                payload |= {
                    "passages": count, "text": document.text, "metadata": document.metadata, "cut": owner in cut,
                }  # fmt: skip
            # What has no token that is scored has no vector either, and is never found.
            vector: Any = {TOKENS: own.tolist(), POOLED: own.mean(0).tolist()} if len(own) else {}
            yield number, models.PointStruct(id=point_id(document.id, number), vector=vector, payload=payload)
            place += 1


def _send(collection: Collection, points: list["models.PointStruct"]) -> None:
    """Upload points in batches, each acknowledged once it is applied."""
    batch: list[models.PointStruct] = []
    numbers = 0
    for point in points:
        vector: Any = point.vector
        size = sum(map(len, vector.get(TOKENS, [])))
        if batch and (numbers + size > _BATCH_NUMBERS or len(batch) == _BATCH_POINTS):
            _upsert(collection, batch)
            batch, numbers = [], 0
        batch.append(point)
        numbers += size
    if batch:
        _upsert(collection, batch)


def _upsert(collection: Collection, batch: list["models.PointStruct"]) -> None:
    stop_if_asked()
    collection.send(lambda client: client.upsert(collection.name, batch, wait=True))
