"""`run`, `train`, `sweep`, `report`: a study, or a part of one."""

from pathlib import Path
from typing import Annotated

import typer

from colbert_zero.cli.options import (
    OutOption,
    RecipeArgument,
    RefreshOption,
    SetOption,
    command_line,
    held_study,
    is_first,
)
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.terminal import best_overrides, console, print_plan, print_results, say, sweep_table


def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    only: Annotated[
        str | None, typer.Option(metavar="PIPELINES", help="Only these pipelines: --only kd-only,full")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")] = False,
    refresh_base: RefreshOption = False,
) -> None:
    """Train and evaluate a recipe's pipelines, and write the report.

    What is done already is not done again; a killed run goes on where it was.

    Examples:

      colbert-zero run quickstart
      colbert-zero run my.yaml --out results --only kd-only,full
      colbert-zero run my.yaml --set phases.unsupervised.learning_rate=1e-3 --dry-run
    """
    checked = load_recipe(recipe, overrides or [])
    # Slow to import, so after the recipe's mistakes are told.
    from colbert_zero.report import write_report
    from colbert_zero.study.comparison import run_study
    from colbert_zero.study.graph import chains_of, graph
    from colbert_zero.study.steps import outline

    chosen = [name.strip() for name in only.split(",") if name.strip()] if only else None
    nodes = graph(checked, chains_of(checked, chosen))
    with held_study(checked, out, refresh_base) as study:
        study.prepare(nodes)
        print_plan(study, outline(study, nodes))
        if dry_run:
            return
        results = run_study(study, chosen, command_line())
        print_results(results)
        if not console.quiet:
            say(f"\nReport: {write_report(study.folder)}")


def train(
    recipe: RecipeArgument,
    phase: Annotated[
        str, typer.Option(metavar="NAME", help="The phase, or PIPELINE@PHASE where several pipelines have it.")
    ],
    out: OutOption = None,
    overrides: SetOption = None,
    refresh_base: RefreshOption = False,
) -> None:
    """Train one phase, and the ones it needs.

    Examples:

      colbert-zero train quickstart --phase unsupervised
      colbert-zero train quickstart --phase full@distillation
    """
    checked = load_recipe(recipe, overrides or [])
    from colbert_zero.study.graph import chain_to, graph
    from colbert_zero.study.steps import outline

    chain = chain_to(checked, phase)
    nodes = graph(checked, {phase: chain})
    with held_study(checked, out, refresh_base) as study:
        study.prepare(nodes)
        print_plan(study, outline(study, nodes))
        study.train(chain)
        say(f"Checkpoint: {study.phase_folder(chain) / 'model'}")


def sweep(
    recipe: RecipeArgument,
    grid: Annotated[list[str], typer.Option(metavar="KEY=V1,V2,…", help="A key and its values; several make a grid.")],
    phase: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to train, as for `train`; else the phase the keys name.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train it for so many steps, not the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; out/NAME-sweep by default.")] = None,
    overrides: SetOption = None,
    refresh_base: RefreshOption = False,
) -> None:
    """Train one phase at every point of a grid, and compare nDCG@10 on small collections.

    Finished points are never repeated, whatever grid they were part of.

    Examples:

      colbert-zero sweep quickstart --grid phases.unsupervised.learning_rate=1e-3,2e-3,4e-3 --steps 30
      colbert-zero sweep my.yaml --grid phases.kd.learning_rate=1e-6,1e-5 --grid phases.kd.temperature=0.5,1
      colbert-zero sweep my.yaml --grid model.dim=48,96,128 --phase full@unsupervised
    """
    from colbert_zero.study.sweep import plan_sweep, run_sweep

    planned = plan_sweep(recipe, grid, phase, steps, overrides or [])
    folder = out or Path("out") / f"{planned.recipe.name}-sweep"
    with held_study(planned.recipe, folder, refresh_base) as study:
        record = run_sweep(planned, study, command_line())
    console.print()
    console.print(sweep_table(record))
    if record["best"]:
        say(f"\nBest: {best_overrides(record)}\nPlot: {folder / 'sweep.png'}")


def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.")]) -> None:
    """Write the report and the models' cards again, from the records alone.

    Example:

      colbert-zero report out/quickstart
    """
    from colbert_zero.report import write_report
    from colbert_zero.report.card import write_cards

    if not is_first():
        return
    for told in write_cards(folder):
        say(told)
    say(f"Report: {write_report(folder)}")
