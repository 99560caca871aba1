"""`index` and `search` with `--backend qdrant`: which collection is meant, and what is said of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import RichShow, say

if TYPE_CHECKING:
    from colbert_zero.data.documents import Documents
    from colbert_zero.serving.index.building import Added
    from colbert_zero.serving.qdrant.changing import QdrantSettings
    from colbert_zero.serving.qdrant.collection import Address

BackendOption = Annotated[
    Literal["files", "qdrant"],
    typer.Option(
        help="Where the index is: a folder on this machine, or a collection of Qdrant, whose name then "
        "stands in the place of INDEX.",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Of a Qdrant server; without it QDRANT_URL counts. A key is read from QDRANT_API_KEY.",
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option("--path", metavar="FOLDER", help="Of Qdrant's local mode, for tries: one process, all in memory."),
]


def address(index: Path, backend: str, url: str | None, folder: Path | None) -> "Address | None":
    """The collection that is meant; None where it is a folder on this machine.

    Args:
        index: Its name; or its address, qdrant+http://HOST:6333/COLLECTION.
        backend: Which is asked for.
        url: Of a server.
        folder: Of the local mode.

    Raises:
        ColbertZeroError: It is not said where, or twice.
    """
    if backend == "files" and not str(index).startswith("qdrant+"):
        for option, given in (("--url", url), ("--path", folder)):
            if given is not None:
                raise ColbertZeroError(f"{option}: is for --backend qdrant; add that, or leave it out")
        return None
    from colbert_zero.serving.qdrant.collection import address_of, checked_address

    if str(index).startswith("qdrant+"):
        if url or folder:
            raise ColbertZeroError(
                "--url and --path: the address of the index says already where it is; leave them out"
            )
        return address_of(str(index))
    if url and folder:
        raise ColbertZeroError("--url and --path: a server, or a folder of the local mode; leave one of them out")
    if not folder and not (url := url or os.environ.get("QDRANT_URL")):
        raise ColbertZeroError(
            "--backend qdrant: say where it is: --url http://localhost:6333, the variable QDRANT_URL, or --path FOLDER "
            "for a try without a server"
        )
    return checked_address(str(folder or url), str(index), server=not folder)


def build(model: str, documents: "Documents", place: "Address", settings: "QdrantSettings") -> None:
    """`index build`."""
    from colbert_zero.serving.qdrant.changing import build as build_index

    _added(place, lambda show, told: build_index(model, documents, place, settings, show.say, told))


def add(place: "Address", documents: "Documents", replace: bool, model: str | None) -> None:
    """`index add`."""
    from colbert_zero.serving.qdrant.changing import add as add_documents

    _added(place, lambda show, told: add_documents(place, documents, replace, model, show.say, told))


def _added(place: "Address", make: Callable[[RichShow, Callable[[int, int], None]], "Added"]) -> None:
    """Add documents behind a bar, and tell what was added."""
    show = _started()
    with show.counted("documents") as advance:
        added = make(show, advance)
    for line in added.told(place):
        say(line)


def delete(place: "Address", ids: list[str]) -> None:
    """`index delete`."""
    from colbert_zero.serving.qdrant.changing import delete as delete_documents

    say(f"{place}: {delete_documents(place, ids, say):,} deleted")


def compact(place: "Address") -> None:
    """`index compact`."""
    say(f"{place}: Qdrant gives the place of deleted documents back by itself; there is nothing to do")


def check(place: "Address") -> None:
    """`index check`."""
    from colbert_zero.serving.qdrant.changing import check as check_index

    state = check_index(place, say)
    record, known = state.record, state.record.model
    pooled = f", about {record.pool:g} tokens a vector" if record.pool > 1 else ""
    cut = "" if record.passages is None else f", passages that overlap by {record.passages} tokens"
    beside = "" if record.quantization == "none" else f" and {record.quantization} quantisation"
    say(
        f"{place}: {state.documents:,} documents, {state.points:,} points; vectors of {known.dim} in {record.storage}"
        f"{beside}{pooled}{cut}; Qdrant's status is {state.status}"
    )
    at = f" at {known.commit}" if known.commit else ""
    say(
        f"  model {known.place}{at}, {known.representation}; queries of at most "
        f"{known.query_tokens or 'any number of'} tokens, documents of {known.document_tokens or 'any number'}"
    )
    if state.cut:
        say(f"  {state.cut:,} documents were longer than that when they came: their ends are cut off")
    if record.unfinished:
        say(f"  unfinished: {record.unfinished.documents:,} documents are still to come; the same command goes on")
    for name, why in state.broken.items():
        say(f"  document {name}: {why}")
    if state.broken:
        say(f"{place}: delete these documents (`index delete`), and add them again (`index add`)")
        raise typer.Exit(1)
    say(f"{place}: all texts and metadata are as they were written; vectors are Qdrant's to check")


def _started() -> RichShow:
    """What shows progress, once what takes seconds is loaded; have SIGTERM end between batches."""
    from colbert_zero.cli.options import start_processes

    start_processes()
    from colbert_zero.processes import world_size

    if world_size() > 1:
        raise ColbertZeroError("index --backend qdrant: one process encodes and uploads; start it without torchrun")
    return RichShow()
