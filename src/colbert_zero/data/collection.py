"""A collection: corpus, queries and qrels, checked once, the corpus streamed at every use."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from colbert_zero.data.columns import almost
from colbert_zero.data.rows import text_fault
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.files import fingerprint, to_json

# Where a row stands (file and line, for messages), then its id and text, or its query, document and grade.
Text = tuple[str, str, str]
Judgement = tuple[str, str, str, int]

FEW_MISSING = 0.05
"""Share of judgements whose documents may be missing without being asked for: BEIR's ArguAna has such."""
# The measures make a table with a line for each grade.
_LARGEST_GRADE = 1_000_000


@dataclass(frozen=True)
class Rules:
    """What to do where collections differ in what they mean.

    Attributes:
        exclude_self: Leave a query's own document, the one of the same id, out of its ranking, unless it is judged
            (BEIR's evaluation leaves it out even then); None: where its text also holds the query's, as in ArguAna,
            whose queries are documents.
        on_missing: Refuse judgements of queries and documents that are not there ("error"), or count them ("count");
            None: count judgements of documents if they are few, at most `FEW_MISSING` of all.
    """

    exclude_self: bool | None = None
    on_missing: Literal["error", "count"] | None = None


DEFAULT_RULES = Rules()


@dataclass(frozen=True)
class Collection:
    """Corpus, queries and qrels.

    Attributes:
        name: Shown in reports.
        documents: Each call starts a fresh iterator over (document id, text). The title, if any, comes
            first in the text, then a space. The corpus is never held in memory as a whole.
        documents_count: Documents in the corpus.
        queries: {query id: text} of the judged queries, in the order of the source.
        qrels: {query id: {document id: grade}}; the same queries.
        fingerprint: Changes whenever a document (or their order), a judged query or a grade does.
        own: Queries whose own document, the one of the same id, is left out of their rankings.
        missing: Judged documents that the corpus does not have: never found, so they lower recall and nDCG.
        missing_queries: Judged queries that are not there, and are left out.
        empty: Documents and judged queries without a text.
        rules: What to do with queries' own documents and with missing ones.
        place: Where a public collection was read from.
    """

    name: str
    documents: Callable[[], Iterator[tuple[str, str]]]
    documents_count: int
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    fingerprint: str
    own: frozenset[str] = frozenset()
    missing: int = 0
    missing_queries: int = 0
    empty: int = 0
    rules: Rules = DEFAULT_RULES
    place: str | None = None

    def peculiarities(self) -> list[str]:
        """What a user should know of it."""
        told = [f"from {self.place}"] if self.place else []
        if self.own:
            told.append(
                f"{len(self.own):,} queries are documents too, and left out of their own rankings (exclude_self)"
            )
        if self.missing:
            told.append(
                f"{self.missing:,} judgements of documents that are not there count as never found (on_missing)"
            )
        if self.missing_queries:
            told.append(f"{self.missing_queries:,} judged queries are not there, and left out (on_missing)")
        if self.empty:
            told.append(f"{self.empty:,} documents or queries have no text")
        return told

    @classmethod
    def from_memory(
        cls,
        name: str,
        documents: dict[str, str],
        queries: dict[str, str],
        qrels: dict[str, dict[str, int]],
        rules: Rules = DEFAULT_RULES,
    ) -> "Collection":
        """A collection of what is already in memory.

        Raises:
            ColbertZeroError: What the loaders also refuse: an empty corpus, a judgement of an unknown
                query or document, no judged query, an id or text that is no clean string.
        """

        def corpus() -> Iterator[Text]:
            for i, (document_id, text) in enumerate(documents.items(), 1):
                yield as_document({"_id": document_id, "text": text}, f"{name}: document {i}")

        texts = (
            as_document({"_id": query_id, "text": text}, f"{name}: query {i}")
            for i, (query_id, text) in enumerate(queries.items(), 1)
        )
        judgements = (
            (f"{name}: qrels", query_id, document_id, _grade(grade, f"{name}: qrels of query {query_id!r}"))
            for query_id, grades in qrels.items()
            for document_id, grade in grades.items()
        )
        return collect(name, corpus, texts, judgements, rules)


def collect(
    name: str,
    corpus: Callable[[], Iterator[Text]],
    queries: Iterable[Text],
    judgements: Iterable[Judgement],
    rules: Rules = DEFAULT_RULES,
) -> Collection:
    """Check the parts against each other in one pass over the corpus."""
    texts: dict[str, str] = {}
    for where, query_id, text in queries:
        if query_id in texts:
            raise ColbertZeroError(f"{where}: the query id {short(repr(query_id))} is there twice; make the ids unique")
        texts[query_id] = text

    digest, document_ids, same_text, empty = hashlib.blake2b(digest_size=16), set(), set(), 0
    for where, document_id, text in corpus():
        if document_id in document_ids:
            raise ColbertZeroError(
                f"{where}: the document id {short(repr(document_id))} is there twice; make the ids unique"
            )
        document_ids.add(document_id)
        empty += not text.strip()
        digest.update(to_json([document_id, text]).encode())
        if document_id in texts and texts[document_id] in text:
            same_text.add(document_id)
    if not document_ids:
        raise ColbertZeroError(f"{name}: the corpus has no document; is this the right file?")

    qrels: dict[str, dict[str, int]] = {}
    unknown: dict[str, list[str]] = {"query": [], "document": []}
    for where, query_id, document_id, grade in judgements:
        if query_id not in texts:
            unknown["query"].append(f"{short(repr(query_id))} ({where})")
        elif document_id not in document_ids:
            unknown["document"].append(f"{short(repr(document_id))} ({where})")
        if qrels.setdefault(query_id, {}).setdefault(document_id, grade) != grade:
            raise ColbertZeroError(
                f"{where}: query {short(repr(query_id))} and document {short(repr(document_id))} are judged twice, "
                f"with the grades {qrels[query_id][document_id]} and {grade}; keep one"
            )
    judgements_count = sum(map(len, qrels.values()))
    few = rules.on_missing is None and len(unknown["document"]) <= FEW_MISSING * judgements_count
    for kind, places in unknown.items():
        if places and not (rules.on_missing == "count" or (kind == "document" and few)):
            raise ColbertZeroError(
                f"{name}: {len(places)} judgement(s) of a {kind} that does not exist: {', '.join(places[:5])}"
                f"{', …' if len(places) > 5 else ''}; add the {kind}, delete the judgement(s), or let them be counted "
                "(on_missing: count)"
            )
    if not qrels:
        raise ColbertZeroError(f"{name}: no query is judged; the qrels are empty")

    # Unjudged queries can score nothing: leaving them out lets every query of the collection count.
    judged = {query_id: text for query_id, text in texts.items() if query_id in qrels}
    if not judged:
        raise ColbertZeroError(
            f"{name}: none of the {len(qrels):,} judged queries is among the queries; are the judgements of this "
            "collection, and of this split?"
        )
    own = {
        query_id
        for query_id in (judged.keys() & document_ids if rules.exclude_self else judged.keys() & same_text)
        if rules.exclude_self is not False and query_id not in qrels[query_id]
    }
    return Collection(
        name=name,
        documents=lambda: ((document_id, text) for _, document_id, text in corpus()),
        documents_count=len(document_ids),
        queries=judged,
        qrels={query_id: qrels[query_id] for query_id in judged},
        fingerprint=fingerprint(digest.hexdigest(), judged, qrels, *([sorted(own)] if own else [])),
        own=frozenset(own),
        missing=len(unknown["document"]),
        missing_queries=len(qrels) - len(judged),
        empty=empty + sum(not text.strip() for text in judged.values()),
        rules=rules,
    )


def as_document(row: Any, where: str) -> Text:
    """A row's id and text, the title first; of nothing (null) an empty one."""
    if not isinstance(row, dict):
        raise ColbertZeroError(f"{where}: not an object; each row needs _id and text")
    for key in ("_id", "text"):
        if key not in row:
            found = short(", ".join(map(repr, row))) or "nothing"
            alike = almost(key, map(str, row))
            mend = f", or rename {short(repr(alike))}" if alike else ""
            raise ColbertZeroError(f"{where}: no {key!r}, only {found}; add it{mend}")
    row_id, title, text = _identifier(row["_id"]), row.get("title"), row["text"]
    title, text = "" if title is None else title, "" if text is None else text
    for key, value in (("_id", row_id), ("title", title), ("text", text)):
        _check_string(value, key, where)
    if not row_id:
        raise ColbertZeroError(f"{where}: the _id is empty; give each row an id of its own")
    return where, row_id, " ".join(part for part in (title, text) if part)


def _check_string(value: Any, key: str, where: str) -> None:
    if not isinstance(value, str):
        written = short(json.dumps(str(value)))
        raise ColbertZeroError(f"{where}: {key} is {short(repr(value))}, not a string; write {written}")
    if fault := text_fault(value):
        raise ColbertZeroError(f"{where}: {key} {fault}; mend the text, the file may be damaged")


def _identifier(value: Any) -> Any:
    """An id; whole numbers are text, as data sets of the Hub have them."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def as_judgement(columns: list[Any], where: str) -> Judgement:
    """A query's id, a document's and a grade, checked."""
    query_id, document_id, grade = _identifier(columns[0]), _identifier(columns[1]), columns[2]
    _check_string(query_id, "query-id", where)
    _check_string(document_id, "corpus-id", where)
    return where, query_id, document_id, _grade(grade, where)


def _grade(value: Any, where: str) -> int:
    # Some data sets of the Hub store whole grades as floats, so 1.0 passes and 0.5 does not.
    try:
        if not float(value).is_integer():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        found = short(repr(value))
        raise ColbertZeroError(f"{where}: the grade {found} is not an integer; round or map it to one") from None
    if not abs(grade := int(float(value))) <= _LARGEST_GRADE:
        raise ColbertZeroError(
            f"{where}: the grade {short(repr(value))} is beyond ±{_LARGEST_GRADE:,}; map the grades to small numbers"
        )
    return grade
