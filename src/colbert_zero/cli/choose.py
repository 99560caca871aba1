"""`choose-base`: which of several models to start from."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from colbert_zero.cli.leaks import SOURCE
from colbert_zero.cli.options import SetOption, refuse_unwritable, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.recipe.schema import Recipe
from colbert_zero.terminal import RichShow, choice_lines, choice_tables, console, say

if TYPE_CHECKING:
    from colbert_zero.data.given import Given


def choose_base(
    candidates: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL,…",
            help="Folders or Hub ids of encoders, dense or multi-vector checkpoints; at least two. Several times, or "
            "with commas.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A YAML file, or the name of a shipped recipe: its sources, prompts and lengths."
        ),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of the recipe's sources; all of pairs by default.")
    ] = None,
    pairs: Annotated[list[str] | None, typer.Option(metavar="SOURCE", help=f"In place of a recipe. {SOURCE}")] = None,
    pairs_of: Annotated[int, typer.Option(metavar="N", min=50, help="Pairs of the sample, at most.")] = 500,
    by: Annotated[
        Literal["dense", "multi-vector"] | None,
        typer.Option(
            help="What candidates are ordered by; what the recipe's pipelines begin with by default, else multi-vector."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 1,
    overrides: SetOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores, intervals, costs and hits.")
    ] = None,
) -> None:
    """Order models by what each does on your own pairs before training: recall@1 among a sample's documents.

    A query hits where its own document scores above all others of the sample, half where it ties with the best of
    them. Beside it stand BM25, the model without its layers, and what it takes. The order is a guess at that after
    training: docs/backbone.md says how good a guess it was.

    Examples:

      colbert-zero choose-base my.yaml --candidates intfloat/e5-small-v2,BAAI/bge-small-en-v1.5,my/model
      colbert-zero choose-base --pairs tickets.jsonl.gz --candidates my/model --candidates my/smaller --pairs-of 1000
      colbert-zero choose-base my.yaml --source tickets --by dense --candidates a,b,c --json chosen.json
    """
    from colbert_zero.data.given import find_sources
    from colbert_zero.files import write_json
    from colbert_zero.processes import world_size
    from colbert_zero.study.choosing import (
        checked_sample,
        compare_candidates,
        find_candidates,
        kind_measured,
        pairs_in,
    )

    if (recipe is None) == (not pairs):
        raise ColbertZeroError("choose-base: on which pairs? Name a recipe, or --pairs SOURCE; one of the two")
    if source and recipe is None:
        raise ColbertZeroError("--source: names a recipe's source; without a recipe leave it out")
    if overrides and recipe is None:
        raise ColbertZeroError("--set: overrides a recipe's key; without a recipe leave it out")
    refuse_unwritable(json_file, "--json")
    start_processes()
    if world_size() > 1:
        raise ColbertZeroError("choose-base: takes one process; start it without torchrun")
    show, option = RichShow(), "--pairs" if pairs else "--source"
    checked = load_recipe(recipe, overrides or []) if recipe else None
    given = _of_recipe(checked, str(recipe), source) if checked else find_sources(pairs or [], option, say)
    kind = kind_measured(checked, by, say)
    found = find_candidates(_split(candidates), checked, kind, say)
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        sources = [one.load(Path(folder), show.counted) for one in given]
        rows, whole = pairs_in(sources, option, seed)
        sample = checked_sample(rows, pairs_of, seed, option)
    if not whole:
        say(f"{len(rows):,} rows were drawn from, spread over the sources by their size, and not all")
    record = compare_candidates(found, sample, kind, say, show.counted) | {"seed": seed, "rows": len(rows)}
    for table in choice_tables(record):
        console.print()
        console.print(table)
    console.print()
    for line in choice_lines(record):
        say(line)
    if json_file:
        write_json(json_file, record)


def _split(words: list[str]) -> list[str]:
    """Names between commas; a folder that has one in its name is one."""
    found = [word if Path(word).exists() else word.split(",") for word in words]
    names = [name for some in found for name in ([some] if isinstance(some, str) else some)]
    return [name.strip() for name in names if name.strip()]


def _of_recipe(recipe: Recipe, path: str, names: list[str] | None) -> "list[Given]":
    """The recipe's sources of these names; without, all that are not made of others."""
    from colbert_zero.data.given import source_of

    made = [name for name, spec in recipe.sources.items() if spec.kind in ("mined", "scored")]
    wanted = names or [name for name in recipe.sources if name not in made]
    found = [source_of(recipe, path, name, "--source", say) for name in wanted]
    return list({given.name: given for given in found}.values())
