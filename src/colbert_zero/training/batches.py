"""From row numbers to model inputs: global batch k of a phase, tokenised."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from colbert_zero.data.order import Order
from colbert_zero.data.prepared import Part, Rows
from colbert_zero.data.streams import StreamedPart
from colbert_zero.errors import ColbertZeroError
from colbert_zero.models.encoders import Tokenise
from colbert_zero.processes import process_rank, share
from colbert_zero.recipe.schema import Negatives, Phase
from colbert_zero.training.gradcache import TokenisedTexts
from colbert_zero.training.losses import too_near


class Batch(NamedTuple):
    """This process's share of a global batch.

    Attributes:
        queries: As many as the share has; for a cross-encoder each together with its document.
        documents: Each query's document; then, column by column, its first hard negative, its second …; or its
            candidates likewise. For a cross-encoder hard negatives alone, each together with its query.
        teacher_scores: Of the candidates, (queries, n_ways); None for pairs.
    """

    queries: TokenisedTexts
    documents: TokenisedTexts
    teacher_scores: torch.Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        scores = None if self.teacher_scores is None else self.teacher_scores.to(device)
        return Batch(self.queries.to(device), self.documents.to(device), scores)


class Batches:
    """Item k is this process's share of global batch k.

    The shares of all processes, put together in the order of their ranks, are the global batch.

    Args:
        parts: The sources' parts by name.
        order: Which rows a batch has.
        tokenise: Texts of a task as the model wants them.
        steps: Length.
        negatives: Which hard negatives a query gets.
        own: Queries of a batch that this process takes; by default all processes take as many.
        pairs: Whether the model reads a query and a document together.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        order: Order,
        tokenise: Tokenise,
        steps: int,
        negatives: Negatives,
        own: int | None = None,
        pairs: bool = False,
    ):
        self.parts, self.order, self.steps, self.negatives = parts, order, steps, negatives
        contrasted = {n: part for n, part in parts.items() if not part.scored or negatives.max_relative is not None}
        self.least = {name: least_negatives(part) for name, part in contrasted.items()}
        self.tokenise, self.pairs = tokenise, pairs
        self.share = own or share(order.global_batch_size, "global_batch_size")
        self.streams = {name: part for name, part in parts.items() if isinstance(part, StreamedPart)}

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        name, indices = self.order.batch(step)
        own = slice(process_rank() * self.share, (process_rank() + 1) * self.share)
        rows = self.parts[name].read(indices[own])
        rows = with_taken_negatives(rows, self.negatives, self.least.get(name, 0), self.order, step, own)
        queries, documents = list[Any](rows["query"]), list[Any](document_texts(rows))
        if self.pairs:
            together = [(queries[i % len(queries)], document) for i, document in enumerate(documents)]
            queries, documents = together[: len(queries)], together[len(queries) :]
        return Batch(
            TokenisedTexts("query", **self.tokenise(queries, "query")),
            TokenisedTexts("document", **self.tokenise(documents, "document")),
            torch.tensor(rows["scores"]) if "scores" in rows else None,
        )

    def stream_states(self, step: int) -> dict[str, Any]:
        """From where each streamed part can be read on for batch `step` and all that follow; JSON, for a checkpoint.

        Batches that were read ahead do not matter.
        """
        read = [name for name in self.streams if name in self.order.names]
        return {name: self.streams[name].state(self.order.block(name, step)) for name in read}

    def restore_streams(self, states: Mapping[str, Any]) -> None:
        """Let streamed parts go on from a checkpoint's states rather than from their start."""
        for name, state in states.items():
            self.streams[name].restore(state)

    def taken(self, name: str) -> int | None:
        """Hard negatives that a query of a part gets; None where it has candidates."""
        return self.negatives.of_part(self.least[name]) if name in self.least else None

    def dropped(self) -> dict[str, dict[str, int]]:
        """Rows of streamed parts left out so far, by part and reason."""
        return {name: part.dropped for name, part in self.streams.items() if part.dropped}


class Prefetched:
    """Batches from a step on, read and tokenised by a thread while the step before is computed.

    The tokenizer lets go of Python's lock, so one thread is enough to keep ahead of a training step.

    Args:
        batches: Item k belongs to step k.
        first: The step to begin at; reaching it costs nothing.
    """

    AHEAD = 2

    def __init__(self, batches: Batches, first: int):
        self.batches, self.first = batches, first
        self._waited_seconds = 0.0

    def waited(self) -> float:
        """Seconds that training has waited for batches since it last asked."""
        seconds, self._waited_seconds = self._waited_seconds, 0.0
        return seconds

    def __iter__(self) -> Iterator[Batch]:
        steps = iter(range(self.first, len(self.batches)))
        with ThreadPoolExecutor(1) as pool:
            pending = deque(pool.submit(self.batches.__getitem__, step) for step in islice(steps, self.AHEAD))
            while pending:
                started = time.monotonic()
                batch = pending.popleft().result()
                self._waited_seconds += time.monotonic() - started
                pending.extend(pool.submit(self.batches.__getitem__, step) for step in islice(steps, 1))
                yield batch


def with_taken_negatives(
    rows: Mapping[str, list[Any]], asked: Negatives, least: int, order: Order, step: int, own: slice
) -> dict[str, list[Any]]:
    """Rows of a batch with the hard negatives that their queries get: the first, or some drawn anew at each step.

    Of scored candidates, where `max_relative` is asked for, the answer stays the first, and those that score too near
    to it come last: a query gets one only where others are too few, for its loss to leave out.

    Args:
        rows: Some of the batch's; scored candidates stay as they are without `max_relative`.
        asked: How many, and of how many.
        least: As many as every row of the part has, for all that every row has.
        order: Of the data; its seed is the draw's.
        step: The batch, from 0.
        own: Which rows of the global batch these are.
    """
    if "negatives" in rows:
        places = _places([len(row) for row in rows["negatives"]], asked, order, step, own)
        pairs = zip(rows["negatives"], places, strict=True)
        return {**rows, "negatives": [[row[i] for i in of_row[: asked.of_part(least)]] for row, of_row in pairs]}
    if asked.max_relative is None:
        return dict(rows)
    taken: dict[str, list[Any]] = {**rows, "documents": [], "scores": []}
    places = _places([len(row) - 1 for row in rows["scores"]], asked, order, step, own)
    for documents, scores, of_row in zip(rows["documents"], rows["scores"], places, strict=True):
        near = too_near(torch.tensor([scores]), asked.max_relative)[0, 1:].numpy()
        chosen = of_row[np.argsort(near[of_row], kind="stable")][: asked.of_part(least)]
        for key, row in (("documents", documents), ("scores", scores)):
            taken[key].append([row[0], *(row[1 + i] for i in chosen)])
    return taken


def _places(counts: list[int], asked: Negatives, order: Order, step: int, own: slice) -> list[np.ndarray]:
    """The hard negatives of each row in the order in which they are taken."""
    if asked.of is None or asked.taken is None:
        return [np.arange(count) for count in counts]
    keys = np.random.default_rng((order.seed, step)).random((order.global_batch_size, asked.of))[own]
    return [np.argsort(key[:count]) for key, count in zip(keys, counts, strict=True)]


def least_negatives(part: Rows) -> int:
    """Hard negatives that every row of a part has; of candidates all but the answer."""
    return max(0, min(part.lengths(), default=0) - part.scored)


def document_texts(rows: Mapping[str, list[Any]]) -> list[str]:
    """Documents of a batch's rows as the objectives want them, column by column."""
    if "documents" in rows:
        return [text for column in zip(*rows["documents"], strict=True) for text in column]
    columns = [rows["document"], *zip(*rows.get("negatives", ()), strict=True)]
    return [text for column in columns for text in column]


def check_columns(name: str, spec: Phase, parts: dict[str, Part]) -> None:
    """Refuse data that lacks what the objective needs, before training.

    Raises:
        ColbertZeroError: Names the part, what it lacks and the mend.
    """
    for part in parts.values():
        scored = part.scored
        if scored != spec.reads_scores:
            has, wants = ("scored candidates", "pairs") if scored else ("pairs", "candidates with scores")
            who = "`max_relative`" if spec.reads_scores and not spec.distils else spec.objective
            raise ColbertZeroError(f"phases.{name}.sources: {part.name} has {has}, {who} needs {wants}")
        lengths = part.lengths()
        if spec.distils and len(lengths) > 1:
            raise ColbertZeroError(
                f"phases.{name}.sources: {part.name} has rows of {min(lengths)} to {max(lengths)} candidates; "
                "distillation needs the same number in every row of a source"
            )
        least = least_negatives(part)
        if spec.reads_pairs and lengths and not least:
            raise ColbertZeroError(
                f"phases.{name}.sources: {part.name} has a row without hard negatives, and a cross-encoder learns from "
                "them; mine some (kind: mined), or check `columns`"
            )
        if not spec.distils and lengths and least < spec.hard_negatives.of_part(0):
            raise ColbertZeroError(
                f"phases.{name}.negatives: {spec.negatives}, but {part.name} has rows with only {least}; "
                "lower it to that, or mine more"
            )
    if spec.hard_negatives.taken is None and parts and not any(map(least_negatives, parts.values())):
        raise ColbertZeroError(
            f"phases.{name}.negatives: {spec.negatives}, but every part has a row without any; check `columns`, mine "
            "some (kind: mined), or leave it out"
        )
