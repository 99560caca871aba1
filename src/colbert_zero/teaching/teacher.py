"""Teacher scores: an ensemble's scores of a query's candidates (evaluation/ensembles), kept as a source of rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colbert_zero.data.prepared import ArrowPart, Source, source_folder
from colbert_zero.data.rows import CANDIDATES
from colbert_zero.evaluation.ensembles import weighted_sum
from colbert_zero.files import Progress
from colbert_zero.maxsim.backends import backend_here
from colbert_zero.models.precision import Arithmetic
from colbert_zero.recipe.data import Scored
from colbert_zero.teaching.derived import RowsOf, derive
from colbert_zero.teaching.scorers import ByEncoder, Scorer

_BLOCK = 128

Members = Callable[[Sequence[str]], list[tuple[float, Scorer]]]
"""Makes what scores, with its weight, given all documents."""


def score(
    name: str,
    spec: Scored,
    members: Members,
    arithmetic: Arithmetic,
    source: Source,
    identity: str,
    data: Path,
    progress: Progress | None,
) -> Path:
    """A source of candidates with the teacher's scores, made once and kept in the folder that is returned.

    A query's candidates are its document and its mined negatives. Documents are encoded a block of queries at a
    time, each once a block, so that memory does not grow with the source.

    Args:
        name: The source's.
        spec: Its entry.
        members: Called if there is something to do.
        arithmetic: What they encode in, for the record.
        source: What is scored.
        identity: Its id.
        data: The study's prepared sources.
        progress: Called with the rows done and all.
    """

    def make() -> tuple[Iterable[str], RowsOf, dict[str, Any]]:
        assert source.documents is not None
        texts = source.documents["text"]
        more: dict[str, Any] = {"kind": "scored", "teacher": spec.teacher, "precision": arithmetic, "n_ways": 0}
        weighted = members(texts)
        if any(isinstance(scorer, ByEncoder) for _, scorer in weighted):
            more["maxsim"] = backend_here()

        def rows_of(part: ArrowPart, numbers: np.ndarray) -> Iterator[dict[str, Any]]:
            block = part.rows[numbers]
            columns = zip(block["document"], block["negatives"], strict=True)
            candidates = torch.tensor([[document, *negatives] for document, negatives in columns])
            more["n_ways"] = candidates.shape[1]
            of_members = (
                (weight, scorer.scores(block["query"], candidates.numpy(), texts)) for weight, scorer in weighted
            )
            scores = weighted_sum(of_members, candidates.shape)
            for row in zip(block["query"], candidates.tolist(), scores.tolist(), strict=True):
                yield dict(zip(("query", "documents", "scores"), row, strict=True))

        return texts, rows_of, more

    return derive(
        source_folder(data, name, identity), identity, source, spec.queries, CANDIDATES, _BLOCK, make, progress
    )
