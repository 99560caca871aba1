"""Runs and measures."""

import gzip
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

import ir_measures
import numpy as np

from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import atomic_file, text_lines

# {query id: [(document id, score), ...]}, best first.
Run = dict[str, list[tuple[str, float]]]

# {query id: {measure: score}}
PerQuery = dict[str, dict[str, float]]

MEASURES = ("nDCG@10", "R@100", "RR@10")


def measure(
    run: Run, qrels: dict[str, dict[str, int]], measures: Sequence[str] = MEASURES
) -> tuple[dict[str, float], PerQuery]:
    """Score a run; every query of the qrels counts, one without an answer with 0.

    Args:
        run: Its order counts, not its scores: trec_eval would sort equal scores in an order of its own.
        qrels: {query id: {document id: grade}}; a grade of 0 or less is not relevant.
        measures: Names as ir_measures writes them.

    Returns:
        Means over the queries, {measure: score}, and each query's, {query id: {measure: score}}.

    Raises:
        ColbertZeroError: A measure has no such name.
    """
    parsed = {}
    for name in measures:
        try:
            parsed[ir_measures.parse_measure(name)] = name
        except (NameError, ValueError, SyntaxError) as error:
            raise ColbertZeroError(f"{name!r} is no measure ({error}); write, say, nDCG@10 or RR@10") from None
    ranks = {
        query_id: {document_id: float(-rank) for rank, (document_id, _) in enumerate(run[query_id])}
        for query_id in qrels
        if run.get(query_id)
    }
    per_query: PerQuery = {query_id: {} for query_id in qrels}
    for score in ir_measures.iter_calc(list(parsed), qrels, ranks):
        per_query[score.query_id][parsed[score.measure]] = float(score.value)
    means = {name: float(np.mean([scores[name] for scores in per_query.values()])) for name in measures}
    return means, per_query


def mean_of_queries(per_query: PerQuery) -> dict[str, float]:
    """{measure: mean over the queries}."""
    measures = next(iter(per_query.values()))
    return {m: math.fsum(scores[m] for scores in per_query.values()) / len(per_query) for m in measures}


def means_of_parts(scores: dict[str, dict[str, float]], whole_of: Callable[[str], str]) -> dict[str, dict[str, float]]:
    """Scores with those of a collection's parts as their mean: a part of few queries weighs as much as one of many.

    Args:
        scores: {collection or part: {measure: score}}.
        whole_of: The name under which one counts; of what has no parts its own.

    Returns:
        {collection: {measure: score}}, in the order of the first parts.

    Source: CQADupStack's figure in BEIR (arXiv 2104.08663) is the mean over its 12 forums.

    Example:
        >>> means_of_parts({"a-x": {"RR@10": 0.2}, "a-y": {"RR@10": 0.4}, "b": {"RR@10": 0.5}}, lambda n: n[0])
        {'a': {'RR@10': 0.30000000000000004}, 'b': {'RR@10': 0.5}}
    """
    wholes: dict[str, list[dict[str, float]]] = {}
    for name, of_one in scores.items():
        wholes.setdefault(whole_of(name), []).append(of_one)
    return {
        whole: parts[0] if len(parts) == 1 else {m: math.fsum(part[m] for part in parts) / len(parts) for m in parts[0]}
        for whole, parts in wholes.items()
    }


def mean_of_collections(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """{measure: mean over the collections}, each with the same weight; of the measures that all of them have."""
    measures = [m for m in next(iter(scores.values())) if all(m in of_one for of_one in scores.values())]
    return {m: math.fsum(of_one[m] for of_one in scores.values()) / len(scores) for m in measures}


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Write a run in TREC format (query Q0 document rank score tag), atomically; gzipped under a name in .gz.

    White space, which the format cannot hold in an id or the tag, is written as in an address (`Main%20Page`), and so
    is the percent sign.
    """
    path = Path(path)
    with atomic_file(path, "wb") as raw, _text(raw, path.suffix == ".gz") as file:
        for query_id, documents in run.items():
            for place, (document_id, score) in enumerate(documents, 1):
                file.write(f"{_held(query_id)} Q0 {_held(document_id)} {place} {score!r} {_held(tag)}\n")


@contextmanager
def _text(raw: IO[bytes], zipped: bool) -> Iterator[IO[str]]:
    """A file to write text to, gzipped or not; equal runs give equal bytes."""
    binary = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if zipped else raw
    text = io.TextIOWrapper(binary, "utf-8")
    yield text
    text.flush()
    text.detach()
    if zipped:
        binary.close()


def _held(text: str) -> str:
    return "".join(quote(c) if c.isspace() or c == "%" else c for c in text)


def read_run(path: str | Path) -> Run:
    """Read a run in TREC format; a query's documents are ordered by rank.

    Raises:
        ColbertZeroError: A line is wrong or a document is there twice; names file and line.
    """
    placed: dict[str, dict[str, tuple[int, float]]] = {}
    for where, line in text_lines(Path(path)):
        try:
            query_id, _, document_id, place, score, _ = line.split()
            query_id, document_id = unquote(query_id), unquote(document_id)
            entry = int(place), float(score)
        except ValueError:
            raise ColbertZeroError(f"{where}: write query Q0 document rank score tag, not {line!r}") from None
        documents = placed.setdefault(query_id, {})
        if document_id in documents:
            raise ColbertZeroError(f"{where}: document {document_id!r} is there twice for query {query_id!r}")
        documents[document_id] = entry
    return {
        query_id: [(d, score) for d, (_, score) in sorted(documents.items(), key=lambda item: item[1][0])]
        for query_id, documents in placed.items()
    }
