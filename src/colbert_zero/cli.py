"""The commands. Each body only parses, calls and prints."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from colbert_zero import recipe as recipes
from colbert_zero.errors import ColbertZeroError, ProcessLost, Stopped
from colbert_zero.terminal import RichShow, best_overrides, console, print_plan, print_results, sweep_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train multi-vector (ColBERT) retrievers from zero, and learn whether pre-training was worth its cost.\n\n"
    "Start with:  [bold]colbert-zero run quickstart[/bold]",
)
recipes_app = typer.Typer(
    invoke_without_command=True, help="The shipped recipes, one line each; `recipes show NAME` prints one."
)
app.add_typer(recipes_app, name="recipes")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set phases.unsupervised.learning_rate=1e-3"),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; out/NAME by default.")]


def _study_in(recipe: recipes.Recipe, out: Path | None) -> Any:
    """The study in its folder."""
    from colbert_zero.study import Study

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colbert-zero" / "docstrings"
    return Study(recipe, out or Path("out") / recipe.name, RichShow(), cache)


@contextmanager
def _study(recipe: recipes.Recipe, out: Path | None) -> Iterator[Any]:
    """The study in its folder, which is this run's alone meanwhile; started by a launcher, together with the others."""
    from colbert_zero.records import writing

    processes = _start_processes()
    study = _study_in(recipe, out)
    with writing(study.folder) if processes.is_main() else nullcontext():
        yield study
    processes.leave()


def _start_processes() -> Any:
    """Join the other processes, if a launcher started some; only the main one prints."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero import processes

    # Our bars tell what takes time; reading and writing weights does not.
    disable_progress_bar()
    processes.stop_on_sigterm()
    processes.start()
    console.quiet = not processes.is_main()
    gpus = torch.cuda.device_count()
    if gpus > 1 and processes.world_size() == 1:
        hint = f"One of {gpus} GPUs is used; for all: torchrun --nproc-per-node {gpus} -m colbert_zero"
        console.print(" ".join([hint, *sys.argv[1:]]), markup=False, soft_wrap=True)
    return processes


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    overrides: SetOption = None,
    only: Annotated[
        str | None, typer.Option(metavar="PIPELINES", help="Only these pipelines: --only kd-only,full")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")] = False,
) -> None:
    """Train and evaluate a recipe's pipelines, and write the report.

    What is done already is not done again; a killed run goes on where it was.

    Examples:

      colbert-zero run quickstart
      colbert-zero run my.yaml --out results --only kd-only,full
      colbert-zero run my.yaml --set phases.unsupervised.learning_rate=1e-3 --dry-run
    """
    checked = recipes.load_recipe(recipe, overrides or [])
    # Slow to import, so after the recipe's mistakes are told.
    from colbert_zero.report import write_report
    from colbert_zero.results import run_study
    from colbert_zero.study import chains_of, graph

    chosen = [name.strip() for name in only.split(",") if name.strip()] if only else None
    nodes = graph(checked, chains_of(checked, chosen))
    with _study(checked, out) as study:
        study.prepare(nodes)
        print_plan(study, nodes)
        if dry_run:
            return
        results = run_study(study, chosen, " ".join(["colbert-zero", *sys.argv[1:]]))
        print_results(results)
        if not console.quiet:
            console.print(f"\nReport: {write_report(study.folder)}", markup=False, soft_wrap=True)


@app.command()
def train(
    recipe: RecipeArgument,
    phase: Annotated[
        str, typer.Option(metavar="NAME", help="The phase, or PIPELINE@PHASE where several pipelines have it.")
    ],
    out: OutOption = None,
    overrides: SetOption = None,
) -> None:
    """Train one phase, and the ones it needs.

    Examples:

      colbert-zero train quickstart --phase unsupervised
      colbert-zero train quickstart --phase full@distillation
    """
    checked = recipes.load_recipe(recipe, overrides or [])
    from colbert_zero.study import chain_to, graph

    chain = chain_to(checked, phase)
    nodes = graph(checked, {phase: chain})
    with _study(checked, out) as study:
        study.prepare(nodes)
        print_plan(study, nodes)
        study.train(chain)
        console.print(f"Checkpoint: {study.phase_folder(chain) / 'model'}", markup=False, soft_wrap=True)


@app.command()
def sweep(
    recipe: RecipeArgument,
    grid: Annotated[list[str], typer.Option(metavar="KEY=V1,V2,…", help="A key and its values; several make a grid.")],
    phase: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to train, as for `train`; else the phase the keys name.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train it for so many steps, not the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; out/NAME-sweep by default.")] = None,
    overrides: SetOption = None,
) -> None:
    """Train one phase at every point of a grid, and compare nDCG@10 on small collections.

    Finished points are never repeated, whatever grid they were part of.

    Examples:

      colbert-zero sweep quickstart --grid phases.unsupervised.learning_rate=1e-3,2e-3,4e-3 --steps 30
      colbert-zero sweep my.yaml --grid phases.kd.learning_rate=1e-6,1e-5 --grid phases.kd.temperature=0.5,1
      colbert-zero sweep my.yaml --grid model.dim=48,96,128 --phase full@unsupervised
    """
    from colbert_zero.sweep import plan_sweep, run_sweep

    planned = plan_sweep(recipe, grid, phase, steps, overrides or [])
    folder = out or Path("out") / f"{planned.recipe.name}-sweep"
    with _study(planned.recipe, folder) as study:
        record = run_sweep(planned, study, " ".join(["colbert-zero", *sys.argv[1:]]))
    console.print()
    console.print(sweep_table(record))
    if record["best"]:
        console.print(f"\nBest: {best_overrides(record)}\nPlot: {folder / 'sweep.png'}", markup=False, soft_wrap=True)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint: folder or Hub id, dense or multi-vector; or `bm25`.")
    ],
    collection: Annotated[
        str,
        typer.Option(metavar="PATH|NAME", help="A folder in BEIR layout, or a Hub data set such as a NanoBEIR one."),
    ],
    split: Annotated[str | None, typer.Option(help="Which qrels; test for folders, train for the Hub.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores, also of each query.")
    ] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="FILE", help="Write the ranking in TREC format.")
    ] = None,
) -> None:
    """Rank a collection exactly with any dense or multi-vector checkpoint, and score it.

    Examples:

      colbert-zero evaluate out/quickstart/phases/distillation-0123456789ab/model --collection data/scifact
      colbert-zero evaluate lightonai/GTE-ModernColBERT-v1 --collection zeta-alpha-ai/NanoSciFact --json scores.json
      colbert-zero evaluate bm25 --collection data/scifact
    """
    from colbert_zero.collection import load_beir, load_hub
    from colbert_zero.evaluation import measure, rank, rank_bm25, write_run
    from colbert_zero.model import load_model
    from colbert_zero.records import write_json

    processes = _start_processes()
    folder = Path(collection).expanduser()
    loaded = load_beir(folder, split or "test") if folder.is_dir() else load_hub(collection, split or "train")
    if model == "bm25":
        ranking = rank_bm25(loaded)
    else:
        with RichShow().bar(f"evaluating on {loaded.name}", loaded.documents_count) as advance:
            ranking = rank(load_model(model), loaded, progress=lambda done, total: advance(done, {}))
    scores, per_query = measure(ranking, loaded.qrels)
    counts = {"collection": loaded.name, "documents": loaded.documents_count, "queries": len(loaded.qrels)}
    console.print(f"{loaded.name}: {loaded.documents_count:,} documents, {len(loaded.qrels):,} queries", markup=False)
    for name, value in scores.items():
        console.print(f"  {name:8} {value:.4f}", markup=False)
    if run_file and processes.is_main():
        write_run(run_file, ranking, Path(model).name or "run")
    if json_file and processes.is_main():
        write_json(json_file, {**counts, "scores": scores, "per_query": per_query})
    processes.leave()


@app.command()
def data(
    recipe: RecipeArgument,
    phase: Annotated[str, typer.Option(metavar="NAME", help="The phase, also as PIPELINE@PHASE.")],
    step: Annotated[int, typer.Option(metavar="N", help="The optimiser step, from 1, as in the phase's record.")],
    out: OutOption = None,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every row as one JSON object.")] = False,
) -> None:
    """Show which rows a step of a phase sees: source and part, row numbers, texts.

    Needs no training and no checkpoint, since the order of the data is a function of the recipe; also works while the
    phase is being trained.

    Examples:

      colbert-zero data quickstart --phase unsupervised --step 12
      colbert-zero data quickstart --phase full@distillation --step 3 --json | jq .rows
    """
    checked = recipes.load_recipe(recipe, overrides or [])
    from colbert_zero.inspection import describe, step_rows

    with redirect_stdout(sys.stderr):  # progress; standard output is for the rows
        seen = step_rows(_study_in(checked, out), phase, step)
    sys.stdout.write((json.dumps(seen, ensure_ascii=False) if as_json else describe(seen)) + "\n")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.")]) -> None:
    """Write the report again, from the records alone.

    Example:

      colbert-zero report out/quickstart
    """
    from colbert_zero.report import write_report

    console.print(f"Report: {write_report(folder)}", markup=False, soft_wrap=True)


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """The shipped recipes, one line each."""
    if context.invoked_subcommand is None:
        for path in sorted(recipes.RECIPES.glob("*.yaml")):
            console.print(f"{path.stem:14} {recipes.load_recipe(path).description}", markup=False, soft_wrap=True)


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a shipped recipe, to start one's own from: colbert-zero recipes show quickstart > my.yaml"""
    path = recipes.RECIPES / f"{name}.yaml"
    if name not in {p.stem for p in recipes.RECIPES.glob("*.yaml")}:
        names = ", ".join(sorted(p.stem for p in recipes.RECIPES.glob("*.yaml")))
        raise ColbertZeroError(f"no shipped recipe {name!r} (there are: {names})")
    sys.stdout.write(path.read_text(encoding="utf-8"))


@app.command()
def schema() -> None:
    """The recipe's JSON schema, for editors that complete and check YAML."""
    sys.stdout.write(json.dumps(recipes.Recipe.model_json_schema(), indent=1) + "\n")


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2, an interruption exit code 130."""
    # Threads that wait by spinning slow each other down by an order of magnitude once another process wants a core;
    # threads that never spin are a quarter slower alone. Read when torch is imported, which the commands do.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        try:
            app()
        except RuntimeError as error:
            # An exchange with another process fails in many ways when that process has gone.
            raise _processes().cause_of(error) if _processes() else error  # noqa: B904 - it may be the error itself
    except Stopped as stop:
        console.print(f"colbert-zero: {stop}", markup=False, soft_wrap=True)
        if processes := _processes():
            processes.leave(stopped=True)
    except ColbertZeroError as error:
        _end(str(error), 2)
    except ProcessLost as error:
        _end(str(error), 1)
    except OSError as error:
        # A full disk or a missing right is no mistake of the recipe; nothing half-written was kept.
        _end(f"{error}. What is finished is kept; the same command goes on", 1)
    except KeyboardInterrupt:
        _end("stopped. The same command goes on where this one was", 130)


def _processes() -> Any:
    """The module of that name, once a command has needed it: importing it takes seconds."""
    return sys.modules.get("colbert_zero.processes")


def _end(message: str, code: int) -> None:
    """Print why this process ends, once for all of them if they end for the same reason, and exit."""
    processes, rank = _processes(), os.environ.get("RANK", "0")
    if processes.fail(message) if processes else rank == "0":
        who = f"process {rank}: " if rank != "0" else ""
        Console(stderr=True, highlight=False).print(f"colbert-zero: {who}{message}", markup=False, soft_wrap=True)
    if processes and processes.world_size() > 1:
        # Leaving the interpreter would wait for exchanges that nobody answers.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
