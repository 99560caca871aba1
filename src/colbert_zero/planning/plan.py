"""The plan of a study: each phase's steps, texts, tokens, operations, memory, bytes and hours, known before it trains.

It is kept in plan.json, so that a study's report can show what was planned beside what was done.
"""

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import get_device_name

from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.files import read_json, write_json
from colbert_zero.planning.calibration import Pace, measure
from colbert_zero.planning.data import Data, PlannedPart
from colbert_zero.planning.model import ModelOf, PlannedModel
from colbert_zero.planning.operations import Memory, Operations, hours_on, memory_of, operations_of
from colbert_zero.planning.published import device_named
from colbert_zero.planning.work import Counts, Devices, count_phase
from colbert_zero.processes import world_size
from colbert_zero.recipe.schema import Phase, PhaseSpec, Recipe
from colbert_zero.study.graph import graph
from colbert_zero.study.steps import Steps, steps_for
from colbert_zero.study.study import Study
from colbert_zero.training.record import Flops

PLAN = "plan.json"


@dataclass(frozen=True)
class Machine:
    """What a study is planned for.

    Attributes:
        on: Devices.
        device: Of the table (`published.device_named`); None is this machine.
        memory: Bytes of one device, if known.
    """

    on: Devices
    device: dict[str, Any] | None = None
    memory: float | None = None

    @property
    def words(self) -> str:
        """`8 x H100`, `this machine`."""
        if self.device:
            return f"{self.on.count} x {self.device['name']}"
        return "this machine" + (f", {self.on.count} processes" if self.on.count > 1 else "")


def this_machine(processes: int | None = None) -> Machine:
    """What a run started here would train on."""
    kind = "cuda" if get_device_name().startswith("cuda") else "cpu"
    memory = (
        torch.cuda.get_device_properties(0).total_memory if kind == "cuda" else _ram() / (processes or world_size())
    )
    return Machine(Devices(processes or world_size(), kind), None, memory)


def machine_named(text: str) -> Machine:
    """Devices as asked for: `8xH100`, `H100`, `2xhere`.

    Raises:
        ColbertZeroError: It is none of these.
    """
    count, _, name = text.rpartition("x") if text.partition("x")[0].isdecimal() else ("1", "", text)
    if not count.isdecimal() or not int(count):
        raise ColbertZeroError(f"--devices {text}: write how many and which, as 8xH100")
    if name == "here":
        return this_machine(int(count))
    device = device_named(name)
    return Machine(Devices(int(count), "cuda"), device, device["memory"] * 2**30)


@dataclass(frozen=True)
class PlannedPhase:
    """A phase to be trained, or trained already.

    Attributes:
        chain: The phases before it, and itself.
        spec: Its recipe entry.
        steps: Optimiser steps; 0 of one that is not trained.
        counts: What it encodes and scores; of a finished phase texts and tokens alone, nothing of one that is not
            trained.
        operations: Floating-point operations.
        memory: Of one device; None of a finished phase.
        model_bytes: Of its checkpoint, of one that is not trained at most; None where nothing says.
        hours: Least and most, wall-clock; None where neither a device of the table nor a measurement says.
        pace: What was measured of it here.
        counted: Whether all of its batches were counted, `whole`, some of them, `sampled`, or none, `longest`: each
            text counts as the longest allowed.
        done: Whether it is finished.
    """

    chain: tuple[str, ...]
    spec: PhaseSpec
    steps: int
    counts: Counts
    operations: Operations
    memory: Memory | None = None
    model_bytes: int | None = None
    hours: tuple[float, float] | None = None
    pace: Pace | None = None
    counted: str = "whole"
    done: bool = False

    @property
    def trains(self) -> bool:
        """Whether it has steps to plan: not of what is cut, merged or adapted, which takes seconds."""
        return isinstance(self.spec, Phase)

    @property
    def tokens(self) -> int:
        """Real ones."""
        return round(self.counts.tokens)

    def at(self, pace: Pace) -> "PlannedPhase":
        """The same at a pace that was measured here."""
        return replace(self, pace=pace, hours=(pace.least / 3600, pace.most / 3600))

    def record(self) -> dict[str, Any]:
        """In the words of phase.json."""
        return {
            "steps": self.steps,
            "texts": round(self.counts.texts),
            "tokens": self.tokens,
            "padding_tokens": round(self.counts.padding),
            "second_pass_tokens": round(self.counts.repeated),
            "flops": self.operations.recorded,
            "operations": {**asdict(self.operations), "encoding": self.operations.encoding._asdict()},
            "model_bytes": self.model_bytes,
            "counted": self.counted,
        }


Say = Callable[[str], None]


def plan_phases(
    recipe: Recipe,
    chains: Iterable[tuple[str, ...]],
    data: Data,
    models: ModelOf,
    machine: Machine,
    done: Iterable[PlannedPhase] = (),
) -> list[PlannedPhase]:
    """Every chain's last phase, from what is known of its data and its model.

    Args:
        recipe: The study's.
        chains: Of phases.
        data: What they read.
        models: What they train.
        machine: On what.
        done: Those that are finished.
    """
    finished = {planned.chain: planned for planned in done}
    # What a phase computes does not depend on what came before it.
    known: dict[str, PlannedPhase] = {}
    planned = []
    for chain in chains:
        if chain not in finished and chain[-1] not in known:
            known[chain[-1]] = _planned(recipe, chain, data, models, machine)
        planned.append(finished.get(chain) or replace(known[chain[-1]], chain=chain))
    return planned


def calibrate(
    recipe: Recipe, phases: list[PlannedPhase], data: Data, models: ModelOf, seconds: float, say: Say
) -> list[PlannedPhase]:
    """The same phases with the hours that steps of theirs, taken now, give on this machine.

    Args:
        recipe: The study's.
        phases: Planned for one process of this machine.
        data: What they read.
        models: What they train.
        seconds: To be spent, about.
        say: Told what is measured.
    """
    open_ = {phase.chain[-1]: phase for phase in phases if phase.trains and not phase.done}
    paces: dict[str, Pace] = {}
    for name, phase in open_.items():
        steps, parts, model = _reads(recipe, name, data, models)
        paces[name] = pace = measure(recipe.trained[name], steps, parts, model, phase.counts, seconds / len(open_))
        say(f"{name}: {pace.rounds} steps of {pace.queries:,} queries measured")
    return [phase if phase.done or not phase.trains else phase.at(paces[phase.chain[-1]]) for phase in phases]


def _reads(
    recipe: Recipe, name: str, data: Data, models: ModelOf
) -> tuple[Steps, dict[str, PlannedPart], PlannedModel]:
    """A phase's length, the parts of its sources, its model."""
    parts = {part: seen for source in recipe.phases[name].sources for part, seen in data.look(source).items()}
    return steps_for(recipe, name, data.parts), parts, models(name)


def _planned(recipe: Recipe, chain: tuple[str, ...], data: Data, models: ModelOf, machine: Machine) -> PlannedPhase:
    name, spec, on = chain[-1], recipe.phases[chain[-1]], machine.on
    if not isinstance(spec, Phase):
        before = next((p for p in reversed(chain) if p in recipe.trained), None)
        most = models(before).size.model_bytes if before else None
        return PlannedPhase(chain, spec, 0, Counts(), Operations(Flops(0, 0, 0, 0), 0.0, 0.0), model_bytes=most)
    if spec.global_batch_size % on.count:
        raise ColbertZeroError(
            f"phases.{name}.global_batch_size: {spec.global_batch_size} queries cannot be shared out evenly among "
            f"{on.count} devices"
        )
    steps, parts, model = _reads(recipe, name, data, models)
    counts, whole = count_phase(spec, steps, parts, model.tokenise, model.alignment, on)
    operations = operations_of(spec, counts, model.size)
    unseen = model.tokenise is None or any(part.seen is None for part in parts.values())
    return PlannedPhase(
        chain,
        spec,
        steps.steps,
        counts,
        operations,
        memory_of(spec, counts, steps.steps, model.size, on, machine.memory),
        model.size.model_bytes,
        hours_on(machine.device, spec, operations, on.count) if machine.device else None,
        # Of several devices one's share was counted.
        counted="longest" if unseen else "whole" if whole and on.count == 1 else "sampled",
    )


def done_phases(study: Study, chains: Iterable[tuple[str, ...]]) -> list[PlannedPhase]:
    """Those of a study that are finished, from their records."""
    if not (study.folder / "phases").is_dir():
        return []
    return [_done(study, chain) for chain in chains if _has_id(study, chain) and study.is_done(chain)]


def _has_id(study: Study, chain: tuple[str, ...]) -> bool:
    """Whether a phase's id is known before collections are loaded, which `select: best` makes part of it."""
    needed = {name for node in graph(study.recipe, {"": chain}) for name in node}  # its teachers' phases too
    return bool(study.collections) or all(study.recipe.phases[name].select == "last" for name in needed)


def _done(study: Study, chain: tuple[str, ...]) -> PlannedPhase:
    record = read_json(study.phase_folder(chain) / "phase.json")
    flops = [record.get(f"{part}_flops", 0.0) for part in ("padding", "second_pass", "recomputed")]
    encoding = Flops(record["flops"] - sum(flops), *flops)
    names = ("texts", "tokens", "padding_tokens", "second_pass_tokens")
    counts = Counts(*(float(record.get(name, 0)) for name in names))
    return PlannedPhase(
        chain, study.recipe.phases[chain[-1]], record.get("steps", 0), counts, Operations(encoding, 0.0, 0.0),
        model_bytes=record.get("model_bytes"), done=True,
    )  # fmt: skip


# ---- Kept, for the report


def keep_plan(study: Study, phases: Iterable[PlannedPhase], machine: Machine) -> Path | None:
    """Keep what is planned of phases that have not begun, by their ids.

    What was measured of one stays until it is measured anew.

    Returns:
        The file; None where there is nothing to keep.
    """
    found: dict[str, Any] = {}
    before = planned_of(study.folder)
    for phase in phases:
        if phase.done or not phase.trains or not _has_id(study, phase.chain):
            continue
        folder = study.phase_folder(phase.chain)
        if folder.with_name(folder.name + ".unfinished").exists():
            continue
        identity = study.phase_id(phase.chain)
        measured = phase.pace is None and before.get(identity, {}).get("seconds")
        found[identity] = before[identity] if measured else _record(phase, machine)
    if not found:
        return None
    write_json(study.folder / PLAN, {"schema": 1, "phases": before | found})
    return study.folder / PLAN


def planned_of(folder: Path) -> dict[str, Any]:
    """What plan.json has of each phase, by its id."""
    file = folder / PLAN
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = read_json(file)["phases"]
    except (ValueError, TypeError, KeyError) as error:
        raise ColbertZeroError(f"{file}: damaged ({reason(error)}); delete it") from None
    return found


def _record(phase: PlannedPhase, machine: Machine) -> dict[str, Any]:
    return {
        **phase.record(),
        "devices": machine.words,
        "processes": machine.on.count,
        "host": None if machine.device else socket.gethostname(),
        "seconds": [phase.pace.least, phase.pace.median, phase.pace.most] if phase.pace else None,
    }


def _ram() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
