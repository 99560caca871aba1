"""Queries with their candidates, as a teacher is to score them: from rows of files, or from a run on a collection."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from colbert_zero.data.collection import Collection
from colbert_zero.data.columns import Reading
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
    """

    queries: list[str]
    documents: list[str]
    ranked: list[list[int]]
    answered: bool
    id: str
    left_out: Counter[str] = field(default_factory=Counter)

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
    taken = ways or min((len(texts) for _, texts in _rows(files)), default=0)
    if taken < 2:
        raise ColbertZeroError(
            f"--candidates {' '.join(paths)}: no row, or one of fewer than two candidates; --n-ways N takes the rows "
            "that have N"
        )
    return _numbered(_rows(files), taken, True, fingerprint([file_fingerprint(file) for file in files], taken))


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
    rows = (
        (collection.queries[query], list(dict.fromkeys(texts[d] for d, _ in ranked))) for query, ranked in run.items()
    )
    return _numbered(rows, taken, False, fingerprint(file_fingerprint(run_file), collection.fingerprint, taken))


def _numbered(rows: Iterator[tuple[str, list[str]]], taken: int, answered: bool, identity: str) -> Candidates:
    numbers: dict[str, int] = {}
    found = Candidates([], [], [], answered, identity)
    for query, texts in rows:
        if len(texts) < taken:
            found.left_out[f"fewer than {taken} candidates"] += 1
            continue
        found.queries.append(query)
        found.ranked.append([numbers.setdefault(text, len(numbers)) for text in texts[:taken]])
    if not found.queries:
        raise ColbertZeroError(f"--candidates: no query has {taken} different candidates, and two are the least")
    found.documents = list(numbers)
    return found


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
