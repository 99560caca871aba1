"""A sweep: one phase trained at every point of a grid, all in one study's folder; what is finished is kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colbert_zero.errors import ColbertZeroError, Diverged, near
from colbert_zero.files import atomic_file, fingerprint, read_json, write_json
from colbert_zero.recipe.reading import load_recipe, read_values
from colbert_zero.recipe.schema import Recipe
from colbert_zero.report.sweep import draw, label, outcome

if TYPE_CHECKING:
    from colbert_zero.study.study import Study


Values = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A grid whose every point is a checked recipe.

    Attributes:
        recipe: Without any point's values.
        phase: NAME or PIPELINE@NAME, which every point trains.
        grid: {key: values}.
        points: Values and recipe of each point, the last key varying fastest.
    """

    recipe: Recipe
    phase: str
    grid: dict[str, list[Any]]
    points: list[tuple[Values, Recipe]]


# ---- What is asked for


def plan_sweep(
    path_or_name: str, grids: Sequence[str], phase: str | None, steps: int | None, overrides: Sequence[str]
) -> Sweep:
    """Read a recipe once for every point.

    Args:
        path_or_name: The recipe.
        grids: `KEY=V1,V2,…` strings.
        phase: What to train; by default the phase that the keys name.
        steps: Its length, in place of the recipe's.
        overrides: `KEY=VALUE` strings for all points.

    Raises:
        ColbertZeroError: Every mistake of any point at once.
    """
    grid = _read_grid(grids)
    recipe = load_recipe(path_or_name, overrides)
    phase = phase or _named_phase(grid)
    name = phase.rpartition("@")[2]
    if name not in recipe.phases:
        raise ColbertZeroError(f"no phase {name!r}{near(name, recipe.phases)}")
    if name not in recipe.trained:
        raise ColbertZeroError(
            f"--phase {phase}: of the kind {recipe.phases[name].kind}, which trains nothing; name a trained "
            "phase after it"
        )
    if recipe.phases[name].reads_pairs:
        raise ColbertZeroError(
            f"--phase {phase}: a cross-encoder, which ranks no collection by itself; compare teachers in a study"
        )
    if steps is not None:
        if clash := [key for key in grid if key in (f"phases.{name}.steps", f"phases.{name}.epochs")]:
            raise ColbertZeroError(f"--steps {steps} and --grid {clash[0]} both set the length; leave one out")
        overrides = [*overrides, f"phases.{name}.steps={steps}", f"phases.{name}.epochs=null"]
        overrides += [f"phases.{name}.horizon=null"]  # which was for its own length
        recipe = load_recipe(path_or_name, overrides)
    points: list[tuple[Values, Recipe]] = []
    mistakes: dict[str, None] = {}
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        # JSON is YAML, so whatever was read is read again as it was.
        options = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
        try:
            points.append((chosen, load_recipe(path_or_name, [*overrides, *options])))
        except ColbertZeroError as error:
            first, *rest = str(error).splitlines()
            mistakes |= dict.fromkeys(line.strip() for line in rest or [first.replace("--set ", "--grid ", 1)])
    _refuse(mistakes)
    return Sweep(recipe, phase, grid, points)


def _read_grid(options: Sequence[str]) -> dict[str, list[Any]]:
    grid: dict[str, list[Any]] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not key or not equals:
            raise ColbertZeroError(
                f"--grid {option}: write KEY=V1,V2,…, as in phases.unsupervised.learning_rate=1e-4,1e-3"
            )
        if key in grid:
            raise ColbertZeroError(f"--grid {key} stands twice; give all its values at once")
        try:
            grid[key] = read_values(text)
        except ColbertZeroError as error:
            raise ColbertZeroError(f"--grid {option}: {error}") from None
    return grid


def _named_phase(grid: dict[str, list[Any]]) -> str:
    named = list(dict.fromkeys(key.split(".")[1] for key in grid if key.startswith("phases.") and key.count(".") > 1))
    if len(named) != 1:
        found = f"the grid's keys name {' and '.join(named)}" if named else "no key of the grid names a phase"
        example = named[-1] if named else "NAME"
        raise ColbertZeroError(f"{found}; say which one to train: --phase {example}")
    return named[0]


def _refuse(mistakes: dict[str, None]) -> None:
    if mistakes:
        count = "one mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ColbertZeroError("\n".join([f"the grid's points: {count}", *(f"  {mistake}" for mistake in mistakes)]))


# ---- Training what is missing


def run_sweep(sweep: Sweep, study: "Study", command: str) -> dict[str, Any]:
    """Train and score every point that is not finished yet; returns sweep.json's content (docs/records.md).

    Args:
        sweep: The grid.
        study: Of the recipe; each point's is in the same folder, so that shared beginnings are trained once.
        command: What the user typed.

    Raises:
        ColbertZeroError: Points cannot be trained or compared; told before anything is trained.
    """
    from colbert_zero.processes import gather_objects, is_main
    from colbert_zero.study.comparison import environment
    from colbert_zero.study.graph import chain_to

    chains = [chain_to(recipe, sweep.phase) for _, recipe in sweep.points]
    studies = _prepare(sweep, chains, study)
    ids = [study.phase_id(chain) for study, chain in zip(studies, chains, strict=True)]
    judged_on = [fingerprint([[c.name, c.fingerprint] for c in study.validation]) for study in studies]
    _check_points(sweep, ids, judged_on)
    show, folder, collections = study.show, study.folder, studies[0].validation
    record: dict[str, Any] = {
        "schema": 1, "name": sweep.recipe.name, "phase": sweep.phase, "chain": list(chains[0]), "grid": sweep.grid,
        "collections": {c.name: {"documents": c.documents_count, "queries": len(c.qrels)} for c in collections},
        "recipe": sweep.recipe.model_dump(), "environment": environment(command), "best": None, "points": [],
    }  # fmt: skip
    earlier = gather_objects(_earlier(folder))[0]  # what the main process sees, for all
    for number, (values, _) in enumerate(sweep.points):
        point = f"point {number + 1} of {len(ids)}: {label(values, sweep.phase)}"
        row = earlier.pop((ids[number], judged_on[number]), None)
        if row is None or not (row["error"] is None or row["diverged"]):
            show.say(point)
            row = {"id": ids[number], "collections": judged_on[number], **_train(studies[number], chains[number])}
        record["points"].append({**row, "values": values})
        show.say(f"{point}: {outcome(row)}")
        scored = [p for p in record["points"] if p["score"] is not None]
        record["best"] = max(scored, key=lambda p: p["score"])["id"] if scored else None
        if is_main():
            write_json(folder / "sweep.json", record | {"earlier": list(earlier.values())})
    if is_main() and (plot := draw(record)):
        with atomic_file(folder / "sweep.png", "wb") as file:
            file.write(plot.png)
    return record


def _prepare(sweep: Sweep, chains: list[tuple[str, ...]], base: "Study") -> list["Study"]:
    """Each point's study with its data; points with the same data share them, and each phase's data must suffice."""
    from colbert_zero.study.graph import graph
    from colbert_zero.study.steps import outline

    graphs = [graph(recipe, {sweep.phase: chain}) for (_, recipe), chain in zip(sweep.points, chains, strict=True)]
    studies = [replace(base, recipe=recipe, sources={}, collections={}, validation=[]) for _, recipe in sweep.points]
    shared: dict[str, Study] = {}
    mistakes: dict[str, None] = {}
    for study, nodes in zip(studies, graphs, strict=True):
        study.find_base()
        try:
            study.check(nodes)
        except ColbertZeroError as error:
            mistakes[str(error)] = None
    _refuse(mistakes)
    for study, nodes in zip(studies, graphs, strict=True):
        recipe = study.recipe
        data = fingerprint(
            recipe.model_dump(include={"seed", "model", "sources", "collections", "validation", "teachers"}),
            [recipe.phases[phase].sources for node in nodes for phase in node],
        )
        if data in shared:
            study.sources, study.collections = dict(shared[data].sources), shared[data].collections
            study.validation = shared[data].validation
        else:
            study.disk = base.disk  # looked at once, not at every point
            study.prepare(nodes)
            base.disk = study.disk
            study.prepare_validation()
            shared[data] = study
        try:
            study.check_data(nodes)
            outline(study, nodes)
        except ColbertZeroError as error:
            mistakes[str(error)] = None
    _refuse(mistakes)
    return studies


def _check_points(sweep: Sweep, ids: list[str], judged_on: list[str]) -> None:
    """Refuse points that are the same training, or that would be scored on different collections."""
    first: dict[str, Values] = {}
    for (values, _), identity in zip(sweep.points, ids, strict=True):
        if identity in first:
            idle = " and ".join(key for key in values if values[key] != first[identity][key]) or "a value given twice"
            raise ColbertZeroError(
                f"--grid: two points are the same training of {sweep.phase}: {idle} changes nothing in it; leave it "
                "out, or train another phase (--phase)"
            )
        first[identity] = values
    if len(set(judged_on)) > 1:
        raise ColbertZeroError(
            "--grid: the points would be scored on different collections, so their scores could not be compared: a "
            f"key of {', '.join(sweep.grid)} decides what is held out or tested on. Leave it out; for another order "
            "of the data, sweep phases.NAME.seed"
        )


def _train(study: "Study", chain: tuple[str, ...]) -> dict[str, Any]:
    """A point's figures, or why there are none."""
    from colbert_zero.evaluation.validation import validate
    from colbert_zero.models.checkpoints import load_model
    from colbert_zero.processes import world_size

    row: dict[str, Any] = dict.fromkeys(("score", "scores", "steps", "device_seconds", "final_loss", "error"))
    row["diverged"] = False
    try:
        phase = study.train(chain)
        row |= {key: phase[key] for key in ("steps", "device_seconds", "final_loss")}
        model = load_model(study.phase_folder(chain) / "model")
        documents = sum(collection.documents_count for collection in study.validation)
        with study.show.bar(f"evaluating {chain[-1]}", documents) as advance:
            scores = validate(model, study.validation, lambda done: advance(done, {}))
    except ColbertZeroError as error:
        if world_size() > 1 and not isinstance(error, Diverged):
            raise  # perhaps in this process only, and the others still wait for it in this point
        return row | {"error": str(error), "diverged": isinstance(error, Diverged)}
    return row | {"score": math.fsum(scores.values()) / len(scores), "scores": scores}


def _earlier(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Points of earlier sweeps in this folder, by what was trained and what it was scored on."""
    path = folder / "sweep.json"
    record = read_json(path) if path.is_file() else {"points": [], "earlier": []}
    return {(row["id"], row["collections"]): row for row in record["earlier"] + record["points"]}
