"""Hard negatives: what BM25 finds near a query that is not its answer."""

import time
from pathlib import Path

import numpy as np

from colbert_zero.data.prepared import DOCUMENTS, MINED, Part, Progress, Source, arrow_file
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_folder, write_checksums, write_json
from colbert_zero.models.bm25 import Bm25
from colbert_zero.recipe.schema import Mined

_BLOCK = 512


def share_out(rows: dict[str, int], total: int | None) -> dict[str, int]:
    """How many rows each part gives when `total` are spread in proportion to size (largest remainders first)."""
    size = sum(rows.values())
    if total is None or total >= size:
        return dict(rows)
    given = {name: count * total // size for name, count in rows.items()}
    by_remainder = sorted(rows, key=lambda name: (-(rows[name] * total % size), name))
    for name in by_remainder[: total - sum(given.values())]:
        given[name] += 1
    return given


def spread(part: Part, count: int) -> np.ndarray:
    """Row numbers of `count` rows, evenly spaced."""
    return np.arange(count, dtype=np.int64) * len(part) // max(1, count)


def mine(name: str, spec: Mined, source: Source, identity: str, data: Path, progress: Progress | None) -> Path:
    """A source whose rows have hard negatives from BM25, mined once and kept in the folder that is returned.

    The candidates of a query are BM25's best `depth` documents of the whole source that share a term with it; its own
    document and texts equal to it, or to any document of an equal query, are left out. A query with fewer candidates
    than wanted, after the first `skip` of them, is filled up with evenly spaced other documents, and counted.

    Raises:
        ColbertZeroError: The source has too few documents, or no pairs.
    """
    folder = data / f"{name}-{identity}"
    if (folder / "source.json").is_file():
        return folder
    started = time.monotonic()
    texts, answers = _documents(name, spec, source)
    index = Bm25(texts)
    counts = share_out({part.name: len(part) for part in source.parts.values()}, spec.queries)
    filled, done, total = 0, 0, sum(counts.values())
    kept: dict[str, int] = {}
    with atomic_folder(folder) as temporary:
        with arrow_file(temporary / "documents.arrow", DOCUMENTS) as write:
            for text in texts:
                write({"text": text})
        for part in source.parts.values():
            rows = spread(part, counts[part.name])
            with arrow_file(temporary / f"{len(kept)}.arrow", MINED) as write:
                for start in range(0, len(rows), _BLOCK):
                    block = part.read(rows[start : start + _BLOCK])
                    ranked = _ranked(index, block["query"], spec.depth)
                    for query, document, found in zip(block["query"], block["document"], ranked, strict=True):
                        negatives = [n for n in found if n not in answers[query]][
                            spec.skip : spec.skip + spec.negatives
                        ]
                        filled += len(negatives) < spec.negatives
                        _fill_up(negatives, spec.negatives, texts[document], len(texts), answers[query])
                        write({"query": query, "document": texts[document], "negatives": negatives})
                    done += len(block["query"])
                    if progress:
                        progress(done, total)
            kept[part.name.split("/", 1)[1]] = len(rows)
        record = {
            "id": identity, "kind": "mined", "parts": kept, "rows": total, "dropped": {}, "held_out": 0,
            "of": source.name, "filled_up": filled, "negatives": spec.negatives,
            "seconds": round(time.monotonic() - started, 3),
        }  # fmt: skip
        write_json(temporary / "source.json", record)
        write_checksums(temporary)
    return folder


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
