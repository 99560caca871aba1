"""Figures that others published (published.json), each with where: shown beside one's own, never mixed with them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.files import read_json


@dataclass(frozen=True)
class Figures:
    """What one model was published to score, nDCG@10 between 0 and 1.

    Attributes:
        model: As its source calls it.
        benchmark: `beir` or `nanobeir`.
        source: Where the figures stand.
        mean: Over the whole benchmark, if all of it was asked for.
        scores: {collection: score}, of those that were asked for.
    """

    model: str
    benchmark: str
    source: str
    mean: float | None
    scores: dict[str, float]


def published_on(names: Iterable[str]) -> list[Figures]:
    """What was published on public collections, the highest mean first; models with no figure there are left out.

    Args:
        names: As `beir/scifact`; others are passed over. A benchmark's mean is given if all its collections are named.

    Example:
        >>> [f.scores for f in published_on(["beir/scifact"]) if f.model.startswith("ColBERT-Zero")]
        [{'beir/scifact': 0.765}]
    """
    data = _published()
    wanted, found = set(names), []
    for benchmark, entry in data.items():
        collections = [f"{benchmark}/{name}" for name in entry["collections"]]
        whole = wanted >= set(collections)
        for row in sorted(entry["models"], key=lambda row: -row["mean"]):
            scores = zip(collections, row.get("scores", []), strict=False)
            asked = {name: round(score / 100, 4) for name, score in scores if name in wanted}
            if asked or whole:
                mean = round(row["mean"] / 100, 4) if whole else None
                found.append(Figures(row["model"], benchmark, row["source"], mean, asked))
    return found


def published_means(benchmark: str) -> dict[str, tuple[float, str]]:
    """What models were published to score over a whole benchmark, between 0 and 1, and where; by their names there.

    Args:
        benchmark: `beir` or `nanobeir`.
    """
    models = _published()[benchmark]["models"]
    return {found["model"]: (found["mean"] / 100, found["source"]) for found in models if found.get("mean")}


def _published() -> dict[str, Any]:
    data: dict[str, Any] = read_json(Path(__file__).parent / "published.json")
    return data
