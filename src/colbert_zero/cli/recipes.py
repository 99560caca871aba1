"""`recipes`, `recipes show`, `schema`: the shipped recipes, and what a recipe may say."""

import json
from typing import Annotated

import typer

from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import RECIPES, load_recipe
from colbert_zero.recipe.schema import Recipe
from colbert_zero.terminal import console, put

recipes_app = typer.Typer(
    invoke_without_command=True, help="The shipped recipes, one line each; `recipes show NAME` prints one."
)


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """The shipped recipes, one line each."""
    if context.invoked_subcommand is None:
        for path in sorted(RECIPES.glob("*.yaml")):
            console.print(f"{path.stem:14} {load_recipe(path).description}", markup=False, soft_wrap=True)


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a shipped recipe, to start one's own from: colbert-zero recipes show quickstart > my.yaml"""
    path = RECIPES / f"{name}.yaml"
    if name not in {p.stem for p in RECIPES.glob("*.yaml")}:
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ColbertZeroError(f"no shipped recipe {name!r} (there are: {names})")
    put(path.read_text(encoding="utf-8"))


def schema() -> None:
    """The recipe's JSON schema, for editors that complete and check YAML."""
    put(json.dumps(Recipe.model_json_schema(), indent=1) + "\n")
