"""What an index consists of: one small file, swapped last, that names all others.

    INDEX/manifest.json               the truth: what it does not name is not there
    INDEX/segments/000001/tokens      token vectors and where each document's are (`segments`)
    INDEX/segments/000001/texts       ids, texts and metadata: SQLite (`texts`)
    INDEX/deleted/000007-000001       documents of segment 1 that are deleted since generation 7
    INDEX/coming/000002.json          record of a segment that is made, which the manifest will name next (`coming`)

No file but the manifest is ever written to again once it is named. So a reader keeps what it opened, whatever a writer
does beside it, and a writer that is killed leaves files that nobody names, which the next one deletes.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import parse_json, write_json

NAME, SEGMENTS, DELETED, COMING = "manifest.json", "segments", "deleted", "coming"

SEGMENT_DOCUMENTS = 32_768
"""Documents of a segment, where nothing else is asked for."""

MOST_SEGMENTS = 400
"""Each keeps two files open; a process may have 1,024 by default."""

_LARGEST = 1 << 26

Storage = Literal["float16", "float32", "int8"]

Count = Annotated[int, Field(ge=0, lt=2**53)]
LONGEST_NAME = 4096

_Short = Annotated[str, Field(max_length=LONGEST_NAME)]
SegmentName = Annotated[str, Field(pattern=r"^[0-9]{6,12}$")]
_DeletedName = Annotated[str, Field(pattern=r"^[0-9]{6,12}-[0-9]{6,12}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Part(BaseModel):
    """What an index writes down, checked when it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Deletions(Part):
    """Deleted documents of a segment: their numbers, in a file."""

    name: _DeletedName
    documents: Count
    checksum: Digest


class SegmentEntry(Part):
    """A segment: what its files hold, and their checksums."""

    name: SegmentName
    documents: Annotated[Count, Field(gt=0)]
    passages: Annotated[Count, Field(gt=0)]
    tokens: Count
    terms: Count
    """Of all its documents, as BM25 counts them."""
    texts_bytes: Count
    tokens_checksum: Digest
    texts_checksum: Digest
    deletions: Deletions | None = None

    @property
    def live(self) -> int:
        """Documents that are not deleted."""
        return self.documents - (self.deletions.documents if self.deletions else 0)


class ModelIdentity(Part):
    """The model whose vectors an index holds."""

    place: _Short
    """Folder or Hub id."""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    """Of a Hub id."""
    contents: Digest | None
    """Of a folder: fingerprint of its files."""
    representation: Literal["multi-vector", "dense", "encoder"]
    dim: Annotated[Count, Field(gt=0)]
    query_prompt: _Short
    """With the marker."""
    document_prompt: _Short
    query_tokens: Count | None
    """Longest query, with prompt and special tokens; None where there is no bound."""
    document_tokens: Count | None
    skip_list: list[_Short] = []
    query_expansion: _Short = "false"


class Corpus(Part):
    """What an index was first made of."""

    paths: list[_Short]
    documents: Count
    digest: Digest


class Unfinished(Part):
    """An addition that is going on, or was stopped."""

    digest: Digest
    """Of its corpus."""
    documents: Count
    """Still to come."""


PYTORCH, PYTORCH_HALF = "PyTorch", "PyTorch in bfloat16"


class Manifest(Part):
    """An index."""

    format: Literal[1] = 1
    generation: Count = 0
    """Raised by every change."""
    next_segment: Count = 1
    """No name of a segment is used twice."""
    model: ModelIdentity
    storage: Storage
    pool: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Tokens of a document that became one vector, about; 1: none were pooled."""
    passages: Count | None
    """Tokens that passages of a document overlap by; None where documents are one passage each."""
    segment_documents: Annotated[Count, Field(gt=0)]
    encoded_by: _Short = PYTORCH
    """What computed the documents' vectors: PyTorch, the same in bfloat16, or a graph by `export` and its runtime."""
    corpus: Corpus
    unfinished: Unfinished | None = None
    cut: Count = 0
    """Documents longer than the model reads, whose ends were cut off."""
    metadata_keys: list[_Short] = []
    segments: list[SegmentEntry] = []

    @property
    def has_means(self) -> bool:
        """Whether each document has a mean vector beside its own ones."""
        return self.model.representation == "multi-vector"

    @property
    def documents(self) -> int:
        """Documents that are not deleted."""
        return sum(segment.live for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Token vectors, those of deleted documents too."""
        return sum(segment.tokens for segment in self.segments)


def first_mistake(error: ValidationError) -> str:
    """Where a record is first wrong, and how."""
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index.

    Raises:
        ColbertZeroError: There is none, or it is not what this program writes.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > _LARGEST:
            raise ColbertZeroError(f"{path}: larger than {_LARGEST >> 20} MB, which no manifest is")
        content = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ColbertZeroError(
            f"{folder} is no index: it has no {NAME}; make one (`colbert-zero index MODEL --corpus PATH --out INDEX`)"
        ) from None
    except (OSError, ValueError) as error:
        raise ColbertZeroError(f"{path}: cannot be read ({reason(error)}); restore it from a copy") from None
    if isinstance(content, dict) and content.get("format", 1) != 1:
        raise ColbertZeroError(f"{path}: of format {content['format']!r}, which this version does not know; update it")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ColbertZeroError(f"{path}: {first_mistake(error)}; restore it from a copy, or index again") from None
    names = [segment.name for segment in manifest.segments]
    if len(set(names)) < len(names) or any(s.live < 0 for s in manifest.segments):
        raise ColbertZeroError(f"{path}: its segments do not fit together; restore it from a copy, or index again")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of the one before: from now on, and only from now on, it counts."""
    write_json(folder / NAME, manifest.model_dump(mode="json"))


def changed(manifest: Manifest, **values: Any) -> Manifest:
    """The next generation of a manifest."""
    return manifest.model_copy(update={**values, "generation": manifest.generation + 1})


def canonical(manifest: Manifest) -> str:
    """What of a manifest is equal in two indexes of the same contents: not how many steps led there."""
    value = manifest.model_dump(mode="json", exclude={"generation"})
    return json.dumps(value, sort_keys=True)
