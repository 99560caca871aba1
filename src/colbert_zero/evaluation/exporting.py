"""An ONNX export whose rankings are compared with the model's before it is kept."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colbert_zero.data.collection import Collection
from colbert_zero.errors import ColbertZeroError
from colbert_zero.evaluation.ranking import rank
from colbert_zero.evaluation.runs import Run, measure
from colbert_zero.files import atomic_folder, read_json, write_json
from colbert_zero.models.checkpoints import load_model
from colbert_zero.models.graphs import MODEL, SETTINGS, Graph, computed_by
from colbert_zero.models.onnx import INT8, export_onnx
from colbert_zero.report.records import MEASURE

TOLERANCE = 1e-4
"""Of scores, relative to the largest: two documents nearer to each other than that may change places."""


def export_checked(
    model: Path, collection: Collection, out: Path, most_lost: float | None, advance: Callable[[int, int], None]
) -> dict[str, Any]:
    """Export a multi-vector checkpoint, and keep the graph if it ranks a collection as the checkpoint does.

    Args:
        model: The checkpoint's folder.
        collection: To rank.
        out: The new folder.
        most_lost: Also a graph with int8 weights, which may lose so many points of nDCG@10 (× 100); None: without.
        advance: Told how far each ranking is.

    Returns:
        What is written to onnx.json as `checked`: nDCG@10 of each, the largest difference of two scores, and in how
        many queries the int8 graph has another order of the first ten.

    Raises:
        ColbertZeroError: It cannot be exported, ranks otherwise, or loses more by int8; nothing is kept.
    """
    encoder = load_model(model, device="cpu")
    with atomic_folder(out) as folder:
        graphs = export_onnx(encoder, folder, most_lost is not None)
        runs = {"torch": rank(encoder, collection, progress=advance)}
        for graph in graphs:
            runs[graph.name] = rank(computed_by(encoder, Graph(graph)), collection, progress=advance)
        checked: dict[str, Any] = {
            "collection": collection.name,
            "queries": len(collection.qrels),
            "documents": collection.documents_count,
            MEASURE: {name: measure(run, collection.qrels, [MEASURE])[0][MEASURE] for name, run in runs.items()},
            "largest_difference": largest_difference(runs["torch"], runs[MODEL]),
        }
        if others := differing(runs["torch"], runs[MODEL]):
            raise ColbertZeroError(
                f"MODEL: the ONNX graph of {model} orders {len(others)} of {len(runs['torch'])} queries' documents "
                f"otherwise (the first: {others[0]!r}), so it is not kept; please report the architecture"
            )
        if most_lost is not None:
            lost = 100 * (checked[MEASURE]["torch"] - checked[MEASURE][INT8])
            if lost > most_lost:
                raise ColbertZeroError(
                    f"--int8: loses {lost:.2f} points of {MEASURE} on {collection.name}, more than {most_lost:g}; "
                    f"leave --int8 out, or allow it (--most-lost {math.ceil(lost)})"
                )
            checked["int8_other_first_ten"] = sum(
                [i for i, _ in run[:10]] != [i for i, _ in runs["torch"][query][:10]]
                for query, run in runs[INT8].items()
            )
        write_json(folder / SETTINGS, read_json(folder / SETTINGS) | {"checked": checked})
    return checked


def largest_difference(one: Run, other: Run) -> float:
    """Between the scores of a document that both rankings have."""
    pairs = ((dict(ranked), other[query]) for query, ranked in one.items())
    return max((abs(known[i] - s) for known, ranked in pairs for i, s in ranked if i in known), default=0.0)


def differing(one: Run, other: Run) -> list[str]:
    """Queries whose documents stand in another order, near ties aside.

    Example:
        >>> differing({"q": [("a", 2.0), ("b", 1.0)]}, {"q": [("b", 2.0), ("a", 1.0)]})
        ['q']
        >>> differing({"q": [("a", 1.00001), ("b", 1.0)]}, {"q": [("b", 1.0), ("a", 1.0)]})
        []
    """
    found = []
    for query, ranked in one.items():
        known = dict(ranked)
        near = TOLERANCE * max([1.0, *(abs(score) for score in known.values())])
        places = zip(ranked, other[query], strict=False)
        moved = any(a != b and abs(s - known.get(b, of_b)) > near for (a, s), (b, of_b) in places)
        if moved or len(ranked) != len(other[query]):
            found.append(query)
    return found
