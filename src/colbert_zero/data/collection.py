"""A collection: corpus, queries and qrels, checked once, the corpus streamed at every use."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.data import hub
from colbert_zero.data.rows import text_fault
from colbert_zero.errors import ColbertZeroError, reason, short
from colbert_zero.files import (
    atomic_file,
    atomic_folder,
    file_state,
    fingerprint,
    parse_json,
    text_lines,
    to_json,
)

# Where a row stands (file and line, for messages), then its id and text, or its query, document and grade.
Text = tuple[str, str, str]

Judgement = tuple[str, str, str, int]

QRELS_HEADER = ["query-id", "corpus-id", "score"]

FEW_MISSING = 0.05
"""Share of judgements whose documents may be missing without being asked for: BEIR's ArguAna has such."""

# The measures make a table with a line for each grade.
_LARGEST_GRADE = 1_000_000


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
    """

    name: str
    documents: Callable[[], Iterator[tuple[str, str]]]
    documents_count: int
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    fingerprint: str
    own: frozenset[str] = frozenset()
    missing: int = 0

    def peculiarities(self) -> list[str]:
        """What a user should know of it."""
        told = []
        if self.own:
            told.append(
                f"{len(self.own):,} queries are documents too, and left out of their own rankings (exclude_self)"
            )
        if self.missing:
            told.append(
                f"{self.missing:,} judgements of documents that are not there count as never found (on_missing)"
            )
        return told

    @classmethod
    def from_memory(
        cls, name: str, documents: dict[str, str], queries: dict[str, str], qrels: dict[str, dict[str, int]]
    ) -> "Collection":
        """A collection of what is already in memory.

        Raises:
            ColbertZeroError: What the loaders also refuse: an empty corpus, a judgement of an unknown
                query or document, no judged query, an id or text that is no clean string.
        """

        def corpus() -> Iterator[Text]:
            for i, (document_id, text) in enumerate(documents.items(), 1):
                yield _text({"_id": document_id, "text": text}, f"{name}: document {i}")

        texts = (
            _text({"_id": query_id, "text": text}, f"{name}: query {i}")
            for i, (query_id, text) in enumerate(queries.items(), 1)
        )
        judgements = (
            (f"{name}: qrels", query_id, document_id, _grade(grade, f"{name}: qrels of query {query_id!r}"))
            for query_id, grades in qrels.items()
            for document_id, grade in grades.items()
        )
        return _collect(name, corpus, texts, judgements)


@dataclass(frozen=True)
class Rules:
    """What to do where collections differ in what they mean.

    Attributes:
        exclude_self: Leave a query's own document, the one of the same id, out of its ranking, as BEIR and MTEB do;
            None: where no judgement names it and its text holds the query's, as in ArguAna, whose queries are
            documents.
        on_missing: Refuse judgements of queries and documents that are not there ("error"), or count them ("count");
            None: count judgements of documents if they are few, at most `FEW_MISSING` of all.
    """

    exclude_self: bool | None = None
    on_missing: str | None = None


def load_beir(path: str | Path, split: str = "test", name: str | None = None, rules: Rules = Rules()) -> Collection:
    """A collection in BEIR layout: corpus.jsonl, queries.jsonl (or .jsonl.gz) and qrels/SPLIT.tsv.

    Args:
        path: The folder.
        split: Which qrels.
        name: The folder's name unless given.
        rules: Where collections differ in what they mean.

    Raises:
        ColbertZeroError: A file is missing or a line is wrong; names file, line and mend.
    """
    folder = Path(path)
    corpus_path, queries_path = _jsonl_path(folder, "corpus"), _jsonl_path(folder, "queries")
    qrels_path = folder / "qrels" / f"{split}.tsv"
    if not qrels_path.is_file():
        splits = sorted(file.stem for file in qrels_path.parent.glob("*.tsv"))
        raise ColbertZeroError(
            f"{qrels_path} does not exist; the splits of this collection: {', '.join(splits) or 'none'}"
        )
    return _collect(
        name or folder.resolve().name,
        _unchanged(corpus_path),
        _read_jsonl(queries_path),
        _read_qrels(qrels_path),
        rules,
    )


def load_hub(name: str, split: str | None = None, revision: str | None = None, rules: Rules = Rules()) -> Collection:
    """A collection of the Hugging Face Hub in NanoBEIR or MTEB layout, or a local folder laid out so.

    The layout has the configurations `corpus` (_id, title, text), `queries` (_id, text) and `qrels`
    (query-id, corpus-id, score), called `default` in MTEB; without a score each judgement has grade 1.

    Args:
        name: Data set id on the Hub, or a folder.
        split: Split of each configuration that has it (`NanoMSMARCO`, `test`); a configuration that has
            only one split needs none.
        revision: Commit of the data set; a branch or tag may move.
        rules: Where collections differ in what they mean.

    Raises:
        ColbertZeroError: The data set, a configuration or a split cannot be read, or a row is wrong.
    """
    told, mend = f"cannot read the data set {name}", "; check its name, the revision and the network"
    names = hub.config_names(name, revision, told, mend)
    judged = "qrels" if "qrels" in names else "default"
    if missing := [config for config in ("corpus", "queries", judged) if config not in names]:
        raise ColbertZeroError(
            f"{name} has no configuration {' or '.join(missing)} but {', '.join(names)}; "
            "a collection needs corpus, queries and qrels (or default, with the qrels)"
        )
    corpus, queries, qrels = (
        _one_split(name, config, split, hub.load(name, config, None, revision, told, mend))
        for config in ("corpus", "queries", judged)
    )

    def rows(config: str, table: Any) -> Iterator[tuple[str, Any]]:
        return ((f"{name}, {config}, row {i}", row) for i, row in enumerate(hub.rows(table), 1))

    def texts(config: str, table: Any) -> Iterator[Text]:
        return (_text(_readable(row, where), where) for where, row in rows(config, table))

    def judgement(row: dict[str, Any], where: str) -> Judgement:
        return _judgement([row.get("query-id"), row.get("corpus-id"), row.get("score", 1)], where)

    judgements = (judgement(_readable(row, where), where) for where, row in rows(judged, qrels))
    label = f"{name}/{split}" if split else name
    return _collect(label, lambda: texts("corpus", corpus), texts("queries", queries), judgements, rules)


def load_collection(place: str, split: str | None = None, rules: Rules = Rules()) -> Collection:
    """A collection by its folder in BEIR layout (split `test`), or by its Hub id (split `train`)."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return load_beir(folder, split or "test", rules=rules)
    return load_hub(place, split or "train", rules=rules)


def write_beir(collection: Collection, path: str | Path, split: str = "test") -> None:
    """Write a collection in BEIR layout, as a whole or not at all; a folder already there is replaced."""
    with atomic_folder(Path(path)) as folder:
        with atomic_file(folder / "corpus.jsonl") as file:
            for document_id, text in collection.documents():
                file.write(to_json({"_id": document_id, "text": text}) + "\n")
        with atomic_file(folder / "queries.jsonl") as file:
            for query_id, text in collection.queries.items():
                file.write(to_json({"_id": query_id, "text": text}) + "\n")
        with atomic_file(folder / "qrels" / f"{split}.tsv") as file:
            file.write("\t".join(QRELS_HEADER) + "\n")
            for query_id, grades in collection.qrels.items():
                for document_id, grade in grades.items():
                    file.write(f"{query_id}\t{document_id}\t{grade}\n")


def _collect(
    name: str,
    corpus: Callable[[], Iterator[Text]],
    queries: Iterable[Text],
    judgements: Iterable[Judgement],
    rules: Rules = Rules(),
) -> Collection:
    """Check the parts against each other in one pass over the corpus."""
    texts: dict[str, str] = {}
    for where, query_id, text in queries:
        if query_id in texts:
            raise ColbertZeroError(f"{where}: the query id {short(repr(query_id))} is there twice; make the ids unique")
        texts[query_id] = text

    digest, document_ids, same_text = hashlib.blake2b(digest_size=16), set(), set()
    for where, document_id, text in corpus():
        if document_id in document_ids:
            raise ColbertZeroError(
                f"{where}: the document id {short(repr(document_id))} is there twice; make the ids unique"
            )
        document_ids.add(document_id)
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
        if document_id not in document_ids:
            unknown["document"].append(f"{short(repr(document_id))} ({where})")
            if query_id not in texts and rules.on_missing == "count":
                continue
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
    )


def _text(row: Any, where: str) -> Text:
    """A row's id and text, the title first."""
    if not isinstance(row, dict):
        raise ColbertZeroError(f"{where}: not an object; each row needs _id and text")
    for key in ("_id", "text"):
        if key not in row:
            found = short(", ".join(map(repr, row))) or "nothing"
            raise ColbertZeroError(f"{where}: no {key!r}, only {found}; add it")
    row_id, title, text = _identifier(row["_id"]), row.get("title") or "", row["text"]
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


def _judgement(columns: list[Any], where: str) -> Judgement:
    query_id, document_id = map(_identifier, columns[:2])
    grade = columns[2]
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


def _jsonl_path(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"):
        if path.is_file():
            return path
    raise ColbertZeroError(
        f"{folder} has no {stem}.jsonl or {stem}.jsonl.gz; a BEIR collection is a folder with corpus.jsonl, "
        "queries.jsonl and qrels/SPLIT.tsv"
    )


def _unchanged(path: Path) -> Callable[[], Iterator[Text]]:
    """Rows of a file as often as asked for, refused once it is no longer the one that was checked."""
    first = file_state(path)

    def check() -> None:
        if not path.is_file() or file_state(path) != first:
            raise ColbertZeroError(
                f"{path}: changed since it was first read; leave it as it is and start the run again"
            )

    def rows() -> Iterator[Text]:
        check()
        yield from _read_jsonl(path)
        check()

    return rows


def _read_jsonl(path: Path) -> Iterator[Text]:
    for where, line in text_lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ColbertZeroError(f"{where}: broken JSON ({error}); one object a line is expected") from None
        yield _text(row, where)


def _read_qrels(path: Path) -> Iterator[Judgement]:
    lines = text_lines(path)
    where, header = next(lines, (f"{path}:1", ""))
    if header.split("\t") != QRELS_HEADER:
        raise ColbertZeroError(f"{where}: the header is {short(repr(header))}; write {' TAB '.join(QRELS_HEADER)}")
    for where, line in lines:
        columns = line.split("\t")
        if len(columns) != 3:
            raise ColbertZeroError(f"{where}: {len(columns)} column(s), not 3; write query-id TAB corpus-id TAB score")
        yield _judgement(columns, where)


def _one_split(name: str, config: str, split: str | None, splits: Any) -> Any:
    """The wanted split of a configuration, or the only one."""
    if split in splits:
        return splits[split]
    if len(splits) == 1 and (split is None or config in ("corpus", "queries")):
        return next(iter(splits.values()))
    raise ColbertZeroError(
        f"{name}, {config}: the split {split!r} does not exist; there are {', '.join(map(repr, splits))}"
    )


def _readable(row: Any, where: str) -> Any:
    if isinstance(row, Exception):
        raise ColbertZeroError(f"{where}: cannot be read ({reason(row)}); mend the row")
    return row
