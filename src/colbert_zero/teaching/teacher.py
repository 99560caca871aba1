"""Teacher scores: the weighted sum of a trained scorer and BM25, each min-max normalised over a query's candidates."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.data.prepared import ArrowPart, Source, source_folder
from colbert_zero.data.rows import CANDIDATES
from colbert_zero.evaluation.runs import Run
from colbert_zero.files import Progress
from colbert_zero.maxsim.scores import min_max
from colbert_zero.models.bm25 import Bm25
from colbert_zero.recipe.data import Scored
from colbert_zero.recipe.schema import Teacher
from colbert_zero.teaching.derived import RowsOf, derive
from colbert_zero.teaching.scorers import Scorer

_BLOCK = 128


def describe(teacher: Teacher) -> str:
    """What a teacher is, in words."""
    parts = []
    if teacher.pipeline and teacher.pipeline_weight:
        parts.append(f"{teacher.pipeline_weight:g} × {' → '.join(teacher.pipeline)}")
    if teacher.bm25_weight:
        parts.append(f"{teacher.bm25_weight:g} × BM25")
    return " + ".join(parts) + ", each min-max normalised per query"


def score(
    name: str,
    spec: Scored,
    teacher: Teacher,
    source: Source,
    model: Scorer | None,
    identity: str,
    data: Path,
    progress: Progress | None,
) -> Path:
    """A source of candidates with the teacher's scores, made once and kept in the folder that is returned.

    A query's candidates are its document and its mined negatives. Documents are encoded a block of queries at a
    time, each once a block, so that memory does not grow with the source.
    """

    def make() -> tuple[Iterable[str], RowsOf, dict[str, Any]]:
        assert source.documents is not None
        texts, more = source.documents["text"], {"kind": "scored", "teacher": spec.teacher, "n_ways": 0}
        bm25 = Bm25(texts) if teacher.bm25_weight else None

        def rows_of(part: ArrowPart, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
            block = part.rows[numbers]
            columns = zip(block["document"], block["negatives"], strict=True)
            candidates = torch.tensor([[document, *negatives] for document, negatives in columns])
            scores, more["n_ways"] = torch.zeros(candidates.shape), candidates.shape[1]
            if model is not None:
                own = model.scores(block["query"], candidates.numpy(), texts)
                scores += teacher.pipeline_weight * min_max(torch.from_numpy(own))
            if bm25 is not None:
                lexical = torch.from_numpy(bm25.score_pairs(block["query"], candidates.numpy()))
                scores += teacher.bm25_weight * min_max(lexical)
            for row in zip(block["query"], candidates.tolist(), scores.tolist(), strict=True):
                yield dict(zip(("query", "documents", "scores"), row, strict=True))

        return texts, rows_of, more

    return derive(
        source_folder(data, name, identity), identity, source, spec.queries, CANDIDATES, _BLOCK, make, progress
    )


def fuse(runs: list[tuple[float, Run]], depth: int) -> Run:
    """Rank by the weighted sum of runs' scores, each min-max normalised over what it retrieved for a query.

    A document that a run did not retrieve has 0 in it. Ties go by document id.
    """
    fused: dict[str, dict[str, float]] = {}
    for weight, run in runs:
        for query, ranked in run.items():
            sums = fused.setdefault(query, {})
            if ranked:
                high, low = ranked[0][1], ranked[-1][1]
                for document, value in ranked:
                    sums[document] = sums.get(document, 0.0) + weight * (value - low) / max(high - low, 1e-9)
    return {query: sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:depth] for query, sums in fused.items()}
