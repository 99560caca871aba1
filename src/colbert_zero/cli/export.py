"""`export`: a model in layouts that other engines read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from colbert_zero.cli.options import is_first, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.report.trained import find_model
from colbert_zero.terminal import RichShow, say


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A multi-vector checkpoint's folder or a study's, as for `publish`.")
    ],
    to: Annotated[Literal["pylate", "onnx"], typer.Option(help="The layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    collection: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|NAME", help="For onnx: what both rank, as for `evaluate`; kept if the export ranks alike."
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="For onnx: also a graph with int8 weights; its cost in nDCG@10 is told.")
    ] = False,
    most_lost: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="POINTS", help="Of --int8: the nDCG@10 × 100 it may lose, or is refused; 1 by default."
        ),
    ] = None,
) -> None:
    """Export a multi-vector model: to PyLate's layout, or to an ONNX graph that ends in the vectors that are scored.

    What would give other vectors, or rank otherwise, is not kept.

    Examples:

      colbert-zero export out/quickstart --to pylate --out quickstart-pylate
      colbert-zero export out/quickstart --to onnx --collection data/scifact --out quickstart-onnx
      colbert-zero export my/model --to onnx --collection beir/scifact --out my-onnx --int8
    """
    if not is_first():
        raise ColbertZeroError("export: one process exports; start it without torchrun")
    if (to == "onnx") != (collection is not None):
        raise ColbertZeroError("--collection goes with --to onnx: it is what the graph must rank as the model does")
    if int8 and to != "onnx":
        raise ColbertZeroError("--int8 goes with --to onnx; leave it out")
    if most_lost is not None and not int8:
        raise ColbertZeroError("--most-lost goes with --int8; leave it out")
    found = find_model(model)
    if out.exists():
        raise ColbertZeroError(f"--out {out} is there already; name another, or remove it")
    start_processes()
    from colbert_zero.models.bases import find_checkpoint
    from colbert_zero.models.kinds import goes_two_ways

    find_checkpoint(str(found.folder), "MODEL", say)
    if goes_two_ways(str(found.folder)):
        raise ColbertZeroError(
            f"MODEL: {found.folder} has a Router, with modules for queries or documents alone, for which neither "
            "layout has a place; export the model that it was adapted from"
        )
    if collection is None:
        from colbert_zero.models.pylate import export_pylate

        apart = export_pylate(found.folder, out)
        say(f"{out}: PyLate's layout; read again it gives the model's vectors, to {apart:.0e}")
    else:
        _to_onnx(found.folder, collection, out, (1.0 if most_lost is None else most_lost) if int8 else None)


def _to_onnx(model: Path, name: str, out: Path, most_lost: float | None) -> None:
    from colbert_zero.data.by_name import load_all
    from colbert_zero.data.collection import Rules
    from colbert_zero.evaluation.exporting import export_checked
    from colbert_zero.models.onnx import check_installed
    from colbert_zero.report.records import MEASURE

    check_installed()
    loaded = load_all([name], None, Rules(None, None))
    if len(loaded) != 1:
        raise ColbertZeroError(f"--collection {name}: has {len(loaded)} collections; name one of them")
    with RichShow().counted("ranking") as advance:
        checked = export_checked(model, loaded[0], out, most_lost, advance)
    say(f"{out}: ranks {checked['queries']:,} queries of {checked['collection']} as the model does; scores differ by "
         f"at most {checked['largest_difference']:.0e}")  # fmt: skip
    for graph, score in checked[MEASURE].items():
        say(f"  {graph:16} {MEASURE} {score:.4f}")
    if most_lost is not None:
        say(f"  int8 has another order of the first ten in {checked['int8_other_first_ten']:,} queries")
