"""Ids, texts and metadata of a segment's documents, and which terms stand where: an SQLite file that is written once.

A file from elsewhere is opened read-only, as one that nobody changes, and refused unless it has these very tables and
nothing beside them: no view, trigger or virtual table that a query could set off.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

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

_AS_TEXT = "CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE CAST(value AS TEXT) END"

_HAS = f"""SELECT number FROM documents WHERE EXISTS (SELECT 1 FROM json_each(documents.metadata) WHERE key = ? AND
{_AS_TEXT} = ?) ORDER BY number"""  # noqa: S608

_VALUES = f"SELECT number, key, {_AS_TEXT} FROM documents, json_each(documents.metadata)"  # noqa: S608


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
        """Numbers of the documents whose metadata has a value, as text, under a key."""
        return [number for (number,) in self._connection.execute(_HAS, (key, value))]

    def values(self) -> Iterator[tuple[int, str, str]]:
        """(number, key, value as text) of all metadata; a null's value is the empty text."""
        for number, key, value in self._connection.execute(_VALUES):
            yield number, key, value or ""


def metadata_of(row: Row) -> dict[str, Any]:
    """A document's metadata.

    Raises:
        ValueError: It is no JSON object.
    """
    found = parse_json(row.metadata)
    if not isinstance(found, dict):
        raise ValueError("metadata that are no object")
    return found


def values_as_text(metadata: str) -> list[tuple[str, str]]:
    """(key, value as text) of a document's metadata, as `Texts.with_value` compares them; nulls have none.

    Example:
        >>> values_as_text('{"day":1.5,"even":true,"part":7,"tags":["a"]}')
        [('day', '1.5'), ('even', 'true'), ('part', '7'), ('tags', '["a"]')]
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        rows = connection.execute(f"SELECT key, {_AS_TEXT} FROM json_each(?)", (metadata,))  # noqa: S608
        return [(key, text) for key, text in rows if text is not None]
