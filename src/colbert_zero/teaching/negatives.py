"""Hard negatives: what BM25 finds near a query that is not its answer."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.data.prepared import MINED, ArrowPart, Source, source_folder
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import Progress
from colbert_zero.models.bm25 import Bm25
from colbert_zero.recipe.data import Mined
from colbert_zero.teaching.derived import RowsOf, derive

_BLOCK = 512


def mine(name: str, spec: Mined, source: Source, identity: str, data: Path, progress: Progress | None) -> Path:
    """A source whose rows have hard negatives from BM25, mined once and kept in the folder that is returned.

    The candidates of a query are BM25's best `depth` documents of the whole source that share a term with it; its own
    document and texts equal to it, or to any document of an equal query, are left out. A query with fewer candidates
    than wanted, after the first `skip` of them, is filled up with evenly spaced other documents, random to it; both are
    counted, `filled_up` queries and `random` negatives.

    Raises:
        ColbertZeroError: The source has too few documents, or no pairs.
    """

    def make() -> tuple[Iterable[str], RowsOf, dict[str, Any]]:
        texts, answers = _documents(name, spec, source)
        index = Bm25(texts)
        more: dict[str, Any] = {"kind": "mined", "filled_up": 0, "random": 0, "negatives": spec.negatives}

        def rows_of(part: ArrowPart, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
            block = part.read(numbers)
            ranked = _ranked(index, block["query"], spec.depth)
            for query, document, found in zip(block["query"], block["document"], ranked, strict=True):
                candidates = [n for n in found if n not in answers[query]]
                negatives = candidates[spec.skip : spec.skip + spec.negatives]
                more["filled_up"] += len(negatives) < spec.negatives
                more["random"] += spec.negatives - len(negatives)
                _fill_up(negatives, spec.negatives, texts[document], len(texts), answers[query])
                yield {"query": query, "document": texts[document], "negatives": negatives}

        return texts, rows_of, more

    return derive(source_folder(data, name, identity), identity, source, spec.queries, MINED, _BLOCK, make, progress)


def told_of_random(name: str, source: Source) -> str | None:
    """What to tell of a mined source whose negatives are in part random; None where none is, or nobody counted."""
    record = source.record
    if not (random := record.get("random")):
        return None
    return (
        f"sources.{name}: {random:,} of {record['rows'] * record['negatives']:,} hard negatives are random documents, "
        f"of {record['filled_up']:,} of {record['rows']:,} queries: BM25 found too few that share a term with those, "
        "after `skip` and within `depth`. They teach little; lower `negatives` or `skip`, or raise `depth`"
    )


def _documents(name: str, spec: Mined, source: Source) -> tuple[dict[str, int], dict[str, set[int]]]:
    """The distinct documents, text -> number, and the numbers of each query's answers."""
    texts: dict[str, int] = {}
    answers: dict[str, set[int]] = {}
    for part in source.tables.values():
        if "document" not in part.rows.column_names:
            raise ColbertZeroError(f"sources.{name}.of: {source.name} has scored candidates, not pairs to mine")
        for batch in part.rows.data.table.select(["query", "document"]).to_batches():
            for query, document in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                answers.setdefault(query, set()).add(texts.setdefault(document, len(texts)))
    query = max(answers, key=lambda query: len(answers[query]))
    if len(texts) - len(answers[query]) < spec.negatives:
        raise ColbertZeroError(
            f"sources.{name}.negatives: {spec.negatives} a query, but {source.name} has {len(texts)} documents and "
            f"{len(answers[query])} of them answer one query ({query[:60]!r}); lower it"
        )
    return texts, answers


def _ranked(index: Bm25, queries: list[str], depth: int) -> list[list[int]]:
    """Each query's best documents, best first, without those that share no term with it."""
    found, scores = index.top(queries, depth)
    return [numbers[positive].tolist() for numbers, positive in zip(found, scores > 0, strict=True)]


def _fill_up(negatives: list[int], wanted: int, own: int, size: int, answers: set[int]) -> None:
    """Add documents, evenly spaced from a query's own, that are neither its answers nor there already."""
    step = max(1, size // (wanted - len(negatives) + 1))
    position = own
    while len(negatives) < wanted:
        position = (position + step) % size
        while position in answers or position in negatives:
            position = (position + 1) % size
        negatives.append(position)
