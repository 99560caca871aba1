"""The consistency filter: of noisy pairs, those whose document a judge finds for their query among many others."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from colbert_zero.data.collection import Collection
from colbert_zero.data.prepared import Source
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.evaluation.runs import Run
from colbert_zero.files import Progress, fingerprint, read_json, write_json
from colbert_zero.processes import from_main, is_main
from colbert_zero.watch import stop_if_asked

SAMPLE = 10_000
"""Pairs of a sample. E5 looked among a million passages, and kept a pair that was among the best two."""

_EXAMPLES, _VERSION = 3, 1

Judge = Callable[[Collection, int], Run]
"""The best documents of each query of a collection, so many."""


def filter_pairs(
    source: Source,
    judge: Judge,
    judge_id: object,
    top: int,
    sample: int,
    seed: int,
    folder: Path,
    progress: Progress | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Which pairs of a source to keep: those whose document is among the judge's best for their query.

    A part's rows are dealt out, by a permutation of the seed, to samples of at most `sample` rows and equal size to
    within one: each pair's document is looked for among the documents of its own sample, equal ones once. A sample is a
    unit of work: what was judged stays in `folder`, so that a killed run goes on, and the outcome depends on nothing
    but the rows, the judge, `top`, `sample` and `seed`.

    Args:
        source: Of pairs; their hard negatives are kept with them.
        judge: Ranks a sample.
        judge_id: What it is known by: a judged sample counts for the same judge alone.
        top: Keep a pair whose document is among so many.
        sample: Rows of a sample, more than `top`.
        seed: Of the permutation.
        folder: Where judged samples are kept.
        progress: Called with the pairs judged and all.

    Returns:
        Of each part, which rows to keep, (rows,), bool; counts and examples, a source and a part.

    Raises:
        ColbertZeroError: The source has scored candidates, or is streamed, or no sample has more than `top` documents.

    Source: E5, arXiv 2212.03533, section 3; Nomic Embed, arXiv 2402.01613. Both rank among other documents of the data.
    """
    tables = source.tables
    if len(tables) < len(source.parts):
        raise ColbertZeroError(
            f"{source.name}: streamed rows cannot be dealt out to samples; leave `streaming` out, so that they are "
            "prepared"
        )
    if any(part.scored for part in tables.values()):
        raise ColbertZeroError(f"{source.name}: has candidates with scores, not pairs; only pairs are filtered")
    total, done = sum(map(len, tables.values())), 0
    kept: dict[str, np.ndarray] = {}
    record: dict[str, Any] = {"rows": total, "kept": 0, "parts": {}, "samples": [], "examples": []}
    for part in tables.values():
        of_part = hashlib.blake2b(part.name.encode(), digest_size=8).digest()
        order = np.random.default_rng([seed, *of_part]).permutation(len(part))
        flags = np.zeros(len(part), bool)
        for unit in np.array_split(order, -(-len(part) // sample)):
            stop_if_asked()
            rows = np.sort(unit)
            columns = part.read(rows)
            made_of = [_VERSION, judge_id, top, columns["query"], columns["document"]]
            file = folder / f"{fingerprint(made_of)}.json"
            judged = from_main(read_json(file) if is_main() and file.is_file() else None)
            if judged is None:
                judged = _judge(part.name, columns, judge, top)
                if is_main():
                    write_json(file, judged)
            flags[rows] = judged["kept"]
            record["samples"].append(judged["documents"])
            for at in (n for n, keep in enumerate(judged["kept"]) if not keep):
                if len(record["examples"]) == _EXAMPLES:
                    break
                pair = {key: short(columns[key][at]) for key in ("query", "document")}
                record["examples"].append({"part": part.name, "row": int(rows[at]), **pair})
            done += len(rows)
            if progress:
                progress(done, total)
        kept[part.name] = flags
        record["parts"][part.name] = {"rows": len(part), "kept": int(flags.sum())}
        record["kept"] += int(flags.sum())
    if max(record["samples"]) <= top:
        raise ColbertZeroError(
            f"{source.name}: no sample has more than {max(record['samples']):,} documents, so every one is among the "
            f"best {top:,} and all pairs would be kept; lower --top, or give more pairs"
        )
    return kept, record


def _judge(name: str, columns: dict[str, list[Any]], judge: Judge, top: int) -> dict[str, Any]:
    """Of each pair of a sample whether its document is among the judge's best for its query."""
    documents = {text: f"d{number}" for number, text in enumerate(dict.fromkeys(columns["document"]))}
    queries = {text: f"q{number}" for number, text in enumerate(dict.fromkeys(columns["query"]))}
    qrels: dict[str, dict[str, int]] = {number: {} for number in queries.values()}
    for query, document in zip(columns["query"], columns["document"], strict=True):
        qrels[queries[query]][documents[document]] = 1
    corpus, asked = ({number: text for text, number in of.items()} for of in (documents, queries))
    collection = Collection.from_memory(name, corpus, asked, qrels)
    run = judge(collection, top)
    best = {query: {document for document, _ in found} for query, found in run.items()}
    pairs = zip(columns["query"], columns["document"], strict=True)
    return {"documents": len(documents), "kept": [documents[d] in best.get(queries[q], ()) for q, d in pairs]}
