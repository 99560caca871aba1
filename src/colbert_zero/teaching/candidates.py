"""Queries with their candidates, as a teacher is to score them: of files, of sources, or of a run on a collection."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from colbert_zero.data.collection import Collection
from colbert_zero.data.columns import Reading
from colbert_zero.data.prepared import Source
from colbert_zero.data.readers import input_files, tables
from colbert_zero.data.rows import as_object, as_text, as_texts, check_row
from colbert_zero.errors import BadRow, ColbertZeroError
from colbert_zero.evaluation.runs import read_run
from colbert_zero.files import file_fingerprint, fingerprint
from colbert_zero.recipe.data import Columns, Jsonl, Parquet

RUNS = (".trec", ".run", ".txt")
"""How files of runs end, also with .gz."""


@dataclass
class Candidates:
    """Queries and their candidates.

    Attributes:
        queries: Texts.
        documents: Distinct texts.
        ranked: Numbers of each query's candidates among the documents, as many each.
        answered: Whether a query's first candidate is its answer.
        id: Fingerprint of what they were made of.
        left_out: Rows that have too few candidates, and other reasons, with their numbers.
        query_ids: Of a run's queries; None of rows, whose queries and documents are numbered.
        document_ids: Of a run's documents.
        same_text: Documents of a run that have the text of another, and go by its id.
    """

    queries: list[str]
    documents: list[str]
    ranked: list[list[int]]
    answered: bool
    id: str
    left_out: Counter[str] = field(default_factory=Counter)
    query_ids: list[str] | None = None
    document_ids: list[str] | None = None
    same_text: int = 0

    @property
    def ways(self) -> int:
        """Candidates of a query."""
        return len(self.ranked[0])


def from_rows(paths: list[str], ways: int | None) -> Candidates:
    """Candidates of rows: `query` with `documents`, or with its document and hard negatives, in that order.

    Args:
        paths: Files, JSON lines (.gz) or Parquet; globs allowed.
        ways: Candidates a query; None takes as many as every row has. Rows of fewer are left out.

    Raises:
        ColbertZeroError: A row cannot be used, or none has so many candidates.
    """
    files = [file for path in paths for file in _files(path)]
    return _answered(partial(_rows, files), ways, [file_fingerprint(file) for file in files], " ".join(paths))


def from_sources(sources: list[Source], ways: int | None) -> Candidates:
    """Candidates of sources' rows: a document and its hard negatives, or the documents of scored candidates.

    Args:
        sources: As training would read them.
        ways: Candidates a query; None takes as many as every row has. Rows of fewer are left out.

    Raises:
        ColbertZeroError: No row has so many candidates.
    """
    whose = " ".join(source.name for source in sources)
    found = _answered(partial(_read, sources), ways, [source.id for source in sources], whose)
    for source in sources:
        found.left_out.update(source.record["dropped"])
        if source.record["held_out"]:
            found.left_out[f"held out of {source.name}"] += source.record["held_out"]
    return found


def _answered(
    rows: Callable[[], Iterator[tuple[str, list[str]]]], ways: int | None, made_of: list[str], whose: str
) -> Candidates:
    """Candidates of rows whose first one is the answer; the rows are read twice, unless it is said how many to take."""
    taken = ways or min((len(texts) for _, texts in rows()), default=0)
    if taken < 2:
        raise ColbertZeroError(
            f"--candidates {whose}: no row, or one of fewer than two candidates; --n-ways N takes the rows that have N"
        )
    return _numbered(rows(), taken, True, fingerprint(made_of, taken))[0]


def from_run(run_file: Path, collection: Collection, ways: int | None) -> Candidates:
    """The best of a run, by its queries' and documents' ids in a collection.

    Args:
        run_file: TREC format, .gz too.
        collection: Has the texts.
        ways: Candidates a query; None takes as many as every query has. Queries of fewer are left out.

    Raises:
        ColbertZeroError: The run is of another collection, or too short.
    """
    run = read_run(run_file)
    unknown = [query for query in run if query not in collection.queries]
    if unknown:
        raise ColbertZeroError(
            f"{run_file}: {len(unknown):,} of its queries are not in {collection.name}: {unknown[0]}"
        )
    taken = ways or min(map(len, run.values()), default=0)
    if taken < 2:
        raise ColbertZeroError(f"{run_file}: a query has fewer than two documents; --n-ways N takes those that have N")
    wanted = {document for ranked in run.values() for document, _ in ranked}
    texts = {identifier: text for identifier, text in collection.documents() if identifier in wanted}
    if missing := sorted(wanted - set(texts)):
        raise ColbertZeroError(
            f"{run_file}: {len(missing):,} of its documents are not in {collection.name}: {missing[0]}"
        )
    id_of: dict[str, str] = {}
    for identifier, text in texts.items():
        id_of.setdefault(text, identifier)
    rows = [(query, list(dict.fromkeys(texts[d] for d, _ in ranked))) for query, ranked in run.items()]
    made_of = fingerprint(file_fingerprint(run_file), collection.fingerprint, taken)
    found, kept = _numbered(((collection.queries[query], ranked) for query, ranked in rows), taken, False, made_of)
    found.query_ids = [rows[place][0] for place in kept]
    found.document_ids = [id_of[text] for text in found.documents]
    found.same_text = len(texts) - len(id_of)
    return found


def _numbered(
    rows: Iterator[tuple[str, list[str]]], taken: int, answered: bool, identity: str
) -> tuple[Candidates, list[int]]:
    """Candidates of rows that have enough of them; and which rows these are."""
    numbers, kept = dict[str, int](), list[int]()
    found = Candidates([], [], [], answered, identity)
    for place, (query, texts) in enumerate(rows):
        if len(texts) < taken:
            found.left_out[f"fewer than {taken} candidates"] += 1
            continue
        kept.append(place)
        found.queries.append(query)
        found.ranked.append([numbers.setdefault(text, len(numbers)) for text in texts[:taken]])
    if not found.queries:
        raise ColbertZeroError(f"--candidates: no query has {taken} different candidates, and two are the least")
    found.documents = list(numbers)
    return found, kept


def _files(path: str) -> list[Path]:
    try:
        return input_files("candidates", "path", [path])
    except ColbertZeroError as error:
        raise ColbertZeroError(str(error).replace("sources.candidates.path", "--candidates")) from None


def _rows(files: list[Path]) -> Iterator[tuple[str, list[str]]]:
    for file in files:
        kind = Parquet if file.name.endswith(".parquet") else Jsonl
        spec = kind.model_validate({"kind": kind.__name__.lower(), "path": str(file)})
        for _, _, rows in tables("candidates", spec, "path"):
            for place, row in rows:
                try:
                    yield _candidates_of(row)
                except BadRow as error:
                    raise ColbertZeroError(f"{place}: {error}") from None


def _read(sources: list[Source]) -> Iterator[tuple[str, list[str]]]:
    for part in (part for source in sources for part in source.parts.values()):
        for read in part.sample(len(part)):
            candidates = read.get("documents") or [
                [document, *negatives] for document, negatives in zip(read["document"], read["negatives"], strict=True)
            ]
            for query, texts in zip(read["query"], candidates, strict=True):
                yield query, list(dict.fromkeys(texts))


def _candidates_of(row: object) -> tuple[str, list[str]]:
    """A row's query and candidates; equal ones once, the first."""
    found = as_object(row)
    if isinstance(found.get("documents"), list) and "scores" not in found:
        query, texts = as_text(found.get("query"), "query"), as_texts(found["documents"], "documents")
    else:
        _, checked = check_row(found, Columns(), Reading())
        query = checked["query"]
        texts = checked.get("documents") or [checked["document"], *checked["negatives"]]
    return query, list(dict.fromkeys(texts))
