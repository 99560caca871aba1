"""`publish`: a model made ready for others."""

from typing import Annotated

import typer

from colbert_zero.cli.options import is_first
from colbert_zero.errors import ColbertZeroError
from colbert_zero.report.trained import find_model
from colbert_zero.terminal import say


def publish(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder; or a study's, for its best finished pipeline, or DIR:SYSTEM for another.",
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REPO|FOLDER",
            help="USER/NAME on the Hub, or a folder (./NAME); without it a folder in `published`.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", metavar="ID", help="The model's: apache-2.0, mit, other, …")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a new repository: only its owner sees it.")] = False,
) -> None:
    """Check a model, write it into a folder with its card, and push that to the Hub if a token is there.

    Refused: what loads otherwise elsewhere, weights that are not safetensors, and names of places on this machine.

    Examples:

      colbert-zero publish out/quickstart --licence apache-2.0
      colbert-zero publish out/quickstart:kd-only --to ./quickstart-kd
      colbert-zero publish out/quickstart/phases/distillation-0123456789ab --to me/quickstart --private
    """
    if not is_first():
        raise ColbertZeroError("publish: one process publishes; start it without torchrun")
    found = find_model(model)
    # Slow to import, so after a mistaken place is told.
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero.models.publishing import publish as publish_model

    disable_progress_bar()

    done = publish_model(found, to, licence, private, say)
    say(f"checked: sentence-transformers alone gives the same, to {done.difference:.0e}")
    say(f"{done.folder}: the model and its card{f', licence {done.licence}' if done.licence else ''}")
    if done.url:
        say(f"pushed: {done.url}")
