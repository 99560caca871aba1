"""`serve`: an index behind HTTP, with a page."""

from importlib.util import find_spec
from typing import Annotated

import typer

from colbert_zero.cli import on_qdrant
from colbert_zero.cli.graphs import GraphOption, RuntimeOption, graph_of
from colbert_zero.cli.index import IndexArgument, ModelOption
from colbert_zero.errors import ColbertZeroError
from colbert_zero.terminal import say, warn


def serve(
    index: IndexArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one, which is told.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes; each loads the model.")] = 1,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="COLBERT_ZERO_KEY",
            show_default=False,
            show_envvar=True,
            help="Answer only requests with `Authorization: Bearer KEY`. Rather by its variable: others see a command.",
        ),
    ] = None,
    writable: Annotated[
        bool, typer.Option("--writable", help="Let requests with the key add and delete documents.")
    ] = False,
    max_k: Annotated[int, typer.Option(min=1, max=100_000, help="Documents of an answer, at most.")] = 1000,
    max_text: Annotated[int, typer.Option(min=1, help="Characters of a query or a text to embed, at most.")] = 10_000,
    max_body: Annotated[int, typer.Option(min=1000, help="Bytes of a request's body, at most.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(min=0.1, help="In which a request is answered, or told that not.")] = 30.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; one more is answered 503, with a time to try again.")
    ] = 256,
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Vectors kept in memory between searches, all processes together; by default a "
            "quarter of the machine's memory.",
        ),
    ] = None,
    model: ModelOption = None,
    graph: GraphOption = None,
    runtime: RuntimeOption = "onnxruntime",
) -> None:
    """Serve an index: an HTTP API, and a page to search with. Ctrl-C ends it, once what it accepted is answered.

    Examples:

      colbert-zero serve notes.index
      colbert-zero serve notes.index --port 9000 --workers 4
      colbert-zero serve notes.index --graph my-onnx/model_int8.onnx
      colbert-zero serve qdrant+http://localhost:6333/notes
      COLBERT_ZERO_KEY=secret colbert-zero serve notes.index --host 0.0.0.0 --writable
      curl 'http://127.0.0.1:8000/search?q=how+do+I+resume+a+run&k=3&explain=true'
    """  # fmt: skip
    _check(key, writable, workers)
    if graph and writable:
        raise ColbertZeroError("--graph: encodes queries; what is added with --writable is encoded by PyTorch")
    encoded_by = graph_of(graph, runtime)
    place = on_qdrant.address(index, "files", None, None)
    if place is None:
        from colbert_zero.serving.index.manifest import PYTORCH, PYTORCH_HALF, read_manifest

        encoded = read_manifest(index).encoded_by
        if writable and encoded not in (PYTORCH, PYTORCH_HALF):
            raise ColbertZeroError(
                f"--writable: the documents of {index} were encoded by {encoded}, which the server does not do; leave "
                "--writable out, and add with `colbert-zero index add --graph`"
            )
    elif writable:
        raise ColbertZeroError(
            "--writable: an index on Qdrant is served read-only; change it by `colbert-zero index add --backend qdrant`"
        )
    import psutil
    from transformers.utils.logging import disable_progress_bar

    from colbert_zero.serving.http.guard import is_local
    from colbert_zero.serving.http.server import Settings, bind
    from colbert_zero.serving.http.server import serve as serve_until_stopped
    from colbert_zero.serving.http.service import Limits
    from colbert_zero.serving.opening import open_index

    disable_progress_bar()
    memory = int(memory_gb * 1e9) if memory_gb is not None else psutil.virtual_memory().total // 4
    limits = Limits(
        body_bytes=max_body, characters=max_text, k=max_k, explained=min(50, max_k), seconds=seconds, waiting=queue
    )
    whole = place or index.absolute()
    with bind(host, port) as bound:
        local = is_local(bound.getsockname()[0])
        if not local and key is None:
            warn(f"warning: whoever reaches {host} can search and read this index; set a key (COLBERT_ZERO_KEY)")
        settings = Settings(whole, limits, key, writable, local, model, memory // workers, workers, encoded_by)
        address = f"[{host}]" if ":" in host else host
        with open_index(whole, model, warn, graph=encoded_by) as opened:
            say(f"{place or index}: {len(opened):,} documents")
            for note in opened.notes:
                warn(f"note: {note}")
            if workers > 1:
                # A mistake is told once, here, and not by each of them.
                opened.encoder  # noqa: B018
        serve_until_stopped(
            settings, bound, warn,
            lambda: say(
                f"http://{address}:{bound.getsockname()[1]}/ answers; Ctrl-C ends it"),
        )  # fmt: skip
    say("stopped: all that was accepted is answered")


def check_installed() -> None:
    """Refuse to begin without the packages of the extra `serve`."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise ColbertZeroError(f"serve: {package} is not installed; pip install colbert-zero[serve]")


def _check(key: str | None, writable: bool, workers: int) -> None:
    """Refuse what is missing or does not go together, before anything is loaded."""
    check_installed()
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise ColbertZeroError("--key: is empty, or has characters that no header can hold; take letters and digits")
    if writable and key is None:
        raise ColbertZeroError(
            "--writable: needs a key, or anyone could change the index; set COLBERT_ZERO_KEY=…, or leave --writable out"
        )
    if writable and workers > 1:
        raise ColbertZeroError("--writable: one process writes; leave --workers out, or serve read-only")
