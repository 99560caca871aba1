"""`index`: documents made searchable, and what is done to an index afterwards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from colbert_zero.cli import on_qdrant
from colbert_zero.cli.graphs import GraphOption, RuntimeOption, graph_of
from colbert_zero.cli.on_qdrant import BackendOption, FolderOption, UrlOption
from colbert_zero.cli.options import PrecisionOption, read_queries, start_processes
from colbert_zero.errors import ColbertZeroError
from colbert_zero.serving.index.manifest import SEGMENT_DOCUMENTS
from colbert_zero.terminal import RichShow, say

if TYPE_CHECKING:
    from colbert_zero.serving.index.building import Added

_BUILD = "build"


class _WithDefault(TyperGroup):
    """`index MODEL …` is `index build MODEL …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [_BUILD, *args]
        return super().parse_args(ctx, args)


index_app = typer.Typer(
    cls=_WithDefault,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make documents searchable with any dense or multi-vector checkpoint; then add to them, delete, check.\n\n"
    "  colbert-zero index MODEL --corpus PATH --out INDEX     is short for `index build`\n\n"
    "  colbert-zero index add INDEX --corpus PATH\n\n"
    "  colbert-zero search INDEX 'a query'",
)

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")]
CorpusOption = Annotated[
    list[str],
    typer.Option(
        metavar="PATH",
        help="Documents: .jsonl, .jsonl.gz or .parquet with `text` (`_id`, `title` and metadata too), globs allowed; a "
        "folder in BEIR layout; or a folder of text, Markdown and Python files. May be given several times.",
    ),
]
BadRowsOption = Annotated[
    Literal["error", "skip"], typer.Option(help="A row that is no document: stop, or pass over it.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Where the index's model is now, if not where it was: the same one."),
]


@index_app.command(_BUILD)
def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint: folder or Hub id.")],
    corpus: CorpusOption,
    out: Annotated[Path, typer.Option("--out", metavar="INDEX", help="The folder to write.")],
    store: Annotated[
        Literal["float16", "float32", "int8"],
        typer.Option(help="How vectors are kept; int8, with a scale a vector, takes half of float16's disk."),
    ] = "float16",
    pool: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Make about N tokens of a document one vector; 1 pools none. By default as the model does.",
        ),
    ] = None,
    passages: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="OVERLAP",
            help="Cut documents longer than the model reads into passages that "
            "overlap by so many tokens; a document is scored by its best one. By default their ends are cut off.",
        ),
    ] = None,
    segment_documents: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Documents written, and kept, together.")
    ] = SEGMENT_DOCUMENTS,
    precision: PrecisionOption = "float32",
    graph: GraphOption = None,
    runtime: RuntimeOption = "onnxruntime",
    on_bad_rows: BadRowsOption = "error",
    backend: BackendOption = "files",
    url: UrlOption = None,
    path: FolderOption = None,
    quantization: Annotated[
        Literal["none", "scalar", "binary"],
        typer.Option(
            help="Of Qdrant: token vectors in int8 or in bits too, kept in memory; the best are scored again."
        ),
    ] = "none",
) -> None:
    """Index documents. A killed run goes on with the same command and ends in the same index; torchrun shares it out.

    Examples:

      colbert-zero index out/quickstart/phases/distillation-0123456789ab/model --corpus data/scifact --out scifact.index
      colbert-zero index lightonai/ColBERT-Zero --corpus notes/ --passages 32 --out notes.index
      colbert-zero index my/model --corpus 'docs/*.parquet' --store int8 --pool 2 --out docs.index
      torchrun --nproc-per-node 8 -m colbert_zero index my/model --corpus 'docs/*.parquet' --out docs.index
      colbert-zero index my/model --corpus 'docs/*.parquet' --out docs --backend qdrant --url http://localhost:6333
    """  # fmt: skip
    from colbert_zero.data.documents import documents_of
    from colbert_zero.serving.index.building import Settings
    from colbert_zero.serving.index.building import build as build_index

    place = on_qdrant.address(out, backend, url, path)
    if place is None and quantization != "none":
        raise ColbertZeroError("--quantization: is for --backend qdrant; --store int8 is its like here")
    if place is not None and segment_documents != SEGMENT_DOCUMENTS:
        raise ColbertZeroError("--segment-documents: Qdrant makes its own segments; leave it out")
    encoded_by = graph_of(graph, runtime, place)
    if precision != "float32" and (graph or place):
        raise ColbertZeroError(
            "--precision: is PyTorch's, in an index of files; leave it out with --graph or on Qdrant"
        )
    documents = documents_of(corpus, "--corpus", on_bad_rows)
    if place is not None:
        from colbert_zero.serving.qdrant.changing import QdrantSettings

        on_qdrant.build(model, documents, place, QdrantSettings(store, quantization, pool, passages))
        return
    _start()
    show = RichShow()
    with show.counted("documents") as advance:
        added = build_index(
            model, documents, out, Settings(store, pool, passages, segment_documents, encoded_by, precision), show.say,
            advance,
        )  # fmt: skip
    _tell(added, out)
    _leave()


@index_app.command()
def add(
    index: IndexArgument,
    corpus: CorpusOption,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put a document in the place of another one of its id.")
    ] = False,
    model: ModelOption = None,
    graph: GraphOption = None,
    runtime: RuntimeOption = "onnxruntime",
    on_bad_rows: BadRowsOption = "error",
    backend: BackendOption = "files",
    url: UrlOption = None,
    path: FolderOption = None,
) -> None:
    """Add documents to an index. One that is there with the same text and metadata is passed over.

    Examples:

      colbert-zero index add notes.index --corpus notes/ --replace
    """
    from colbert_zero.data.documents import documents_of
    from colbert_zero.serving.index.building import add as add_documents

    place, documents = on_qdrant.address(index, backend, url, path), documents_of(corpus, "--corpus", on_bad_rows)
    encoded_by = graph_of(graph, runtime, place)
    if place is not None:
        on_qdrant.add(place, documents, replace, model)
        return
    _start()
    show = RichShow()
    with show.counted("documents") as advance:
        added = add_documents(index, documents, replace, model, show.say, advance, graph=encoded_by)
    _tell(added, index)
    _leave()


@index_app.command()
def delete(
    index: IndexArgument,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Documents.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids", metavar="FILE", help="More of them, an id a line.")] = None,
    backend: BackendOption = "files",
    url: UrlOption = None,
    path: FolderOption = None,
) -> None:
    """Delete documents from an index: all of these, or none.

    Examples:

      colbert-zero index delete notes.index old.md drafts/new.md
    """
    from colbert_zero.files import text_lines
    from colbert_zero.serving.index.changing import delete as delete_documents

    wanted = [*(ids or ()), *(line.strip() for _, line in text_lines(ids_file))] if ids_file else list(ids or ())
    if not wanted:
        raise ColbertZeroError("nothing to delete: name documents by their ids, or a file of them (--ids FILE)")
    if (place := on_qdrant.address(index, backend, url, path)) is not None:
        on_qdrant.delete(place, wanted)
        return
    count = delete_documents(index, wanted, RichShow().say)
    say(f"{index}: {count:,} deleted; `colbert-zero index compact {index}` gives their place on the disk back")
    _tell_state(index)


@index_app.command()
def compact(
    index: IndexArgument,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Leave damaged segments out, with their documents.")
    ] = False,
    backend: BackendOption = "files",
    url: UrlOption = None,
    path: FolderOption = None,
) -> None:
    """Write an index anew without deleted documents, few segments in place of many. Searching goes on meanwhile.

    Examples:

      colbert-zero index compact notes.index
    """
    from colbert_zero.serving.index.changing import compact as compact_index

    if (place := on_qdrant.address(index, backend, url, path)) is not None:
        on_qdrant.compact(place)
        return
    compact_index(index, drop_damaged, RichShow().say)
    _tell_state(index)


@index_app.command()
def check(
    index: IndexArgument,
    first: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="Compare a first stage (pooled:1000, bm25:1000) with exact search. May be given several times.",
        ),
    ] = None,
    queries_file: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            metavar="FILE",
            help="Of --first: queries as for `search`; by default the first sentences of sampled documents.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=100_000, help="Of --first: best documents to compare.")] = 10,
    model: ModelOption = None,
    backend: BackendOption = "files",
    url: UrlOption = None,
    path: FolderOption = None,
) -> None:
    """Read every byte of an index, and compare it with its checksums. Exit code 1 if a segment is damaged.

    Examples:

      colbert-zero index check notes.index
      colbert-zero index check notes.index --first pooled:1000 --first bm25:1000 --queries queries.jsonl
    """  # fmt: skip
    if queries_file and not first:
        raise ColbertZeroError("--queries: is for --first; leave it out, or name a first stage (--first pooled:1000)")
    from colbert_zero.serving.index.checking import check as check_index
    from colbert_zero.serving.index.first_stage import first_stage_of
    from colbert_zero.serving.index.manifest import read_manifest

    if (there := on_qdrant.address(index, backend, url, path)) is not None:
        if first:
            raise ColbertZeroError("--first: is for an index of files; on Qdrant compare runs with and without --exact")
        on_qdrant.check(there)
        return
    for word in first or ():
        first_stage_of(word, read_manifest(index))
    queries = read_queries(queries_file) if queries_file else {}
    state = check_index(index)
    _tell_state(index)
    known = state.manifest.model
    place = f"{known.place} at {known.commit}" if known.commit else known.place
    say(f"  model {place}, {known.representation}; queries of at most {known.query_tokens or 'any number of'} tokens, "
         f"documents of {known.document_tokens or 'any number'}")  # fmt: skip
    say(f"  documents were encoded by {state.manifest.encoded_by}")
    if state.manifest.cut:
        say(f"  {state.manifest.cut:,} documents were longer than that when they came: their ends are cut off")
    say(f"  {state.bytes / 1e6:,.1f} MB on disk")
    for entry in state.manifest.segments:
        if entry.name in state.damaged:
            say(f"  segment {entry.name} is damaged, {entry.live:,} documents: {state.damaged[entry.name]}")
    for identifier in state.twice:
        say(f"  the id {identifier} is there twice")
    if state.damaged or state.twice:
        say(f"{index}: restore it from a copy, or leave the damaged out (`colbert-zero index compact {index} "
             "--drop-damaged`) and add their documents again (`index add`)")  # fmt: skip
        raise typer.Exit(1)
    say(f"{index}: every byte is as it was written")
    if first:
        _tell_recalls(index, first, list(queries.values()), k, model)


def _tell_recalls(index: Path, first: list[str], queries: list[str], k: int, model: str | None) -> None:
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero.serving.index.checking import first_sentences, recalls
    from colbert_zero.serving.index.opened import Index

    disable_progress_bar()
    with Index.open(index, model, tell=say) as opened:
        asked = queries or first_sentences(opened)
        if not asked:
            say(f"{index}: no document is left, so there is nothing to compare first stages by")
        whose = "queries" if queries else "first sentences of documents, which are easier than queries"
        for recall in recalls(opened, asked, first, k) if asked else ():
            say(
                f"{index}: {recall.first} has {recall.mean:.1%} of the {k} best of exact search, "
                f"{recall.whole:.1%} of the queries have all; {len(asked):,} {whose}; a query takes "
                f"{1e3 * recall.seconds:,.0f} ms, exact search {1e3 * recall.exact_seconds:,.0f} ms"
            )


def _start() -> None:
    """Load what takes seconds, and have SIGTERM end between blocks."""
    start_processes()


def _leave() -> None:
    from colbert_zero.watch import leave

    leave()


def _tell(added: "Added", index: Path) -> None:
    for line in added.told(index):
        say(line)
    _tell_state(index)


def _tell_state(index: Path) -> None:
    from colbert_zero.serving.index.manifest import read_manifest

    manifest = read_manifest(index)
    deleted = sum(segment.documents - segment.live for segment in manifest.segments)
    gone = f" ({deleted:,} deleted ones still on the disk)" if deleted else ""
    pooled = f", about {manifest.pool:g} tokens a vector" if manifest.pool > 1 else ""
    cut = "" if manifest.passages is None else f", passages that overlap by {manifest.passages} tokens"
    say(
        f"{index}: {manifest.documents:,} documents{gone} in {len(manifest.segments):,} segments, "
        f"{manifest.tokens:,} vectors of {manifest.model.dim} in {manifest.storage}{pooled}{cut}"
    )
    if manifest.unfinished:
        say(f"  unfinished: {manifest.unfinished.documents:,} documents are still to come; the same command goes on")
