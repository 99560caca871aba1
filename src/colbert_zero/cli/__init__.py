"""The commands, a file a noun. Each body only parses, calls and prints."""

import io
import os
import signal
import sys
import threading
from types import ModuleType

import typer

from colbert_zero import launcher
from colbert_zero.cli import (
    adapt,
    choose,
    compress,
    data,
    demo,
    doctor,
    export,
    filter_pairs,
    index,
    leaks,
    mine,
    model,
    plan,
    publish,
    recipes,
    search,
    serve,
    study,
    teach,
)
from colbert_zero.errors import STOPPED, ColbertZeroError, ProcessLost, Stopped
from colbert_zero.terminal import say, warn

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train multi-vector (ColBERT) retrievers from zero, and learn whether pre-training was worth its cost.\n\n"
    "Start with:  [bold]colbert-zero run quickstart[/bold]",
)
app.add_typer(recipes.recipes_app, name="recipes")
app.add_typer(index.index_app, name="index")
for command in (
    study.run,
    plan.plan,
    study.train,
    study.sweep,
    model.evaluate,
    search.search,
    serve.serve,
    demo.demo,
    publish.publish,
    adapt.adapt,
    export.export,
    compress.compress,
    teach.teach,
    data.data,
    choose.choose_base,
    mine.mine,
    leaks.leaks,
    filter_pairs.filter_pairs,
    study.report,
    doctor.doctor,
    recipes.schema,
):
    app.command()(command)


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2, an interruption exit code 130."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or log cannot hold a character, another stands for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if left_over := launcher.forget_left_overs():
        warn(f"colbert-zero: {left_over}")
    # Threads that wait by spinning slow each other down by an order of magnitude once another process wants a core;
    # threads that never spin are a quarter slower alone. Read when torch is imported, which the commands do.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)  # until the watch, which takes seconds to import, does it better
    try:
        try:
            app()
        except RuntimeError as error:
            # An exchange with another process fails in many ways when that process has gone.
            watch = _watch()
            raise watch.cause_of(error) if watch else error  # noqa: B904 - it may be the error itself
    except Stopped as stop:
        say(f"colbert-zero: {stop}")
        if watch := _watch():
            watch.leave(stopped=True)
    except ColbertZeroError as error:
        _end(str(error), 2)
    except ProcessLost as error:
        _end(str(error), 1)
    except OSError as error:
        # A full disk or a missing right is no mistake of the recipe; nothing half-written was kept.
        _end(f"{error}. What is finished is kept; the same command goes on", 1)
    except KeyboardInterrupt:
        _end("stopped. The same command goes on where this one was", 130)


def _stop(*_: object) -> None:
    raise Stopped(STOPPED)


def _watch() -> ModuleType | None:
    """The module of that name, once a command has needed it: its import loads torch, which takes seconds."""
    return sys.modules.get("colbert_zero.watch")


def _end(message: str, code: int) -> None:
    """Print why this process ends, once for all of them if they end for the same reason, and exit."""
    watch, rank = _watch(), launcher.launched_rank()
    if watch.fail(message) if watch else rank == "0":
        who = f"process {rank}: " if rank != "0" else ""
        warn(f"colbert-zero: {who}{message}")
    if watch and sys.modules["colbert_zero.processes"].world_size() > 1:
        # Leaving the interpreter would wait for exchanges that nobody answers.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
