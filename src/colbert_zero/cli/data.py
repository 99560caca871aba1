"""`data`: what a phase is trained on."""

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from colbert_zero.cli.options import OutOption, RecipeArgument, SetOption, is_first, study_in
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.terminal import put, rows_in_words


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
    if not is_first():
        return
    checked = load_recipe(recipe, overrides or [])
    from colbert_zero.study.inspection import step_rows

    with redirect_stdout(sys.stderr):  # progress; standard output is for the rows
        seen = step_rows(study_in(checked, out), phase, step)
    put((json.dumps(seen, ensure_ascii=False) if as_json else rows_in_words(seen)) + "\n")
