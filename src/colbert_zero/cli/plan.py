"""`plan`: what a study will take, before it takes it."""

import json
import os
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from colbert_zero.cli.options import OutOption, RecipeArgument, SetOption, is_first, start_processes, study_in
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.terminal import RichShow, console, put, say


def plan(
    recipe: RecipeArgument,
    devices: Annotated[
        str | None,
        typer.Option(metavar="NxNAME", help="Reckon for others: 8xH100; or processes of this machine: 2xhere."),
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure a minute of steps on this machine.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Of --calibrate, about.")] = 60,
    price: Annotated[float | None, typer.Option(min=0, help="Of a device-hour, in your currency.")] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="HOURS", help="Which pipeline is best within so many device-hours: 40gpuh, 40."),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="PIPELINES", help="Only these: --only kd-only,full")] = None,
    out: OutOption = None,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
) -> None:
    """Say what a study will take, before anything is spent: texts, tokens, operations, memory, disk, hours, money.

    Sources that are not prepared are sampled; what cannot be read counts by what is published of it, and is told. The
    plan is kept in the study's folder, and its report shows it beside what was done.

    Examples:

      colbert-zero plan quickstart --calibrate
      colbert-zero plan paper/full --devices 8xH100 --price 2.50
      colbert-zero plan paper/equal --devices 4xH100 --budget 40gpuh
      colbert-zero plan my.yaml --set phases.unsupervised.epochs=2 --json
    """
    checked = load_recipe(recipe, overrides or [])
    hours = _hours(budget) if budget else None
    if not is_first():
        return
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ColbertZeroError(
            f"plan is one process's work; leave the launcher out, --devices {processes}xhere plans for all"
        )
    start_processes()
    if calibrate and devices:
        raise ColbertZeroError(f"--calibrate measures one process here, --devices {devices} reckons; leave one out")
    if hours is not None and not (calibrate or devices):
        raise ColbertZeroError("--budget: needs hours; add --calibrate, or --devices 8xH100")
    from colbert_zero.planning import words
    from colbert_zero.planning.asked import Asked
    from colbert_zero.planning.plan import machine_named, this_machine
    from colbert_zero.study.graph import chains_of, graph

    chosen = [name.strip() for name in only.split(",") if name.strip()] if only else None
    pipelines = chains_of(checked, chosen)
    nodes = graph(checked, pipelines)
    machine = machine_named(devices) if devices else this_machine()
    show = RichShow()
    if as_json:
        show.say = lambda text: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        study = study_in(checked, out)
        study.show = show
        asked = Asked(study, nodes, machine, Path(folder))
        phases = asked.phases(seconds if calibrate else None)
    kept = asked.keep(phases)
    groups = asked.device_hours(pipelines, phases)
    of_pipelines = {name: groups[name] for name in pipelines if name in groups}
    evidence = asked.own_scores() or words.published_scores(checked.name)
    fits = words.within(hours, of_pipelines, evidence) if hours is not None else []
    if as_json:
        whole = {"devices": machine.words, "phases": [_json(phase) for phase in phases], "device_hours": groups}
        money = {name: [price * value for value in span] for name, span in groups.items()} if price else None
        put(
            json.dumps({**whole, "money": money, "budget": fits, "told": asked.told, "kept": kept and str(kept)}) + "\n"
        )
        return
    say(f"\n{checked.name} on {machine.words}", style="bold")
    for table in (
        words.phases_table(phases, machine, console.width),
        words.sums_table(checked, pipelines, phases, machine.on.count, price),
    ):
        console.print(table)
        console.print()
    lines = [*asked.told, *words.notes(phases, machine), *words.diagnostics(checked, phases)]
    lines.append(words.disk_words(phases, asked.disk))
    # What was published is of the recipe as it is shipped.
    shipped = not overrides and checked.name.startswith("paper-")
    lines += [*(words.beside_published(checked.name, groups, machine) if shipped else []), *fits]
    if kept:
        lines.append(f"Kept in {kept}; the report of a run there shows it beside what was done")
    for line in lines:
        say(line)


def _hours(budget: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gpuh|gpu-h|gpu-hours|device-hours|h)?", budget.strip().lower())
    if not found or not float(found[1]):
        raise ColbertZeroError(f"--budget {budget}: write device-hours, as 40gpuh or 40")
    return float(found[1])


def _json(phase: Any) -> dict[str, Any]:
    memory, pace = (value and asdict(value) for value in (phase.memory, phase.pace))
    return {
        "chain": phase.chain,
        **phase.record(),
        "memory": memory,
        "hours": phase.hours,
        "pace": pace,
        "done": phase.done,
    }
