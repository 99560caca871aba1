"""`search`: what an index answers."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from colbert_zero.cli import on_qdrant
from colbert_zero.cli.graphs import GraphOption, RuntimeOption, graph_of
from colbert_zero.cli.index import IndexArgument, ModelOption
from colbert_zero.cli.on_qdrant import BackendOption, FolderOption, UrlOption
from colbert_zero.cli.options import read_queries
from colbert_zero.errors import ColbertZeroError, short
from colbert_zero.terminal import answer_table, console, put, say, warn


def search(
    index: IndexArgument,
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="What to look for.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100_000, help="How many documents.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only documents with this in their metadata; several must all hold."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show which word of a document each of the query's chose, and its part.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    queries_file: Annotated[
        Path | None,
        typer.Option(
            "--queries", metavar="FILE", help="Many queries: .jsonl with `_id` and `text`, or lines of id TAB text."
        ),
    ] = None,
    run_file: Annotated[
        Path | None, typer.Option("--run", metavar="FILE", help="Of --queries: write the rankings in TREC format.")
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="Score only so many candidates of a first stage: pooled:1000 (nearest mean vectors) or bm25:1000. "
            "What it misses: `index check --first`. By default every document is scored.",
        ),
    ] = None,
    with_bm25: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="Search by the model and BM25 together: BM25's weight beside the model's 1, each score min-max "
            "normalised over its best 1,000.",
        ),
    ] = None,
    model: ModelOption = None,
    graph: GraphOption = None,
    runtime: RuntimeOption = "onnxruntime",
    backend: BackendOption = "files",
    url: UrlOption = None,
    path: FolderOption = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Of Qdrant: score so many, the nearest by mean vectors; 300, or k if more."
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Of Qdrant: score every document; here all are scored.")
    ] = False,
) -> None:
    """Search an index: exact MaxSim over every document, or of a first stage's candidates.

    Examples:

      colbert-zero search notes.index "how do I resume a run"
      colbert-zero search notes.index "how do I resume a run" -k 3 --explain
      colbert-zero search notes.index "lift of a wing" --where year=1958 --json
      colbert-zero search large.index "lift of a wing" --first pooled:1000
      colbert-zero search notes.index "lift of a wing" --with-bm25 1
      colbert-zero search notes.index "lift of a wing" --graph my-onnx
      colbert-zero search scifact.index --queries data/scifact/queries.jsonl --run scifact.trec -k 100
      colbert-zero search notes "lift of a wing" --backend qdrant --url http://localhost:6333 --candidates 500
    """
    _check_options(query, queries_file, run_file, explain, as_json)
    chosen = _chosen(where or [])
    queries = read_queries(queries_file) if queries_file else {}
    if exact and first:
        raise ColbertZeroError("--exact and --first: every document, or a first stage's; leave one of them out")
    encoded_by = graph_of(graph, runtime)
    place = on_qdrant.address(index, backend, url, path)
    options: dict[str, Any] = {"candidates": candidates, "exact": exact}
    if place is None:
        if candidates:
            raise ColbertZeroError(
                "--candidates: is for --backend qdrant; here name a first stage (--first pooled:500)"
            )
        from colbert_zero.serving.index.first_stage import first_stage_of
        from colbert_zero.serving.index.manifest import read_manifest

        manifest = read_manifest(index)
        if first:
            first_stage_of(first, manifest)
        options = {}
        from colbert_zero.serving.index.opened import check_weight

        check_weight(with_bm25, explain)
    elif with_bm25 is not None:
        raise ColbertZeroError("--with-bm25: is for an index of files, which keeps its documents' terms; leave it out")
    elif first:
        raise ColbertZeroError(
            "--first: is for an index of files; on Qdrant say how many candidates (--candidates 500)"
        )
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero.evaluation.runs import write_run
    from colbert_zero.serving.index.opened import Index
    from colbert_zero.serving.opening import open_index

    disable_progress_bar()

    stage: dict[str, Any] = {"first": first} if first else {}
    stage |= {"with_bm25": with_bm25} if with_bm25 else {}
    with open_index(place or index, model, warn, graph=encoded_by, **options) as opened:
        if run_file:
            run = opened.run(queries, k, chosen, **stage)
            write_run(run_file, run, index.name or "index")
            for note in opened.notes_of(first, with_bm25) if isinstance(opened, Index) else opened.notes_of(k):
                say(f"note: {note}")
            found = sum(map(len, run.values()))
            say(f"{run_file}: {found:,} documents of {len(run):,} queries")
            return
        answer = opened.search(query or "", k, chosen, explain, **stage)
    if as_json:
        put(json.dumps(answer.record(), ensure_ascii=False, indent=1) + "\n")
    else:
        console.print(answer_table(answer.record()))


def _check_options(
    query: str | None, queries_file: Path | None, run_file: Path | None, explain: bool, as_json: bool
) -> None:
    """Refuse what does not go together, and a place that cannot be written, before anything is loaded."""
    if (query is None) == (queries_file is None):
        raise ColbertZeroError('name a query, or a file of them: search INDEX "query", or --queries FILE --run FILE')
    if (queries_file is None) != (run_file is None):
        raise ColbertZeroError("--queries and --run go together: a file of queries, and one for their rankings")
    for option, given in (("--explain", explain), ("--json", as_json)):
        if queries_file and given:
            raise ColbertZeroError(f"{option}: is for one query; leave it out, or --queries")
    if query is not None and not query.strip():
        raise ColbertZeroError("the query is empty; write what to look for")
    if run_file:
        there = next(parent for parent in Path(os.path.abspath(run_file)).parents if parent.exists())
        if run_file.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
            raise ColbertZeroError(f"--run {run_file}: cannot be written; name another place")


def _chosen(where: list[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for word in where:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ColbertZeroError(f"--where {short(word)}: write KEY=VALUE, as in --where year=1958")
        if chosen.setdefault(key, value) != value:
            raise ColbertZeroError(f"--where {short(key)}: asked for twice, with two values; no document has both")
    return chosen
