"""`leaks`: which texts of collections stand in training sources."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from colbert_zero.cli.options import is_first, refuse_existing
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, console, leaks_lines, leaks_table, say

SOURCE = (
    "A file or glob of rows (.jsonl, .parquet, .tsv; .gz too), a data set of the Hub or its folder, or RECIPE:NAME for "
    "a recipe's source."
)


def leaks(
    train: Annotated[list[str], typer.Option(metavar="SOURCE", help=f"{SOURCE} May be given several times.")],
    collection: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|NAME",
            help="As for evaluate: a folder, a public collection (beir/scifact), a group (nanobeir), a Hub data set. "
            "May be given several times; without, the sources are compared with each other alone.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which qrels; test for folders, train for the Hub.")] = None,
    write_clean: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write each source without the rows that overlap with a collection, as JSON lines."
        ),
    ] = None,
    drop: Annotated[
        Literal["any", "queries"],
        typer.Option(
            help="With --write-clean: leave out rows with a text of a collection's query or document, or of a query "
            "alone."
        ),
    ] = "any",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write counts, verdicts and examples.")
    ] = None,
) -> None:
    """Find collections' queries and documents in training sources: equal, or copied with few changes.

    Also tells what repeats inside and between the sources. Texts are compared by what they say, word by word: a query
    asked in other words is not found.

    Examples:

      colbert-zero leaks --train my/pairs.jsonl.gz --collection beir/scifact --collection nanobeir
      colbert-zero leaks --train 'data/*.parquet' --train my.yaml:tickets --collection data/cacm --write-clean clean
    """
    from colbert_zero.data.by_name import load_all
    from colbert_zero.data.given import load_sources
    from colbert_zero.files import write_json
    from colbert_zero.teaching.leaks import find_leaks
    from colbert_zero.teaching.leaks import write_clean as write_clean_rows

    if not is_first():
        return
    if write_clean and not collection:
        raise ColbertZeroError("--write-clean: of what? Name the collections: --collection beir/scifact")
    if write_clean:
        refuse_existing(write_clean, "--write-clean")
    show = RichShow()
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        sources = load_sources(train, "--train", Path(folder), show.say, show.counted)
        collections = load_all(collection or [], split)
        with show.counted("rows compared") as advance:
            found = find_leaks(sources, collections, progress=advance)
        console.print()
        if collections:
            console.print(leaks_table(found.record))
        for line in leaks_lines(found.record):
            say(line)
        if write_clean:
            for name, rows in write_clean_rows(sources, found, write_clean, drop).items():
                all_rows = found.record["sources"][name]["rows"]
                left = "" if rows else "; nothing is left, a source of it is refused"
                console.print(f"{name}: {rows:,} of {all_rows:,} rows written to {write_clean}{left}", markup=False)
    if json_file:
        write_json(json_file, found.record)
