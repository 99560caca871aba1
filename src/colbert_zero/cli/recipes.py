"""`recipes`, `recipes show`, `schema`: the shipped recipes, and what a recipe may say."""

import json
from typing import Annotated

import typer

from colbert_zero.errors import ColbertZeroError
from colbert_zero.recipe.reading import device_hours, load_recipe, shipped_recipes
from colbert_zero.recipe.schema import Recipe
from colbert_zero.terminal import console, put, say

recipes_app = typer.Typer(
    invoke_without_command=True, help="The shipped recipes, one line each; `recipes show NAME` prints one."
)


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """The shipped recipes, one line each."""
    if context.invoked_subcommand is None:
        shipped, hours = shipped_recipes(), device_hours()
        width = max(map(len, shipped))
        console.print(f"{'':{width}}  {'H100-hours':>10}", style="bold")
        for name, path in shipped.items():
            span = "–" if (known := hours.get(name)) is None else f"{known[0]} to {known[1]}"
            say(f"{name:{width}}  {span:>10}  {load_recipe(path).description}")
        say(
            "\nH100-hours: as `plan` reckons them where no text is at hand, each the longest allowed; –: of your own "
            "data, or nothing is published. `plan NAME` says more."
        )


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a shipped recipe, to start one's own from: colbert-zero recipes show quickstart > my.yaml"""
    shipped = shipped_recipes()
    if name not in shipped:
        raise ColbertZeroError(f"no shipped recipe {name!r} (there are: {', '.join(shipped)})")
    put(shipped[name].read_text(encoding="utf-8"))


def schema() -> None:
    """The recipe's JSON schema, for editors that complete and check YAML."""
    made = Recipe.model_json_schema()
    extends = "A recipe, by file or name, whose keys hold where this one says nothing; null takes a key away."
    made["properties"]["extends"] = {"type": "string", "title": "Extends", "description": extends}
    made["anyOf"] = [{"required": ["extends"]}, {"required": made.pop("required")}]
    put(json.dumps(made, indent=1) + "\n")
