"""`teach`: a teacher's scores of candidates."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colbert_zero.cli.options import PrecisionOption, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import is_commit
from colbert_zero.terminal import RichShow, console, say

if TYPE_CHECKING:
    from colbert_zero.teaching.candidates import Candidates


def teach(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the tables go; with --report alone, where they are.")],
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|RECIPE:NAME",
            help="Rows (JSON lines, Parquet) of `query` with `documents`, or with its document and hard negatives; "
            "RECIPE:NAME for a recipe's source of such rows, without its held-out pairs; or a TREC run (.trec, .run, "
            ".txt), with --collection. Files or sources may be given several times.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:WEIGHT],…",
            help="A cross-encoder, dense or multi-vector checkpoint, bm25; or a weighted mix.",
        ),
    ] = None,
    n_ways: Annotated[
        int | None, typer.Option(min=2, help="Candidates a query, the first ones; as many as every row has by default.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="Of a run: its queries and documents.")
    ] = None,
    precision: PrecisionOption = "float32",
    report: Annotated[
        bool, typer.Option("--report", help="Show what the scores in --out are like, and score nothing.")
    ] = False,
) -> None:
    """Score candidates with a teacher, and write them as the three tables that distillation reads.

    What was killed goes on; `torchrun` shares the work. A recipe reads the tables by
    {kind: hub, path: DIR, train: train, queries: queries, documents: documents}.

    Examples:

      colbert-zero teach --candidates negatives.parquet --teacher cross-encoder/ms-marco-MiniLM-L6-v2 --out scored
      colbert-zero teach --candidates rows.jsonl.gz --teacher my/model:1,bm25:0.5 --n-ways 32 --out scored
      colbert-zero teach --candidates my.yaml:tickets --teacher my/model --out scored
      colbert-zero teach --candidates bm25.trec --collection data/scifact --teacher my/reranker --out scored
      colbert-zero teach --report --out scored
    """
    import torch
    from sentence_transformers.util import get_device_name

    from colbert_zero.data.by_name import load_all
    from colbert_zero.data.given import is_of_recipe
    from colbert_zero.maxsim.backends import backend_here
    from colbert_zero.models.precision import why
    from colbert_zero.processes import is_main, world_size
    from colbert_zero.teaching.candidates import RUNS, from_rows, from_run
    from colbert_zero.teaching.scorers import identity_of, scorer_of
    from colbert_zero.teaching.teach import check_out, in_words, read_record
    from colbert_zero.teaching.teach import teach as write_scores
    from colbert_zero.training.machine import agreed_precision
    from colbert_zero.watch import leave

    if report:
        if candidates or teacher or n_ways or collection or precision != "float32":
            raise ColbertZeroError("--report shows what is in --out; leave out the other options")
        read_record(out)
    else:
        if not candidates or not teacher:
            raise ColbertZeroError("--candidates and --teacher are needed: who scores what")
        members = _members(teacher)
        if precision != "float32" and list(members) == ["bm25"]:
            raise ColbertZeroError("--precision: bm25 encodes nothing; leave it out")
        check_out(out)
        is_run = [name for name in candidates if name.removesuffix(".gz").endswith(RUNS)]
        if bool(is_run) != bool(collection) or len(is_run) > 1 or (is_run and len(candidates) > 1):
            raise ColbertZeroError(
                "--candidates: one run (.trec, .run, .txt) with --collection, or files of rows (.jsonl, .parquet) "
                "without"
            )
        of_recipes = [name for name in candidates if is_of_recipe(name)]
        if of_recipes and len(of_recipes) < len(candidates):
            raise ColbertZeroError("--candidates: files, or sources of recipes (RECIPE:NAME), not both")
        start_processes()
        arithmetic = agreed_precision(precision, torch.device(get_device_name()))
        if precision != "float32":
            say(f"--teacher: encodes in {why(arithmetic, world_size()) if precision == 'auto' else arithmetic}")
        ids = {name: identity_of(name) for name in members}  # before candidates are read
        halves = {name: " in bfloat16" if _in_half(name, ids[name], arithmetic) else "" for name in members}
        maxsim = backend_here() if any(_encodes(name, ids[name]) for name in members) else None
        if collection:
            loaded = load_all([collection])
            if len(loaded) > 1:
                raise ColbertZeroError(f"--collection {collection}: several collections; name one")
            found = from_run(Path(is_run[0]), loaded[0], n_ways)
        elif of_recipes:
            found = _of_sources(of_recipes, n_ways)
        else:
            found = from_rows(candidates, n_ways)
        console.print(
            f"{len(found.queries):,} queries of {found.ways} candidates, {len(found.documents):,} different documents",
            markup=False,
        )
        with RichShow().counted("teacher scores") as advance:
            write_scores(
                found,
                members,
                {name: f"{identity}{halves[name]}" for name, identity in ids.items()},
                lambda name: scorer_of(
                    name,
                    found.documents,
                    ids[name] if is_commit(ids[name]) else None,
                    RichShow().say,
                    arithmetic=arithmetic,
                ),
                out,
                advance,
                maxsim,
            )
    if report or is_main():
        for line in in_words(read_record(out)):
            say(line)
        say(f"Tables: {out}")
    if not report:
        leave()


def _in_half(name: str, identity: str, arithmetic: str) -> bool:
    """Whether a member computes in bfloat16: asked to, or a cross-encoder on a GPU that has it."""
    from colbert_zero.teaching.scorers import has_half

    if name == "bm25" or arithmetic == "bfloat16":
        return name != "bm25"
    return has_half() and not _encodes(name, identity)


def _encodes(name: str, identity: str) -> bool:
    """Whether a member is an encoder, neither BM25 nor a cross-encoder."""
    from colbert_zero.files import place_of
    from colbert_zero.models.kinds import is_cross_encoder

    return name != "bm25" and not is_cross_encoder(place_of(name), identity if is_commit(identity) else None)


def _of_sources(words: list[str], n_ways: int | None) -> "Candidates":
    """Candidates of recipes' sources, which each process prepares for itself."""
    from colbert_zero.data.given import load_sources
    from colbert_zero.teaching.candidates import from_sources

    show = RichShow()
    with tempfile.TemporaryDirectory(prefix="colbert-zero-") as folder:
        return from_sources(
            load_sources(words, "--candidates", Path(folder), show.say, show.counted, derived=False), n_ways
        )


def _members(text: str) -> dict[str, float]:
    """`a:1,b:0.5` as weights; one without a weight has 1."""
    found: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(.+?)(?::(\d+(?:\.\d+)?))?\s*", part)
        if not match or (match[2] and float(match[2]) <= 0):
            raise ColbertZeroError(
                f"--teacher {text}: write NAME or NAME:WEIGHT, several with commas; weights are above 0"
            )
        if match[1] in found:
            raise ColbertZeroError(f"--teacher {text}: {match[1]} stands twice")
        found[match[1]] = float(match[2] or 1)
    return found
