"""Documents with ids and metadata: JSON lines, Parquet, a folder in BEIR layout, or one of text, Markdown and Python.

A row's id is its `_id` or `id`, else its number in the corpus; its text is `text` (or `document`), the title first. Its
other columns are its metadata, the title among them. A file's id is its path in the folder.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from colbert_zero.data.corpus import corpus_files, corpus_rows, text_of
from colbert_zero.data.rows import as_identifier, as_object, text_fault
from colbert_zero.errors import BadRow, ColbertZeroError, short
from colbert_zero.files import LONGEST_TEXT, is_inside

TEXT_FILES = (".txt", ".text", ".md", ".markdown", ".rst", ".py")

LONGEST_ID = 1024
LONGEST_VALUE = 4096
"""Characters of a metadata value as JSON; a longer one, an embedding say, is left out and counted."""
LONGEST_METADATA = 65_536
"""Characters of all metadata of a document as JSON; values beyond these are left out and counted."""
DEEPEST_VALUE = 20
"""Lists and objects in each other in a metadata value; a deeper one is left out and counted."""

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,400})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")
"""As in JSON, and no longer than anyone writes one."""

_WHOLE = 1e21
"""From which on JavaScript too writes a whole number with an exponent."""

_TABLES = (".jsonl", ".jsonl.gz", ".parquet")


class Document(NamedTuple):
    """A document to be found.

    Attributes:
        id: Unique in its index.
        text: What is encoded, the title first.
        metadata: JSON values by name.
    """

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Documents:
    """A corpus that can be read as often as it is needed.

    Attributes:
        paths: As they were given.
        files: Of rows; or of texts, with the folder that their ids are paths in.
        on_bad_rows: What to do with a row or file that is no document.
        needs_ids: Rows without ids are refused: their numbers would be those of other documents.
    """

    paths: list[str]
    files: list[tuple[Path, Path | None]]
    on_bad_rows: Literal["error", "skip"] = "error"
    needs_ids: bool = False

    def read(self, left_out: Counter[str]) -> Iterator[tuple[str, Document]]:
        """(place, document) of each that has a text.

        Args:
            left_out: Counts, by reason, what is passed over, and metadata that is not kept.

        Raises:
            ColbertZeroError: A row is no document, and is not to be skipped; names the place and the mend.
        """
        number, id_key = 0, _Unknown()
        for file, root in self.files:
            if root is not None:
                yield from self._text_file(file, root, left_out)
                continue
            for place, row in corpus_rows(file):
                number += 1
                try:
                    document = _document(as_object(row), number, id_key, left_out)
                except BadRow as error:
                    if self.on_bad_rows == "error":
                        raise ColbertZeroError(
                            f"{place}: {error}; mend the row, or pass over such rows (--on-bad-rows skip)"
                        ) from None
                    left_out[str(error).split(":")[0]] += 1
                    continue
                if self.needs_ids and id_key.key is None:
                    raise ColbertZeroError(
                        f"{place}: the rows have no ids, and their numbers would stand for other documents that are "
                        "there; give each row an `_id`"
                    )
                if document:
                    yield place, document

    def _text_file(self, file: Path, root: Path, left_out: Counter[str]) -> Iterator[tuple[str, Document]]:
        try:
            # A character has at most four bytes.
            if file.stat().st_size > 4 * LONGEST_TEXT:
                raise BadRow(f"longer than {LONGEST_TEXT:,} characters")
            text = file.read_text(encoding="utf-8-sig")
            if fault := text_fault(text):
                raise BadRow(f"the text {fault.split(':')[0]}")
        except UnicodeDecodeError:
            left_out["a file not in UTF-8"] += 1
        except BadRow as error:
            left_out[f"a file: {error}"] += 1
        except OSError as error:
            raise ColbertZeroError(f"{file}: cannot be read ({error.strerror}); mend its rights, or move it") from None
        else:
            if text.strip():
                name = file.relative_to(root).as_posix()
                yield str(file), Document(name, text, {"path": name})
            else:
                left_out["without a text"] += 1


@dataclass(frozen=True)
class GivenDocuments(Documents):
    """Documents that are in memory already.

    Attributes:
        rows: As in a file of rows.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)

    def read(self, left_out: Counter[str]) -> Iterator[tuple[str, Document]]:
        """As of a corpus, but the key of ids is `id`; a row's place is its number in brackets, from 0."""
        id_key = _Unknown("id")
        for number, row in enumerate(self.rows):
            try:
                document = _document(row, number, id_key, left_out)
            except BadRow as error:
                raise ColbertZeroError(f"[{number}]: {error}") from None
            if document:
                yield f"[{number}]", document


def documents_of(paths: list[str], whose: str, on_bad_rows: Literal["error", "skip"] = "error") -> Documents:
    """The documents of files, globs and folders.

    Args:
        paths: JSON lines (.gz too) and Parquet files; folders in BEIR layout; other folders, for their text, Markdown
            and Python files, without hidden ones and links out of the folder.
        whose: What names them, for messages.
        on_bad_rows: What to do with a row that is no document.

    Raises:
        ColbertZeroError: There is none; names the path and the mend.
    """
    found: dict[Path, Path | None] = {}
    for path in paths:
        folder = Path(os.path.expanduser(path))
        if not folder.is_dir() or any((folder / f"corpus{suffix}").is_file() for suffix in _TABLES):
            found |= dict.fromkeys(corpus_files([path], whose))
            continue
        files = [file for file in sorted(folder.rglob("*")) if _is_text_file(file, folder)]
        if not files:
            raise ColbertZeroError(
                f"{whose}: {path} has no corpus.jsonl and no file of {', '.join(TEXT_FILES)}; for files of rows name "
                f"them, {path}/*.jsonl"
            )
        found |= dict.fromkeys(files, folder)
    return Documents(paths, list(found.items()), on_bad_rows)


def metadata_json(metadata: dict[str, Any]) -> str:
    """Canonical JSON of a document's metadata, in ASCII."""
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)


def value_as_text(value: Any) -> str:
    """A metadata value in the one text form that it is shown in, counted by and asked for.

    A whole number has no fraction, however it was written; lists and objects are canonical JSON.

    Example:
        >>> [value_as_text(value) for value in (1958.0, 1e20, 1.5, True, "1.0", ["a"], None)]
        ['1958', '100000000000000000000', '1.5', 'true', '1.0', '["a"]', '']
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        return str(int(value))
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def number_of_text(text: str) -> str | None:
    """Text that is a number, in the form of `value_as_text`; None of any other.

    Example:
        >>> [number_of_text(text) for text in ("1958.0", "1e+20", "-0", "007", "1958 ", "nan")]
        ['1958', '100000000000000000000', '0', None, None, None]
    """
    if not _NUMBER.fullmatch(text):
        return None
    value = json.loads(text)
    return value_as_text(value) if math.isfinite(value) else None


def _is_text_file(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return file.suffix in TEXT_FILES and not hidden and file.is_file() and is_inside(file, folder)


class _Unknown:
    """Which key has the ids: that of the first row counts for all, unless it is known before."""

    def __init__(self, key: str | None = None):
        self.key, self.known = key, key is not None


def _document(row: dict[str, Any], number: int, ids: _Unknown, left_out: Counter[str]) -> Document | None:
    if not ids.known:
        ids.key, ids.known = next((key for key in ("_id", "id") if key in row), None), True
    if ids.key is None:
        identifier = str(number)
    elif ids.key not in row:
        raise BadRow(f"no {ids.key!r}, which other rows have")
    else:
        identifier = as_identifier(row[ids.key], ids.key)
    if not identifier or len(identifier) > LONGEST_ID or (text_fault(identifier)):
        raise BadRow(f"`{ids.key}` is no usable id: {short(repr(identifier))}")
    if (text := text_of(row)) is None:
        left_out["without a text"] += 1
        return None
    spent = {ids.key, "text" if "text" in row else "document"}
    given = {str(key): value for key, value in row.items() if key not in spent and value is not None and value != ""}
    return Document(identifier, text, _metadata(given, left_out))


def _metadata(given: dict[str, Any], left_out: Counter[str]) -> dict[str, Any]:
    """What of metadata is kept, as JSON can hold it.

    Raises:
        BadRow: A name or value has what is no text.
    """
    kept: dict[str, Any] = {}
    size = 2
    for key, value in given.items():
        _check_text(key, key)
        try:
            plain = _plain(value, key)
        except _DeepError:
            left_out[f"metadata nested deeper than {DEEPEST_VALUE}, of {short(key)}"] += 1
            continue
        length = len(json.dumps(plain))
        added = length + len(json.dumps(key)) + 2
        if length > LONGEST_VALUE:
            left_out[f"metadata longer than {LONGEST_VALUE:,} characters, of {short(key)}"] += 1
        elif size + added > LONGEST_METADATA:
            left_out[f"metadata beyond {LONGEST_METADATA:,} characters of a document"] += 1
        else:
            kept[key], size = plain, size + added
    return kept


class _DeepError(Exception):
    """A value has too many lists and objects in each other."""


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """A value as JSON can hold it; what it cannot, a date say, as text."""
    if depth > DEEPEST_VALUE:
        raise _DeepError
    if isinstance(value, dict):
        for inner in value:
            _check_text(str(inner), key)
        return {str(name): _plain(inner, key, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, key, depth + 1) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    _check_text(text, key)
    return text


def _check_text(text: str, key: str) -> None:
    if fault := text_fault(text):
        raise BadRow(f"metadata that {fault.split(':')[0]}: of {short(repr(key))}")
