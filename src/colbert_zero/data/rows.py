"""Rows, checked."""

from typing import Any

import numpy as np
import pyarrow as pa

from colbert_zero.data.columns import Reading, find_columns, missing
from colbert_zero.errors import BadRow, ColbertZeroError, short
from colbert_zero.files import LONGEST_TEXT, parse_json
from colbert_zero.recipe.data import Columns

PAIRS = pa.schema([("query", pa.string()), ("document", pa.string()), ("negatives", pa.list_(pa.string()))])

_SCORES = pa.list_(pa.float32())

CANDIDATES = pa.schema([("query", pa.string()), ("documents", pa.list_(pa.int64())), ("scores", _SCORES)])

SCORED_TEXTS = pa.schema([("query", pa.string()), ("documents", pa.list_(pa.string())), ("scores", _SCORES)])

_LONGEST_ROW = 64 * LONGEST_TEXT

_LARGEST_SCORE = float(np.finfo(np.float32).max)


# ---- What to do and say


def left_out(error: BadRow, place: str, name: str, spec: Any) -> str:
    """The reason a row is left out for, to be counted.

    Raises:
        ColbertZeroError: The source's entry wants none left out.
    """
    if spec.on_bad_rows == "error":
        raise ColbertZeroError(
            f"{place}: {error}. Mend the row, or set `sources.{name}.on_bad_rows: skip` to pass over such rows and "
            "count them"
        ) from None
    return str(error).split(":")[0]


def unusable(where: str, name: str) -> ColbertZeroError:
    """What to say of a part that has no usable row."""
    return ColbertZeroError(f"{where} has no usable row; mend it, or take it out of sources.{name}")


def mixed(place: str) -> ColbertZeroError:
    """What to say of a row that is of another kind than the first."""
    return ColbertZeroError(
        f"{place}: rows of one source must all be pairs or all be scored candidates; put the others into a source of "
        "their own"
    )


# ---- Checking


def text_fault(text: str) -> str | None:
    """What makes a string no text to train or search on; None where nothing does."""
    if len(text) > LONGEST_TEXT:
        return f"is too long: {len(text):,} characters, at most {LONGEST_TEXT:,}"
    if "\0" in text:
        return "has a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "has half a surrogate pair, which is no character"
    return None


def as_object(row: Any) -> dict[str, Any]:
    """A row as a dict; a line of JSON is parsed."""
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, bytes):
        if b"\0" in row:
            raise BadRow("a NUL byte: this is not JSON in UTF-8")
        try:
            row = parse_json(row.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise BadRow("invalid UTF-8: save the file as UTF-8") from None
        except ValueError as error:
            raise BadRow(f"broken JSON: {error}; one object a line is expected") from None
    if not isinstance(row, dict):
        raise BadRow(f"not an object with keys: found {_type(row)}")
    return row


def _type(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
             bytes: "bytes (a binary column)"}  # fmt: skip
    return "nothing (null)" if value is None else names.get(type(value), type(value).__name__)


def as_text(value: Any, key: str) -> str:
    """A value that is usable text."""
    if not isinstance(value, str):
        raise BadRow(f"`{key}` is not text: found {_type(value)}")
    if fault := text_fault(value):
        raise BadRow(f"`{key}` {fault}")
    # Zero-width and control characters are no text either.
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise BadRow(f"`{key}` is empty")
    return value


def as_texts(values: list[Any], key: str) -> list[str]:
    """Usable texts, together not beyond what a batch of rows may hold."""
    texts = [as_text(value, key) for value in values]
    if (length := sum(map(len, texts))) > _LONGEST_ROW:
        raise BadRow(f"`{key}` is too long: {length:,} characters together, at most {_LONGEST_ROW:,}")
    return texts


def value_of(row: dict[str, Any], key: str) -> Any:
    """The value under a key that must be there."""
    if key not in row:
        raise BadRow(missing(key, key, row))
    return row[key]


def as_identifier(value: Any, key: str) -> str:
    """Ids are compared as text: 7 and "7" are the same."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"`{key}` is not an id: found {_type(value)}, wanted text or a whole number")
    return value


def _two_or_more(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or len(value) < 2:
        found = f"{len(value)}" if isinstance(value, list) else _type(value)
        raise BadRow(f"`{key}` is not a list of two or more: found {found}")
    return value


def _scores(value: Any, key: str, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)}" if isinstance(value, list) else _type(value)
        raise BadRow(f"`{key}` is not one number a document: {count} documents, found {found}")
    for score in value:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= _LARGEST_SCORE:
            raise BadRow(f"`{key}` has something that is no finite number: {short(repr(score))}")
    return [float(score) for score in value]


def _entries(value: Any) -> list[Any]:
    """One text or a list of them as a list, of none an empty one; passages of several columns become texts."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # as `datasets` has a list of passages
        value = [dict(zip(value, entry, strict=False)) for entry in zip(*value.values(), strict=False)]
    entries = [] if value is None else value if isinstance(value, list) else [value]
    return [titled(entry) if isinstance(entry, dict) else entry for entry in entries]


def titled(passage: dict[str, Any]) -> Any:
    """The text of a passage, its title first; anything else as it is."""
    title, text = passage.get("title"), passage.get("text")
    if not isinstance(text, str) or not isinstance(title, str | None):
        return passage
    return " ".join(part for part in (title, text) if part)


def check_row(
    row: Any, columns: Columns, reading: Reading, candidates: int | None = None
) -> tuple[pa.Schema, dict[str, Any]]:
    """A row of pairs, or of candidates with scores, under our column names; `reading` takes note of what it had.

    Of several positives the first is the row's document; of scored candidates the first `candidates` are kept.
    """
    row = as_object(row)
    found = find_columns(tuple(row), columns)
    query = as_text(row[found.query], found.query)
    if len(found.scores) == 1:
        texts = as_texts(_two_or_more(row[found.documents], found.documents), found.documents)
        scores = _scores(row[found.scores[0]], found.scores[0], len(texts))
        reading.note(found, 1)
        return SCORED_TEXTS, {"query": query, "documents": texts[:candidates], "scores": scores[:candidates]}
    positives = _entries(row[found.documents])
    if row[found.documents] == []:
        raise BadRow(f"`{found.documents}` is an empty list")
    document = as_text(positives[0] if positives else None, found.documents)
    lists = {key: _entries(row[key]) for key in found.negatives}
    negatives = [text for key, values in lists.items() for text in as_texts(values, key)]
    if candidates and not found.scores:
        raise BadRow("no scores: `candidates` is of rows that have some; leave it out")
    if found.scores:
        of_positives, of_negatives = found.scores
        scores = _scores(row[of_positives], of_positives, len(positives))[:1]
        scores += _scores(row[of_negatives], of_negatives, len(negatives))
        texts = _two_or_more([document, *negatives], "document and negatives")
        reading.note(found, len(positives))
        return SCORED_TEXTS, {"query": query, "documents": texts[:candidates], "scores": scores[:candidates]}
    reading.note(found, len(positives))
    return PAIRS, {"query": query, "document": document, "negatives": negatives}


def check_ids(
    row: Any,
    query_numbers: dict[str, int],
    document_numbers: dict[str, int],
    queries: pa.ChunkedArray,
    candidates: int | None = None,
) -> tuple[pa.Schema, dict[str, Any]]:
    """A row of ids and scores, resolved."""
    row = as_object(row)
    query = as_identifier(value_of(row, "query_id"), "query_id")
    if query not in query_numbers:
        raise BadRow(f"`query_id` is not among the queries: {short(query)}")
    listed = _two_or_more(value_of(row, "document_ids"), "document_ids")
    documents = [as_identifier(document, "document_ids") for document in listed]
    if missing := [document for document in documents if document not in document_numbers]:
        raise BadRow(f"`document_ids` are not all among the documents: {short(', '.join(missing))}")
    scores = _scores(value_of(row, "scores"), "scores", len(documents))
    numbers = [document_numbers[document] for document in documents[:candidates]]
    kept = {"documents": numbers, "scores": scores[:candidates]}
    return CANDIDATES, {"query": queries[query_numbers[query]].as_py(), **kept}
