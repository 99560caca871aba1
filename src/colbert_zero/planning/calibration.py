"""How long a phase's step takes on this machine, measured."""

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from colbert_zero.maxsim.backends import scoring_with
from colbert_zero.maxsim.packed import Packed
from colbert_zero.models.checkpoints import Trainable
from colbert_zero.models.precision import attend_fast, decided
from colbert_zero.planning.data import PlannedPart
from colbert_zero.planning.model import PlannedModel
from colbert_zero.planning.work import Counts, Devices, batches_of, count, filled
from colbert_zero.recipe.schema import Phase
from colbert_zero.study.steps import Steps
from colbert_zero.training.batches import Batch
from colbert_zero.training.execution import as_trained, autocast_of
from colbert_zero.training.gradcache import TokenisedTexts, grad_cache
from colbert_zero.training.machine import machine_of
from colbert_zero.training.objective import Objective
from colbert_zero.training.objectives import objective_of
from colbert_zero.training.optimiser import optimiser_of

ROUNDS = 3
"""Steps measured, at least."""


@dataclass(frozen=True)
class Pace:
    """Seconds that a phase will take on one process of this machine.

    Attributes:
        least: By the fastest of the steps measured.
        median: By their median.
        most: By the slowest.
        queries: Of the steps measured; where they are fewer than a batch has, the time of encoding counts in proportion
            to tokens, that of scoring to pairs of tokens.
        rounds: Steps measured.
    """

    least: float
    median: float
    most: float
    queries: int
    rounds: int


def measure(
    spec: Phase, steps: Steps, parts: Mapping[str, PlannedPart], model: PlannedModel, counts: Counts, seconds: float
) -> Pace:
    """Train a few steps of a phase, and see how long they take.

    Args:
        spec: Its entry.
        steps: Its length.
        parts: Of its sources.
        model: What it trains; the steps are taken by a copy of it.
        counts: What the phase computes, on one process.
        seconds: To be spent, about.
    """
    assert model.assemble is not None
    trial, began = _Trial(spec, steps, parts, model), time.monotonic()
    queries = min(16, spec.global_batch_size)
    while True:  # the first step of a size also warms it up
        taken = trial.step(queries).total
        left = seconds - (time.monotonic() - began)
        if queries == spec.global_batch_size or 2 * taken * (ROUNDS + 1) > left:
            break
        queries = min(2 * queries, spec.global_batch_size)
    found: list[float] = []
    while len(found) < ROUNDS or time.monotonic() - began < seconds:
        step = trial.step(queries)
        encoded = token_passes(counts) / steps.steps / token_passes(step.counts) * step.encoding
        scored = counts.products / steps.steps / max(1.0, step.counts.products) * step.scoring
        found.append(steps.steps * (encoded + scored + step.optimiser))
        if len(found) >= 16:
            break
    return Pace(min(found), statistics.median(found), max(found), queries, len(found))


@dataclass(frozen=True)
class _Step:
    counts: Counts
    encoding: float
    scoring: float
    optimiser: float

    @property
    def total(self) -> float:
        return self.encoding + self.scoring + self.optimiser


class _Trial:
    """A phase's own steps, of fewer queries where a whole batch would take too long."""

    def __init__(self, spec: Phase, steps: Steps, parts: Mapping[str, PlannedPart], planned: PlannedModel):
        assert planned.assemble is not None
        self.spec, self.planned, self.ways = spec, planned, steps.ways
        self.model = planned.assemble()
        self.tokenise = planned.tokenise
        objective: Objective = objective_of(spec).to(self.model.device)
        self.objective = objective
        self.trained = nn.ModuleDict({"model": self.model, "objective": objective}).train()
        self.encoder = as_trained(self.model, spec)
        self.optimiser, _ = optimiser_of(self.trained, spec, steps.steps)
        arithmetic = decided(spec.precision, self.model.device)
        if planned.attention is None:
            attend_fast(self.model, arithmetic)
        self.context = autocast_of(arithmetic, self.model.device)
        self.maxsim = machine_of(self.model)["maxsim"]
        drawn = {name: batches for name, batches in steps.order.drawn(steps.steps).items() if batches}
        self.parts = [parts[name] for name in _spread(drawn, 16)]
        self.taken = 0

    def step(self, queries: int) -> _Step:
        """One, timed. On a CPU reading and tokenising take the same cores; beside a GPU they cost no time."""
        spec, began = self.spec, _now(self.model)
        batch = self._batch(queries).to(self.model.device)
        began = _now(self.model) if self.model.device.type == "cuda" else began
        with scoring_with(self.maxsim):
            grad_cache(self.encoder, batch[:2], self.objective.of(*batch), spec.mini_batch_tokens, self.context)
            both = _now(self.model)
            scoring = self._scoring(batch)
        moving = _now(self.model)
        clip_grad_norm_(self.model.parameters(), spec.max_gradient_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        counts = count(spec, batch, Devices(1, self.model.device.type))
        return _Step(counts, both - began - scoring, scoring, _now(self.model) - moving)

    def _batch(self, queries: int) -> Batch:
        part = self.parts[self.taken % len(self.parts)]
        self.taken += 1
        batches: Iterator[Batch] = batches_of(
            self.spec, part, queries, queries, self.tokenise, self.planned.alignment, self.ways
        )
        batch = filled(next(batches), queries)
        scores = torch.rand(len(batch.queries), self.ways) if self.spec.distils else None
        return Batch(batch.queries, batch.documents, scores)

    def _scoring(self, batch: Batch) -> float:
        """Seconds of the loss and its gradient alone."""
        sides = [self._random(side) for side in batch[:2]]
        began = _now(self.model)
        self.objective.of(*batch)(*sides).backward()
        return _now(self.model) - began

    def _random(self, side: TokenisedTexts) -> Packed:
        """Unit vectors in the place of a side's."""
        one = self.spec.representation != "multi-vector"
        lengths = torch.ones(len(side), dtype=torch.int64) if one else side.used.sum(1).cpu()
        values = torch.randn(int(lengths.sum()), self.planned.size.dim, device=self.model.device)
        return Packed(nn.functional.normalize(values, dim=1).requires_grad_(), lengths)


def token_passes(counts: Counts) -> float:
    """Tokens, as often as they are passed: a forward, a backward that takes twice that, GradCache's second forward."""
    return 3 * (counts.tokens + counts.padding) + counts.repeated


def _spread(drawn: Mapping[str, int], places: int) -> list[str]:
    """Parts in proportion to their batches, each place one."""
    total, names, ends, end = sum(drawn.values()), list(drawn), list[float](), 0
    for batches in drawn.values():
        end += batches
        ends.append(end / total)
    return [
        next(name for name, e in zip(names, ends, strict=True) if (place + 0.5) / places <= e)
        for place in range(places)
    ]


def _now(model: Trainable) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
