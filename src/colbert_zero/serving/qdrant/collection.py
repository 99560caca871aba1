"""A collection of Qdrant that is an index: where it is, how it is spoken to, and what it holds.

    point       a passage of a document; its id follows from the document's and the passage's number
      tokens    the vectors of its tokens: a multi-vector compared by MaxSim, without a graph (m = 0)
      pooled    their mean, with an HNSW graph: finds the candidates that MaxSim then ranks
      payload   document, passage, begin, end, digest, where; of the first passage also passages, text, metadata, cut
    metadata    of the collection: this program's record, the model's identity among it (`Record`)

A document is there once its first passage is, which is written last: what a killed upload left is overwritten by the
next. The library is qdrant-client; a `--path` is its local mode, which is one process' and in memory as a whole.
"""

import hashlib
import io
import json
import os
import pickle
import re
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from colbert_zero.data.documents import Document, metadata_json
from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import Tell, to_json
from colbert_zero.serving.index.manifest import Corpus, Count, ModelIdentity, Part, Unfinished, first_mistake

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

TOKENS, POOLED = "tokens", "pooled"

KEY = "colbert_zero"
"""Of the record among the collection's metadata."""

MOST_NUMBERS = 1 << 20
"""Of a point's multi-vector: Qdrant takes fewer than these."""

Quantization = Literal["none", "scalar", "binary"]

_LEAST_VERSION = (1, 16)
"""Of a server: the first that keeps metadata of collections."""

_NAMESPACE = uuid.UUID("6f0f7e0e-6c5c-5d0a-9f5e-0c01be520000")

_SECONDS = 120
"""That a request may take."""

_TRIES = 6
"""Of a request that may be sent again, with 1, 2, 4 … seconds between."""

_Said = TypeVar("_Said")


class Address(NamedTuple):
    """A collection, and where it is.

    Attributes:
        location: URL of a server, or the folder of the local mode.
        collection: Its name.
    """

    location: str
    collection: str

    @property
    def remote(self) -> bool:
        """Whether it is on a server."""
        return self.location.startswith(("http://", "https://"))

    def __str__(self) -> str:
        kind = "" if self.remote else "file:"
        return f"{PREFIX}{kind}{self.location}/{self.collection}"


PREFIX = "qdrant+"
"""Of an address as text: qdrant+http://localhost:6333/notes, qdrant+file:FOLDER/notes."""


def address_of(text: str) -> Address:
    """An address from its text.

    Raises:
        ColbertZeroError: It is none, or has a key in it.

    Example:
        >>> address_of("qdrant+https://search.example.org:6333/notes")
        Address(location='https://search.example.org:6333', collection='notes')
        >>> address_of("qdrant+file:kept/here/notes").location
        'kept/here'
    """
    # A path has lost one of two slashes.
    text = re.sub(r"^(qdrant\+https?:)/+", r"\1//", text)
    location, slash, collection = text.removeprefix(PREFIX).rpartition("/")
    if not text.startswith(PREFIX) or not slash or not location or not location.startswith(_KINDS):
        raise ColbertZeroError(
            f"{short(_without_key(text))}: write qdrant+http://HOST:6333/COLLECTION, or qdrant+file:FOLDER/COLLECTION"
        )
    return checked_address(location.removeprefix("file:"), collection)


_KINDS = ("http://", "https://", "file:")


def checked_address(location: str, collection: str, server: bool = False) -> Address:
    """An address whose parts can be used.

    Raises:
        ColbertZeroError: Says which cannot.
    """
    if (server or "://" in location) and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", location):
        raise ColbertZeroError(
            f"--url {short(_without_key(location))}: write http://HOST:6333 or https://HOST:6333, without a name, key "
            "or query in it; a key is read from the environment, QDRANT_API_KEY"
        )
    if _is_no_name(collection):
        raise ColbertZeroError(
            f'{short(repr(collection))} is no name of a collection: at most 255 characters, none of <>:"/\\|?*'
        )
    return Address(location.rstrip("/") if "://" in location else location, collection)


def _is_no_name(collection: str) -> bool:
    """Whether a text cannot name a collection: on a server, or as a folder's name."""
    return collection in ("", ".", "..") or len(collection) > 255 or bool(re.search(r'[<>:"/\\|?*\0\x1f]', collection))


def _without_key(url: str) -> str:
    """A URL without what stands before its host or after its path: that may be a secret."""
    return re.sub(r"(?<=//)[^/@]*@", "…@", url).split("?")[0]


# ---- The record


class Record(Part):
    """What an index on Qdrant is; as a manifest says it of one on the disk."""

    format: Literal[2] = 2
    generation: Count = 0
    """Raised by every change."""
    model: ModelIdentity
    storage: Literal["float16", "float32"]
    quantization: Quantization
    pool: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Tokens of a document that became one vector, about; 1: none were pooled."""
    passages: Count | None
    """Tokens that passages of a document overlap by; None where documents are one passage each."""
    corpus: Corpus
    unfinished: Unfinished | None = None
    deleting: list[str] | None = None
    """Ids of a deletion that is going on or was stopped; the next change finishes it first."""
    metadata_keys: list[str] = Field(default_factory=list)


# ---- Its points


def point_id(document: str, passage: int) -> str:
    """The id of a document's passage.

    Example:
        >>> point_id("a", 0) == point_id("a", 0) != point_id("a", 1)
        True
    """
    return str(uuid.uuid5(_NAMESPACE, f"{passage}:{document}"))


def digest_of(document: Document) -> str:
    """Changes whenever a document's text or metadata do."""
    content = to_json([document.id, document.text, metadata_json(document.metadata)])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def where_of(key: str, value: str) -> str:
    """What stands in the payload `where` of a document whose metadata have a value, as text.

    Example:
        >>> where_of("a=b", "c") == where_of("a", "b=c")
        False
    """
    return to_json([key, value])


# ---- Speaking to it


class Collection:
    """A collection, connected.

    Args:
        address: Where it is.
        tell: Told what is unusual.
        make: Make a folder of the local mode that is not there.

    Raises:
        ColbertZeroError: qdrant-client is not installed, the server cannot be reached, refuses the key or is too old,
            or the folder is not there or in use.
    """

    def __init__(self, address: Address, tell: Tell = print, make: bool = False):
        self.address, self.name = address, address.collection
        # The client would make it.
        if not (address.remote or make or (Path(address.location) / "meta.json").is_file()):
            raise ColbertZeroError(f"{address}: there is no such folder of Qdrant's local mode; is --path right?")
        self.client = _connected(address, tell)

    def close(self) -> None:
        """Let go of the connection, or of the folder."""
        self.client.close()

    def ask(self, request: Callable[["QdrantClient"], _Said]) -> _Said:
        """What a request is answered.

        Raises:
            ColbertZeroError: It failed; says why, and the mend.
        """
        with _told(self.address):
            return request(self.client)

    def send(self, request: Callable[["QdrantClient"], Any]) -> None:
        """As `ask`, of a change that may be sent twice: after a failure that passes it is sent again."""
        for more in range(_TRIES - 1):
            try:
                with _told(self.address):
                    request(self.client)
                return
            except UnavailableError as error:
                time.sleep(error.seconds or 2**more)
        self.ask(request)

    def exists(self) -> bool:
        """Whether there is a collection of this name."""
        return self.ask(lambda client: client.collection_exists(self.name))

    def record(self) -> Record:
        """What the collection is.

        Raises:
            ColbertZeroError: It is not there, or is no index of this program's.
        """
        if not self.exists():
            raise ColbertZeroError(
                f"{self.address}: there is no collection {self.name}; make one (`colbert-zero index MODEL --corpus PATH"
                f" --out {self.name} --backend qdrant …`)"
            )
        info = self.ask(lambda client: client.get_collection(self.name))
        found = (getattr(info.config, "metadata", None) or {}).get(KEY)
        if found is None:
            raise ColbertZeroError(
                f"{self.address}: the collection {self.name} was not made by colbert-zero; name another"
            )
        if isinstance(found, dict) and found.get("format") == 1:
            raise ColbertZeroError(
                f"{self.address}: made by an earlier version, whose filters took one name of metadata for another; "
                "index again under another name (--out), then delete this collection"
            )
        if isinstance(found, dict) and found.get("format") != 2:
            raise ColbertZeroError(
                f"{self.address}: of format {found.get('format')!r}, which this version does not know"
            )
        try:
            record = Record.model_validate(found)
        except ValidationError as error:
            raise ColbertZeroError(f"{self.address}: its record cannot be used: {first_mistake(error)}") from None
        vectors = info.config.params.vectors
        sizes = (
            {name: getattr(vectors.get(name), "size", None) for name in (TOKENS, POOLED)}
            if isinstance(vectors, dict)
            else {}
        )
        if set(sizes.values()) != {record.model.dim}:
            raise ColbertZeroError(
                f"{self.address}: its vectors are not of the {record.model.dim} numbers of its model; the collection "
                "was changed by another program, make it anew"
            )
        return record

    def write(self, record: Record) -> None:
        """Put a record in the place of the one before."""
        content = {KEY: record.model_dump(mode="json")}
        self.send(lambda client: client.update_collection(self.name, metadata=content))

    def count(self) -> int:
        """Documents."""
        from qdrant_client import models

        first = models.Filter(must=[models.FieldCondition(key="passage", match=models.MatchValue(value=0))])
        return self.ask(lambda client: client.count(self.name, count_filter=first, exact=True)).count

    def retrieve(self, ids: list[str], payload: list[str], vectors: list[str] | None = None) -> dict[str, Any]:
        """{point id: point} of those that are there."""
        if not ids:
            return {}
        found = self.ask(
            lambda client: client.retrieve(self.name, ids, with_payload=payload, with_vectors=vectors or False)
        )
        return {str(point.id): point for point in found}


def _connected(address: Address, tell: Tell) -> "QdrantClient":
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise ColbertZeroError(
            "--backend qdrant: qdrant-client is not installed; pip install 'colbert-zero[qdrant]'"
        ) from None
    # What the client warns of is said here in the program's own way, or does not matter.
    with warnings.catch_warnings(), _told(address):
        warnings.simplefilter("ignore")
        if not address.remote:
            _check_pickles(Path(address.location))
            return QdrantClient(path=address.location)
        key = os.environ.get("QDRANT_API_KEY") or None
        if key and address.location.startswith("http://") and not _LOOPBACK.match(address.location):
            tell(f"{address.location}: the key goes over the network unencrypted; an https:// address would hide it")
        client = QdrantClient(url=address.location, api_key=key, timeout=_SECONDS, check_compatibility=False)
        version = client.info().version
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _LEAST_VERSION:
        raise ColbertZeroError(
            f"{address.location}: Qdrant {version} keeps no metadata of collections, where the model's identity stands;"
            f" update it to {'.'.join(map(str, _LEAST_VERSION))} or newer"
        )
    return client


_LOOPBACK = re.compile(r"http://(localhost|127\.[0-9.]+|\[::1\])(:|/|$)")


class _PointsOnly(pickle.Unpickler):
    """Reads what the local mode writes and nothing else: a pickle from elsewhere could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("qdrant_client.http.models.models", "PointStruct"):
            raise ValueError(f"a point that would run {short(f'{module}.{name}')}")
        return super().find_class(module, name)


_TABLE = [
    ("table", "points", "CREATE TABLE points (id TEXT PRIMARY KEY, point BLOB)"),
    ("index", "sqlite_autoindex_points_1", None),
]
"""All that the schema of a file of the local mode holds: of a view or a trigger two readings could differ."""


def _check_pickles(folder: Path) -> None:
    """Refuse a folder of the local mode that holds anything but points: the client would run what it names.

    Raises:
        ColbertZeroError: Names the file.
    """
    meta = file = folder / "meta.json"
    try:
        if links := _links(folder):
            file = links[0]
            raise ValueError("a link")
        names = json.loads(meta.read_text(encoding="utf-8"))["collections"] if meta.exists() else {}
        for name in names:
            if _is_no_name(name):
                raise ValueError(f"{short(repr(name))} is no name of a collection")
            # Where the client will look, and by its own question.
            file = folder / "collection" / name / "storage.sqlite"
            if file.exists():
                with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as connection:
                    schema = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
                    if schema != _TABLE:
                        raise ValueError("it has another schema than one table of points")
                    for _, _, point in connection.execute("SELECT rowid, id, point FROM points ORDER BY rowid DESC"):
                        _PointsOnly(io.BytesIO(point)).load()
    except Exception as error:  # broken pickles fail in many ways
        raise ColbertZeroError(
            f"{file}: is not what qdrant-client writes ({reason(error)}); restore it from a copy, or index again"
        ) from None


def _links(folder: Path) -> list[Path]:
    """Links among what the client reads and writes: they lead out of the folder."""
    own = [folder / name for name in ("meta.json", "meta.json.tmp", ".lock", "collection")]
    return [file for file in [*own, *(folder / "collection").rglob("*")] if file.is_symlink()]


class UnavailableError(ColbertZeroError):
    """The server fails in a way that may pass; `seconds` until it is worth another try, where it says so."""

    seconds: int = 0


@contextmanager
def _told(address: Address) -> Iterator[None]:
    """What goes wrong with a server in the user's words. Neither the key nor a document is in them."""
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    goes_on = "what was uploaded stays, and the same command goes on"
    try:
        yield
    except ResourceExhaustedResponse as error:
        passing = UnavailableError(f"{address}: the server is asked too much at once ({reason(error)}); {goes_on}")
        passing.seconds = min(60, max(1, error.retry_after_s))
        raise passing from None
    except UnexpectedResponse as error:
        code, said = error.status_code or 0, _said(error)
        if code in (401, 403):
            which = "does not accept the key in" if os.environ.get("QDRANT_API_KEY") else "wants a key; put it in"
            raise ColbertZeroError(f"{address.location}: the server {which} QDRANT_API_KEY ({code})") from None
        if code == 404:
            raise ColbertZeroError(f"{address}: not found on the server ({said}); is the address right?") from None
        if code == 413:
            raise ColbertZeroError(
                f"{address}: a request was too large for the server; raise its max_request_size_mb"
            ) from None
        kind = UnavailableError if code in (429, 500, 502, 503, 504) else ColbertZeroError
        raise kind(f"{address}: the server answered {code}: {said}; {goes_on}") from None
    except ResponseHandlingException as error:
        raise UnavailableError(
            f"{address.location}: no answer as Qdrant's ({reason(error.source)}); is the server running, and the "
            f"address and port right? {goes_on.capitalize()}"
        ) from None
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise ColbertZeroError(
            f"{address.location}: another process has this folder open, and the local mode is for one; close it, or "
            "run a Qdrant server and name it by --url"
        ) from None
    except (ValidationError, json.JSONDecodeError):
        raise ColbertZeroError(
            f"{address.location}: something answers there, but not as Qdrant does; are the address and port right?"
        ) from None
    except ValueError as error:
        raise ColbertZeroError(f"{address}: {reason(error)}") from None


def _said(error: Any) -> str:
    """The server's own words, in a line."""
    try:
        status = error.structured()["status"]
        return reason(Exception(status["error"] if isinstance(status, dict) else status))
    except (ValueError, KeyError, TypeError):
        return reason(Exception(error.reason_phrase or "nothing more"))
