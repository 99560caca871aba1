"""What the commands share: their options, and the study they work in."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.launcher import check_launched, launched_rank
from colbert_zero.recipe.entry import Precision
from colbert_zero.recipe.schema import Recipe
from colbert_zero.terminal import RichShow, console, say

if TYPE_CHECKING:
    from colbert_zero.study.study import Study

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set phases.unsupervised.learning_rate=1e-3"),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; out/NAME by default.")]
RefreshOption = Annotated[
    bool,
    typer.Option(
        "--refresh-base", help="Take the commit that the Hub's base has today, in place of the one this study keeps."
    ),
]

PrecisionOption = Annotated[
    Precision,
    typer.Option(
        help="Encode with the encoder's weights in this; auto: bfloat16 where the device multiplies it faster."
    ),
]


def command_line() -> str:
    """The command as it was typed."""
    return " ".join(["colbert-zero", *sys.argv[1:]])


def is_first() -> bool:
    """Whether this process is the first of those that a launcher started; for what one does alone.

    Raises:
        ColbertZeroError: The environment speaks of other processes by halves.
    """
    check_launched()
    return launched_rank() == "0"


def study_in(recipe: Recipe, out: Path | None, refresh_base: bool = False) -> "Study":
    """The study in its folder."""
    from colbert_zero.study.study import Study

    return Study(recipe, out or Path("out") / recipe.name, RichShow(), refresh_base=refresh_base)


@contextmanager
def held_study(recipe: Recipe, out: Path | None, refresh_base: bool = False) -> Iterator["Study"]:
    """The study in its folder, which is this run's alone meanwhile; started by a launcher, together with the others."""
    from colbert_zero.files import writing
    from colbert_zero.processes import is_main
    from colbert_zero.watch import leave

    start_processes()
    study = study_in(recipe, out, refresh_base)
    with writing(study.folder, study.show.say) if is_main() else nullcontext():
        yield study
    leave()


def start_processes() -> None:
    """Join the other processes, if a launcher started some; only the main one prints."""
    check_launched()
    import torch
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero import processes, watch

    # Our bars tell what takes time; reading and writing weights does not.
    disable_progress_bar()
    watch.stop_on_sigterm()
    watch.start()
    console.quiet = not processes.is_main()
    gpus = torch.cuda.device_count()
    if gpus > 1 and processes.world_size() == 1:
        hint = f"One of {gpus} GPUs is used; for all: torchrun --nproc-per-node {gpus} -m colbert_zero"
        say(" ".join([hint, *sys.argv[1:]]))


def read_queries(path: Path) -> dict[str, str]:
    """{query id: text} of a file: .jsonl with `_id` and `text`, or lines of id TAB text.

    Raises:
        ColbertZeroError: It is not there, a line is no query, or there is none.
    """
    from colbert_zero.data.collection import as_document
    from colbert_zero.files import parse_json, text_lines

    queries: dict[str, str] = {}
    for where, line in text_lines(path):
        row: Any
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ColbertZeroError(f"{where}: broken JSON ({error}); one object a line is expected") from None
        else:
            identifier, tab, text = line.partition("\t")
            if not tab:
                raise ColbertZeroError(f"{where}: no tab; write id TAB text, or name a .jsonl file")
            row = {"_id": identifier, "text": text}
        _, identifier, text = as_document(row, where)
        if identifier in queries:
            raise ColbertZeroError(f"{where}: the query id {short(repr(identifier))} is there twice; make them unique")
        if not text.strip():
            raise ColbertZeroError(
                f"{where}: the query {short(repr(identifier))} has no text; write one, or leave it out"
            )
        queries[identifier] = text
    if not queries:
        raise ColbertZeroError(f"--queries {path}: has no query")
    return queries


def refuse_existing(path: Path, option: str) -> None:
    """Refuse a file, or a folder with something in it, that would be replaced."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ColbertZeroError(f"{option} {path}: is there already; name another, or delete it")


def refuse_unwritable(path: Path | None, option: str) -> None:
    """Refuse a file in a place that cannot be written, before anything is computed for it."""
    if path is None:
        return
    if path.is_dir():
        raise ColbertZeroError(f"{option} {path}: is a folder; name a file")
    there = next(parent for parent in Path(os.path.abspath(path)).parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ColbertZeroError(f"{option} {path}: {there} cannot be written; name another place")


def refuse_place(out: Path, model: str) -> None:
    """Refuse to make a model of another one in a place that is taken, cannot be written, or is in the other itself."""
    from colbert_zero.files import place_of

    refuse_existing(out, "--out")
    real, own = Path(os.path.realpath(out)), Path(os.path.realpath(place_of(model)))
    if own.is_dir() and real.is_relative_to(own):
        raise ColbertZeroError(f"--out {out}: lies in MODEL; name another folder")
    there = next(parent for parent in real.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ColbertZeroError(f"--out {out}: cannot be written, because of {there}; name another place")
