"""Which columns of a row hold its texts: those that the recipe names, else those of a usual name."""

import difflib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from colbert_zero.errors import BadRow, ColbertZeroError, short
from colbert_zero.recipe.data import Columns

USUAL = {
    "query": ("query", "anchor", "question", "1"),
    "document": ("document", "positive", "pos", "positive_passages", "answer", "passage", "context", "2"),
    "negative": ("negative", "negatives", "neg", "hard_negative", "hard_negatives", "negative_passages"),
}
"""What data sets call them: ours first, which is taken wherever it stands; of the others only one may stand.

A TSV file without a header has the columns 1, 2 and so on.
"""

_NUMBERED, _NUMBER = re.compile(r"(?:negative|neg|hard_negative)_?(\d{1,9})"), re.compile(r"(\d{1,9})")

_MOST_UNREAD, _MOST_USED = 20, 1000


@dataclass(frozen=True)
class Found:
    """The columns of one row.

    Attributes:
        query: Its query.
        documents: Its document, or its scored candidates.
        negatives: Its hard negatives, each column a text or a list.
        scores: Scores of the candidates; or of documents and negatives, which then are the candidates. Of pairs none.
        unread: All others.
    """

    query: str
    documents: str
    negatives: tuple[str, ...]
    scores: tuple[str, ...]
    unread: tuple[str, ...]

    def used(self) -> dict[str, tuple[str, ...]]:
        """Columns by what they hold, in the recipe's words."""
        document = "documents" if len(self.scores) == 1 else "document"
        used = {"query": (self.query,), document: (self.documents,), "negative": self.negatives, "scores": self.scores}
        return {key: columns for key, columns in used.items() if columns}


@lru_cache(8)  # few: a stranger's keys may be long
def find_columns(keys: tuple[str, ...], columns: Columns) -> Found:
    """Where a row with these keys has what.

    Raises:
        BadRow: A column is missing, or it may be several.
    """
    negatives: tuple[str, ...]
    scores: tuple[str, ...]
    query = _one("query", columns.query, keys)
    negatives, scores = (), ()
    if isinstance(columns.scores, str) and columns.documents in keys and columns.document not in keys:
        documents, scores = columns.documents, (columns.scores,)
    else:
        documents = _one("document", columns.document, keys)
        negatives = _negatives(columns.negative, tuple(key for key in keys if key not in (query, documents)), documents)
        scores = () if isinstance(columns.scores, str) else columns.scores
    for key in scores:
        if key not in keys:
            raise BadRow(missing(key, "scores", keys))
    unread = tuple(key for key in keys if key not in {query, documents, *negatives, *scores})
    return Found(query, documents, negatives, scores, unread)


def _one(role: str, named: str, keys: tuple[str, ...]) -> str:
    """The column for a query or a document: the one named, else the only one of a usual name."""
    if named in keys:
        return named
    usual = [key for key in USUAL[role] if key in keys] if named == role else []
    if not usual:
        raise BadRow(missing(named, role, keys))
    if len(usual) > 1:
        raise BadRow(f"no `{role}` but {_listed(usual)}: say which is meant, as in `columns: {{{role}: {usual[0]}}}`")
    return usual[0]


def _negatives(named: str | tuple[str, ...], keys: tuple[str, ...], document: str) -> tuple[str, ...]:
    """Columns of hard negatives: those named, else numbered ones, else the only one of a usual name; maybe none."""
    chosen = (named,) if isinstance(named, str) else named
    present = tuple(key for key in chosen if key in keys)
    if present or named != "negative":
        return present
    # Numbers alone are names only where there are no others; a column before the document may be an id.
    if (first := _NUMBER.fullmatch(document)) and all(key.isdecimal() for key in keys):
        numbered = {key: int(key) for key in keys if _NUMBER.fullmatch(key) and int(key) > int(first[1])}
    else:
        numbered = {key: int(match[1]) for key in keys if (match := _NUMBERED.fullmatch(key))}
    usual = [key for key in USUAL["negative"] if key in keys]
    if len(usual) + bool(numbered) > 1:
        told = _listed([*usual, *numbered])
        raise BadRow(f"no `negative` but {told}: say which are meant, as in `columns: {{negative: [{usual[0]}]}}`")
    return tuple(sorted(numbered, key=numbered.__getitem__)) or tuple(usual)


def missing(key: str, role: str, keys: Iterable[Any]) -> str:
    """What to say of a row without a column, and which one may be meant."""
    keys = [str(key) for key in keys]
    told = f"no `{key}`: the row has {short(', '.join(keys)) or 'no keys'}"
    alike = next(filter(None, (almost(word, keys) for word in (key, *(USUAL.get(key, ()))))), None)
    if alike is None:
        return told
    mend = f"`columns: {{{role}: {short(alike)}}}`" if role in Columns.model_fields else "rename it"
    return f"{told}; if {short(alike)} is meant, {mend}"


def almost(word: str, words: Iterable[str]) -> str | None:
    """The one of these that is almost that word."""
    found = {w.lower(): w for w in words}
    alike = difflib.get_close_matches(word.lower(), found, 1, cutoff=0.75)
    return found[alike[0]] if alike else None


class Reading:
    """What was found in the rows of a source, for its record and the user."""

    def __init__(self) -> None:
        self.unused_positives = 0
        self._used: dict[str, dict[str, None]] = {}
        self._unread: dict[str, None] = {}
        self._last: Found | None = None

    def note(self, found: Found, positives: int) -> None:
        """Take note of a row's columns, and of how many positives it has."""
        self.unused_positives += positives - 1
        if found is self._last:
            return
        self._last = found
        for role, columns in found.used().items():
            _add(self._used.setdefault(role, {}), columns, _MOST_USED)
        _add(self._unread, found.unread, _MOST_UNREAD)

    def check(self, name: str, columns: Columns, rows: str = "row") -> None:
        """Refuse hard negatives that the recipe names and no row has, of the `rows` that were read.

        Raises:
            ColbertZeroError: Names the column, and the one that may be meant.
        """
        named = (columns.negative,) if isinstance(columns.negative, str) else columns.negative
        for key in named:
            if named != ("negative",) and "document" in self._used and short(key) not in self._used.get("negative", {}):
                alike = almost(key, self._unread)
                told = f"; is it {short(alike)}?" if alike else ""
                raise ColbertZeroError(f"sources.{name}.columns.negative: no {rows} has a column {short(key)!r}{told}")

    def record(self) -> dict[str, Any]:
        """For source.json: the columns read, by what they hold, and those not read."""
        used = {role: list(columns) for role, columns in self._used.items()}
        if not used:
            return {}
        return {"columns": used, "unread": list(self._unread), "unused_positives": self.unused_positives}


def _add(known: dict[str, None], columns: Iterable[str], most: int) -> None:
    # Keys of a stranger's rows: not more than anyone will read.
    known.update(dict.fromkeys(map(short, itertools.islice(columns, max(0, most - len(known))))))


def peculiarities(record: dict[str, Any]) -> list[str]:
    """What a user should know of how a source's rows were read."""
    told = [
        f"{record['parts'][part]:,} of {part}, as {short(repr(query))} → {short(repr(document))}"
        for part, (query, document) in record.get("examples", {}).items()
        if part in record["parts"]
    ]
    used, unread = record.get("columns", {}), record.get("unread", [])
    other = [f"{role} from {_listed(columns)}" for role, columns in used.items() if columns != [role]]
    if other:
        told.append(f"columns: {'; '.join(other)}")
    if unread:
        told.append(f"columns not read: {_listed(unread)}{_hint(used, unread)}")
    if unused := record.get("unused_positives"):
        where = " of its parts' first rows" if "streamed" in record else ""
        told.append(f"{unused:,} positives{where} after the row's first are not used; to use all, write a row for each")
    return told


def _hint(used: dict[str, Any], unread: list[str]) -> str:
    """Of columns that were not read: scores that could be, or one almost called as hard negatives are."""
    if {"pos_scores", "neg_scores"} <= set(unread):
        return " (for distillation: `columns: {scores: [pos_scores, neg_scores]}`)"
    if "negative" not in used and "document" in used and (alike := almost("negative", unread)):
        return f" (if {short(alike)} holds hard negatives: `columns: {{negative: {short(alike)}}}`)"
    return ""


def _listed(columns: Iterable[str]) -> str:
    names = [short(column) for column in columns]
    return ", ".join(names if len(names) < 6 else [*names[:2], "…", names[-1]])
