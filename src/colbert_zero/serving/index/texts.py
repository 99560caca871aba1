"""Ids, texts and metadata of a segment's documents, and which terms stand where: an SQLite file that is written once.

A file from elsewhere is opened read-only, as one that nobody changes, and refused unless it has these very tables and
nothing beside them: no view, trigger or virtual table that a query could set off.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from colbert_zero.data.documents import number_of_text, value_as_text
from colbert_zero.files import LONGEST_TEXT, parse_json

_TABLE = (
    "CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL, "
    "text TEXT NOT NULL)"
)
_TERMS = "CREATE TABLE terms (term TEXT NOT NULL UNIQUE, postings BLOB NOT NULL)"
_SCHEMA = [
    ("table", "documents", _TABLE),
    ("table", "terms", _TERMS),
    ("index", "sqlite_autoindex_documents_1", None),
    ("index", "sqlite_autoindex_terms_1", None),
]

_LONGEST_VALUE = 8 * LONGEST_TEXT

_LARGEST_INT = 2**31 - 1

_AT_ONCE = 500

_HAS = """SELECT number FROM documents WHERE EXISTS (SELECT 1 FROM json_each(documents.metadata) WHERE key = :key AND
CASE type WHEN 'true' THEN 'true' = :text WHEN 'false' THEN 'false' = :text
WHEN 'integer' THEN value = json_extract(:number, '$') WHEN 'real' THEN value = json_extract(:number, '$')
ELSE CAST(value AS TEXT) = :text END) ORDER BY number"""
"""Numbers are compared as numbers: 1958.0 is 1958."""


class Row(NamedTuple):
    """A document as it is kept.

    Attributes:
        number: In its segment.
        id: Unique in the index.
        metadata: JSON.
        text: The title first.
    """

    number: int
    id: str
    metadata: str
    text: str


def write_texts(path: Path, rows: Iterable[Row], postings: Iterable[tuple[str, bytes]]) -> None:
    """Write the file of a segment; equal contents give equal bytes. Whoever calls makes it durable.

    Args:
        path: Of no file.
        rows: Its documents.
        postings: Of each term (`terms`).
    """
    # Neither journal nor syncs: until it is named the file is nobody's.
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(_TABLE)
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
        connection.execute(_TERMS)
        connection.executemany("INSERT INTO terms VALUES (?, ?)", postings)
        connection.execute("COMMIT")


class Texts:
    """The file of a segment, opened.

    Args:
        path: Absolute.
        longest_postings: Bytes that a term's may have.

    Raises:
        sqlite3.Error: It cannot be read.
        ValueError: It has other tables than these, or more.
    """

    def __init__(self, path: Path, longest_postings: int):
        self._connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.setlimit(
                sqlite3.SQLITE_LIMIT_LENGTH, min(max(_LONGEST_VALUE, longest_postings), _LARGEST_INT)
            )
            for pragma in ("trusted_schema = OFF", "query_only = ON", "cell_size_check = ON", "cache_size = -1024"):
                self._connection.execute(f"PRAGMA {pragma}")
            found = self._connection.execute(
                "SELECT type, name, sql FROM sqlite_schema ORDER BY type DESC, name"
            ).fetchall()
            if found != _SCHEMA:
                raise ValueError("not the tables of an index")
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def rows(self) -> Iterator[Row]:
        """All documents by their numbers."""
        query = "SELECT number, id, metadata, text FROM documents ORDER BY number"
        return map(Row._make, self._connection.execute(query))

    def row(self, number: int) -> Row:
        """A document.

        Raises:
            sqlite3.Error: The file is damaged.
            ValueError: There is none of that number.
        """
        query = "SELECT number, id, metadata, text FROM documents WHERE number = ?"
        found = self._connection.execute(query, (number,)).fetchone()
        if found is None:
            raise ValueError(f"no document {number}")
        return Row._make(found)

    def id_of(self, number: int) -> str:
        """A document's id; raises as `row`."""
        found = self._connection.execute("SELECT id FROM documents WHERE number = ?", (number,)).fetchone()
        if found is None:
            raise ValueError(f"no document {number}")
        identifier: str = found[0]
        return identifier

    def ids(self) -> list[tuple[int, str]]:
        """(number, id) of all documents."""
        return self._connection.execute("SELECT number, id FROM documents ORDER BY number").fetchall()

    def find(self, ids: list[str]) -> Iterator[Row]:
        """The documents of these ids that are here."""
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            places = ",".join("?" * len(some))
            query = f"SELECT number, id, metadata, text FROM documents WHERE id IN ({places})"  # noqa: S608
            yield from map(Row._make, self._connection.execute(query, some))

    def postings(self, term: str) -> bytes:
        """Of a term (`terms`); none where it stands nowhere."""
        found = self._connection.execute("SELECT postings FROM terms WHERE term = ?", (term,)).fetchone()
        return bytes(found[0]) if found else b""

    def with_value(self, key: str, value: str) -> list[int]:
        """Numbers of the documents whose metadata has a value (`value_as_text`) under a key."""
        asked = {"key": key, "text": value, "number": number_of_text(value)}
        return [number for (number,) in self._connection.execute(_HAS, asked)]

    def values(self) -> Iterator[tuple[int, str, str]]:
        """(number, key, `value_as_text`) of all metadata."""
        for number, metadata in self._connection.execute("SELECT number, metadata FROM documents"):
            for key, value in _object(metadata).items():
                yield number, key, value_as_text(value)


def metadata_of(row: Row) -> dict[str, Any]:
    """A document's metadata.

    Raises:
        ValueError: It is no JSON object.
    """
    return _object(row.metadata)


def _object(metadata: str) -> dict[str, Any]:
    found = parse_json(metadata)
    if not isinstance(found, dict):
        raise ValueError("metadata that are no object")
    return found


def values_as_text(metadata: str) -> list[tuple[str, str]]:
    """(key, `value_as_text`) of a document's metadata; nulls have none.

    Example:
        >>> values_as_text('{"day":1.5,"even":true,"part":7.0,"tags":["a"]}')
        [('day', '1.5'), ('even', 'true'), ('part', '7'), ('tags', '["a"]')]
    """
    return [(key, value_as_text(value)) for key, value in parse_json(metadata).items() if value is not None]
