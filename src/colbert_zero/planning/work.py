"""What a phase will encode and score, counted on its own batches by the code that cuts and counts them in training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from colbert_zero.data.order import evenly_spaced
from colbert_zero.data.streams import StreamedPart
from colbert_zero.models.alignment import Alignment
from colbert_zero.models.encoders import Tokenise
from colbert_zero.planning.data import PlannedPart, held_rows
from colbert_zero.recipe.schema import Phase
from colbert_zero.study.steps import Steps
from colbert_zero.training.batches import Batch, Batches
from colbert_zero.training.gradcache import TokenisedTexts, chunks_for, work_of

LOOKED_AT = 8_192
"""Texts of a phase that are tokenised for its plan, about; a phase of no more is counted whole."""


@dataclass(frozen=True)
class Counts:
    """What a phase computes, all processes together.

    Attributes:
        texts: Queries and documents, each as often as it is read.
        tokens: Real ones of these.
        padding: Encoded beside them.
        repeated: Encoded a second time by GradCache, padding included.
        squares: Sum of the squares of encoded lengths, padding included, of one pass: attention's products.
        products: Pairs of a query's and a document's token that MaxSim compares.
        best: Of each query's token and each document, one: what MaxSim's gradient goes through.
    """

    texts: float = 0.0
    tokens: float = 0.0
    padding: float = 0.0
    repeated: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    best: float = 0.0

    def plus(self, other: "Counts", times: float = 1.0) -> "Counts":
        """The sum with so many times another."""
        return Counts(
            *(own + times * theirs for own, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )


class Counted(NamedTuple):
    """What a phase will compute, and whether all of its batches were counted or some."""

    counts: Counts
    whole: bool


@dataclass(frozen=True)
class Devices:
    """What a phase is to be trained on.

    Attributes:
        count: Of devices, one a process.
        kind: "cuda" or "cpu": chunks are of another size.
    """

    count: int
    kind: str


def count_phase(
    spec: Phase,
    steps: Steps,
    parts: Mapping[str, PlannedPart],
    tokenise: Tokenise | None,
    alignment: Alignment,
    on: Devices,
) -> Counted:
    """Count what a phase will compute.

    Args:
        spec: Its entry.
        steps: Its length and the order of its data.
        parts: Of its sources, as it reads them.
        tokenise: Of its model; None where the model is not at hand: each text counts as the longest allowed.
        alignment: Its longest texts.
        on: What it is trained on.
    """
    order, share = steps.order, spec.global_batch_size // on.count
    whole = tokenise is not None and all(part.whole for part in parts.values()) and steps.texts <= LOOKED_AT
    counts = Counts()
    if whole and tokenise:
        seen = {name: part.seen for name, part in parts.items() if part.seen}
        batches = Batches(seen, order, tokenise, steps.steps, spec.hard_negatives, share, spec.reads_pairs)
        for step in range(steps.steps):
            counts = counts.plus(count(spec, batches[step], on), on.count)
        return Counted(counts, True)
    longest: Counts | None = None  # of a share of texts of which none is at hand: all parts' are alike
    for name, drawn in order.drawn(steps.steps).items():
        if not drawn:
            continue
        if (tokenise is None or parts[name].seen is None) and longest:
            counts = counts.plus(longest, on.count * drawn)
            continue
        rows = max(16, LOOKED_AT * drawn // steps.steps // (1 + steps.ways))
        some = batches_of(spec, parts[name], rows, share, tokenise, alignment, steps.ways)
        looked = [count(spec, filled(batch, share), on) for batch in some]
        for counted in looked:
            counts = counts.plus(counted, on.count * drawn / len(looked))
        longest = looked[0] if parts[name].seen is None else longest
    return Counted(counts, False)


class _Looked:
    """Batches of rows to look at, in place of an order's."""

    def __init__(self, name: str, rows: np.ndarray, size: int, seed: int):
        self.name, self.rows, self.global_batch_size, self.seed = name, rows, size, seed

    def batch(self, step: int) -> tuple[str, np.ndarray]:
        """Some of the rows."""
        return self.name, self.rows[step * self.global_batch_size : (step + 1) * self.global_batch_size]


def batches_of(
    spec: Phase, part: PlannedPart, rows: int, share: int, tokenise: Tokenise | None, alignment: Alignment, ways: int
) -> Iterator[Batch]:
    """Batches of some of a part's rows, or of the longest texts, each at most one process's share."""
    if tokenise is None or part.seen is None:
        asked, found = alignment.query_tokens, alignment.document_tokens
        if spec.reads_pairs:
            together = asked + found - 1
            yield Batch(_longest("query", 1, together), _longest("document", ways - 1, together), None)
        else:
            yield Batch(_longest("query", 1, asked), _longest("document", ways, found), None)
        return
    seen = part.seen
    if isinstance(seen, StreamedPart):
        seen = held_rows(seen, rows)
    numbers = evenly_spaced(len(seen), min(rows, len(seen)))
    size = min(share, len(numbers))
    order = _Looked(part.name, numbers, size, 0)
    steps, negatives = len(numbers) // size, spec.hard_negatives
    batches = Batches({part.name: seen}, order, tokenise, steps, negatives, size, spec.reads_pairs)  # type: ignore[arg-type]
    for step in range(len(batches)):
        yield batches[step]


def _longest(task: str, texts: int, tokens: int) -> TokenisedTexts:
    ones = torch.ones(texts, tokens, dtype=torch.int64)
    return TokenisedTexts(task, input_ids=ones, attention_mask=ones)


def filled(batch: Batch, share: int) -> Batch:
    """A batch as large as one process's share: of rows looked at, each several times."""
    queries = len(batch.queries)
    if queries >= share:
        return batch
    sides = (_times(batch.queries, share), _times(batch.documents, share * len(batch.documents) // queries))
    return Batch(*sides, None)


def _times(side: TokenisedTexts, size: int) -> TokenisedTexts:
    rows = torch.arange(size) % len(side)
    return TokenisedTexts(side.task, **{name: tensor[rows] for name, tensor in side.inputs.items()})


def count(spec: Phase, batch: Batch, on: Devices) -> Counts:
    """What one process computes for its share of a batch."""
    sides, device = batch[:2], torch.device(on.kind)
    chunks = chunks_for(sides, spec.mini_batch_tokens, device)
    work = work_of(sides, chunks, spec.mini_batch_tokens)
    squares = sum(
        len(chunk) * side.lengths[chunk[0]] ** 2
        for side, of_side in zip(sides, chunks, strict=True)
        for chunk in of_side
    )
    if spec.reads_pairs:
        return Counts(work.texts, work.tokens, work.padding, work.repeated, float(squares))
    queries, documents = sides
    dense = spec.representation == "dense"
    asked, found = (len(side) if dense else int(side.used.sum()) for side in sides)
    # Every query of this process with the documents of all, or with its own candidates.
    times = on.count if spec.contrasts else 1 / max(1, len(queries))
    products, best = asked * found * times, asked * len(documents) * times
    return Counts(work.texts, work.tokens, work.padding, work.repeated, float(squares), products, best)
