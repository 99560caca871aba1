"""`demo`: from nothing to a page that answers."""

import os
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from colbert_zero.cli import study
from colbert_zero.cli.options import is_first, start_processes
from colbert_zero.cli.serve import check_installed
from colbert_zero.errors import ColbertZeroError
from colbert_zero.files import fingerprint, user_cache
from colbert_zero.recipe.data import Docstrings
from colbert_zero.recipe.reading import load_recipe
from colbert_zero.report.trained import Found, find_model
from colbert_zero.report.words import duration
from colbert_zero.terminal import RichShow, say, stderr

_RECIPE = "quickstart"


def demo(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A checkpoint's folder or a study's, as for `publish`; by default the quickstart's best, trained now "
            "if it is not there.",
        ),
    ] = None,
    package: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Index the documentation of these packages; by default the quickstart's."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the index goes.")] = Path("out/demo"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one, which is told.")] = 8000,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, if there is a browser.")
    ] = True,
) -> None:
    """Train the quickstart, index the documentation of your own Python's packages, and serve a page to search in it.

    What is there already is used. Ctrl-C ends it.

    Examples:

      colbert-zero demo
      colbert-zero demo out/small:full --package torch --package numpy --port 9000 --no-browser
    """
    check_installed()
    if not is_first():
        raise ColbertZeroError("demo: one process does it; start it without torchrun")
    began = time.monotonic()
    packages = sorted(set(package)) if package else _packages()
    from colbert_zero.serving.http.server import bind

    with bind("127.0.0.1", port) as bound:
        found = find_model(model) if model else _trained()
        began = _took("model", str(found.folder), began)
        start_processes()
        index = _index(found, packages, out)
        began = _took("index", str(index), began)
        from colbert_zero.serving.http.server import Settings, serve
        from colbert_zero.serving.http.service import Limits

        def begun() -> None:
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
            _took("server", url, began)
            say("Search in it there; Ctrl-C ends it.")
            if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                threading.Thread(target=_open, args=(url,), daemon=True).start()

        serve(Settings(index.absolute(), Limits()), bound, lambda line: stderr.print(line, markup=False), begun)


def _packages() -> list[str]:
    """Those that the quickstart trains on."""
    [spec] = [spec for spec in load_recipe(_RECIPE).sources.values() if isinstance(spec, Docstrings)]
    return sorted(spec.packages or [])


def _trained() -> Found:
    """The quickstart's best model."""
    folder = Path("out") / _RECIPE
    if not (folder / "results.json").is_file():
        say(f"{folder} is not there yet: training the quickstart, some minutes on two cores")
        study.run(_RECIPE, folder)
    return find_model(str(folder))


def _index(found: Found, packages: list[str], out: Path) -> Path:
    """The index of these packages' documentation by this model, made now if it is not there."""
    from colbert_zero.data.docstrings import packages_fingerprint
    from colbert_zero.data.documentation import write_documentation
    from colbert_zero.data.documents import documents_of
    from colbert_zero.data.sources import folder_fingerprints
    from colbert_zero.models.kinds import is_cross_encoder
    from colbert_zero.serving.index.building import Settings, build
    from colbert_zero.serving.index.manifest import read_manifest

    if is_cross_encoder(str(found.folder), None):
        raise ColbertZeroError(f"MODEL: {found.folder} is a cross-encoder, which has no embeddings to index")
    made_of = fingerprint(packages_fingerprint(packages), folder_fingerprints(found.folder, out / "data"))
    index = out / f"{found.name}-{made_of}.index"
    with suppress(ColbertZeroError):
        if read_manifest(index).unfinished is None:
            return index
    show, file, cache = RichShow(), out / f"documentation-{made_of}.jsonl", user_cache()
    with show.counted("files parsed") as advance:
        written = write_documentation(
            packages, file, cache / "docstrings" if cache else out / "docstrings",
            advance,
        )  # fmt: skip
    left_out = sum(written.left_out.values())
    say(f"  documentation of {', '.join(written.packages)}: {written.documents:,} docstrings; {left_out:,} left out, "
         "most of them too short")  # fmt: skip
    with show.counted("documents") as advance:
        added = build(
            str(found.folder), documents_of([str(file)], "--package"), index, Settings(storage="int8"), show.say,
            advance,
        )  # fmt: skip
    if added.cut:
        say(f"  {added.cut:,} are longer than the model reads: their ends cannot be found")
    return index


def _took(what: str, where: str, began: float) -> float:
    """Say what is there and how long it took; the time now."""
    now = time.monotonic()
    say(f"{what}: {where} ({duration(now - began)})")
    return now


def _open(url: str) -> None:
    with suppress(Exception):  # whatever is wrong with somebody's browser: the address was told
        webbrowser.open(url)
