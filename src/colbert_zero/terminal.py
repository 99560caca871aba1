"""What the user sees on the terminal: progress, the plan of a run, its results."""

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from colbert_zero.errors import STOPPED, Stopped
from colbert_zero.report.published import published_on
from colbert_zero.report.records import MEASURE, SEEN, marked
from colbert_zero.report.sweep import short_key, short_value
from colbert_zero.report.words import duration, fraction, listed, operations, points, quantity, rounded, size

NARROWEST = 20
"""Columns; with fewer, as in COLUMNS=0, rich would print nothing at all or cut what it prints."""

if (_asked := os.environ.get("COLUMNS", "")).isdecimal() and int(_asked) < NARROWEST:
    del os.environ["COLUMNS"]  # the terminal's own width counts, for typer's help as well


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read has gone (`| head`): end as if asked to stop, and say nothing."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Stopped(STOPPED)


console = _Output(highlight=False)


def put(text: str) -> None:
    """Write a text to standard output as it is."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        console.on_broken_pipe()


stderr = Console(stderr=True, highlight=False)


def say(text: str, style: str | None = None) -> None:
    """Print a line of any text, which is no markup, and is not broken."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """The same on standard error."""
    stderr.print(text, markup=False, soft_wrap=True)


_SWEEP_COLLECTIONS = 4
_SHOWN_ROWS, _SHOWN_TEXTS, _SHOWN_CHARACTERS = 20, 3, 150
_SHOWN_PARTS = 12

LITTLE = 0.05
"""Of recall@1: where an encoder's layers add less, they are told to."""

SMALLER = 0.8
"""Share of the best candidate's bytes, from which on down it is worth a line."""

# What a table shows of a system.
Column = Callable[[dict[str, Any]], str]


class RichShow:
    """Progress on the terminal: a live bar a task, a plain line when it is done."""

    def say(self, text: str) -> None:
        """One line."""
        say(text)

    @contextmanager
    def counted(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar that is called with what is done and what there is in all."""
        with self.bar(name, 0) as advance:
            yield lambda done, total: advance(done, {"total": total})

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
        """A bar with throughput and time left; with a total of 0 it appears with the first report.

        Where there is no terminal, a line every half minute instead.
        """
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        started = spoken = time.monotonic()
        figures, texts_before = "", None
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(name, total=total or None, figures="", visible=bool(total))

            def advance(done: int, values: dict[str, Any]) -> None:
                nonlocal texts_before, figures, spoken
                now = time.monotonic()
                if "loss" in values:
                    # Texts before a resumed run's first step were read by an earlier process.
                    texts_before = texts_before if texts_before is not None else values["texts"]
                    speed = (values["texts"] - texts_before) / (now - started)
                    waited = values["waited_seconds"] / max(values["elapsed_seconds"], 1e-9)
                    figures = f"loss {values['loss']:.3f}" + (f", {speed:,.0f} texts/s" if speed else "")
                    figures += f", {waited:.1%} of the time waiting for data"
                # An evaluation on the way has no loss; the figures of the step before stay.
                progress.update(
                    task, completed=done, total=values.get("total", total or None), figures=figures, visible=True
                )
                if not console.is_terminal and now - spoken > 30:
                    spoken = now
                    self.say(
                        f"  {name}: {done:,} of {values.get('total', total):,} after {now - started:.0f} s  {figures}"
                    )

            yield advance
            done = progress.tasks[0].completed
        if done:
            self.say(f"  {name}: {done:,.0f} in {time.monotonic() - started:.1f} s  {figures}")


def print_plan(study: Any, phases: list[Any]) -> None:
    """What will be done: data, phases, texts, tokens."""
    recipe = study.recipe
    say(f"{recipe.name} → {study.folder}", style="bold")
    start = recipe.model.base or f"{recipe.model.architecture['model_type']}, from scratch"
    say(f"  model {start}")
    for name, source in study.sources.items():
        dropped = sum(source.record["dropped"].values())
        say(
            f"  source {name}: {source.record['rows']:,} rows in {len(source.parts)} parts, {dropped:,} left out, "
            f"{source.record['held_out']:,} held out"
        )
    for name, collection in study.collections.items():
        counts = f"{collection.documents_count:,} documents, {len(collection.qrels):,} queries"
        say(f"  collection {name}: {counts}{', for choosing' if name in recipe.for_choosing else ''}")
    say(f"  disk {study.disk.words()}")
    console.print(plan_table(phases, console.width))


def plan_table(phases: list[Any], width: int) -> Table:
    """A row a phase; in a terminal of fewer columns without what its recipe entry says as well."""
    cells: dict[str, Callable[[Any], str]] = {
        "phase": lambda p: " → ".join(p.chain),
        "trains": lambda p: getattr(p.spec, "representation", "–"),
        "by": lambda p: getattr(p.spec, "objective", p.spec.kind),
        "data": lambda p: ", ".join(p.spec.sources),
        "steps": lambda p: f"{p.steps:,}" if p.steps else "–",
        "texts": lambda p: f"{p.texts:,}" if p.texts else "–",
        "tokens ≤": lambda p: f"{p.tokens:,}" if p.tokens else "–",
        "": lambda p: "done" if p.done else "",
    }
    for spare in ("by", "data", "texts", "trains"):
        needed = sum(max(map(cell_len, [title, *map(cell, phases)])) + 2 for title, cell in cells.items())
        if needed - 2 > width:
            del cells[spare]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in cells:
        table.add_column(title, justify="right" if title in ("steps", "texts", "tokens ≤") else "left", overflow="fold")
    for phase in phases:
        table.add_row(*(Text(cell(phase)) for cell in cells.values()))
    return table


def print_results(results: dict[str, Any]) -> None:
    """Scores and costs of every system."""
    console.print()
    for number, table in enumerate(results_tables(results, console.width)):
        if number:
            console.print()
        console.print(table)
    if any(marked(name, sizes) != name for name, sizes in results["collections"].items()):
        say(
            f"{SEEN} queries of it are in the training data, so that scores, and means over them, may be too high: "
            "`colbert-zero leaks` shows them")  # fmt: skip


def results_tables(results: dict[str, Any], width: int) -> list[Table]:
    """Every system's mean and cost, then its score on each collection: one table where that fits, else several.

    Args:
        results: What results.json holds.
        width: Columns of the terminal. No name is cut: one that is longer than the terminal is wide is folded.
    """
    groups = _groups(results["systems"])
    collections = list(results["collections"])
    label = {name: marked(name, results["collections"][name]) for name in collections}
    only = f"{label[collections[0]]} " if len(collections) == 1 else "mean "
    if len(collections) > 1 and any(label[name] != name for name in collections):
        only = f"mean {SEEN} "
    first: dict[str, Column] = {
        f"{only}nDCG@10": lambda system: _score(_mean(system["scores"], collections)),
        "compute": lambda system: operations(system["flops"]) if _was_counted(system) else "–",
        "device time": lambda system: duration(system["device_seconds"]) if system["phases"] else "–",
    }
    if not any(map(_was_counted, results["systems"].values())):
        del first["compute"]  # trained by a version that did not count
    if any(system["kind"] == "ensemble" for system in results["systems"].values()):
        first["model"] = lambda system: size(system["model_bytes"])
        first["a query"] = lambda s: "–" if s["query_flops"] is None else operations(s["query_flops"])
    shown: list[dict[str, Column]] = [first]
    # All of them beside the mean, or none: a table of one and a table of six would be hard to read together.
    scores: dict[str, Column] = {label[name]: partial(_score_on, name) for name in collections}
    together = _width(results["systems"], groups, first | scores) <= width
    for name in label.values() if len(collections) > 1 else []:
        column = {name: scores[name]}
        fits = len(shown) > 1 and _width(results["systems"], groups, shown[-1] | column) <= width
        if not (together or fits):
            shown.append({})
        shown[-1] |= column
    return [_results_table(results["systems"], groups, columns) for columns in shown]


def evaluation_table(
    records: dict[str, dict[str, Any]],
    wholes: dict[str, str],
    scores: dict[str, dict[str, float]],
    mean: dict[str, float],
) -> Table:
    """A model's scores on several collections, and their mean.

    Args:
        records: What was evaluated, of a collection in parts each part.
        wholes: {name of a record: the collection that it is, or is a part of}.
        scores: {collection: {measure: score}}.
        mean: {measure: score} over `scores`.
    """
    measures = list(next(iter(scores.values())))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for title in ("documents", "queries", *measures):
        table.add_column(title, justify="right")
    for whole, of_one in scores.items():
        parts = [name for name in records if wholes[name] == whole]
        sizes = [
            f"{sum(records[part][key] for part in parts):,}" if key in records[parts[0]] else "–"
            for key in ("documents", "queries")
        ]
        label = whole if parts == [whole] else f"{whole}, mean of {len(parts)} parts"
        table.add_row(Text(label), *sizes, *(_score(of_one.get(m)) for m in measures))
        for part in parts if parts != [whole] else []:
            sizes = [f"{records[part][key]:,}" for key in ("documents", "queries")]
            values = (_score(records[part]["scores"].get(m)) for m in measures)
            table.add_row(Text(f"  {part.removeprefix(whole + '/')}"), *sizes, *values, style="dim")
    if len(scores) > 1:
        table.add_row(f"mean of {len(scores)}", "", "", *(_score(mean.get(m)) for m in measures), style="bold")
    return table


def answer_table(answer: dict[str, Any]) -> Group:
    """What an index answers to a query: a row a document, and below it why, if that was asked for.

    Args:
        answer: An `Answer` as JSON.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("document", overflow="fold", max_width=40)
    table.add_column("text", overflow="fold")
    for hit in answer["hits"]:
        shown = Text(_short(hit["text"]))
        if why := hit.get("explanation"):
            shown.append("\n")
            for part in sorted(why["parts"], key=lambda part: -part["score"])[:_SHOWN_PARTS]:
                shown.append(f"{part['score']:6.3f}  {part['token']} → {part['word']}\n", style="dim")
            if left := why["parts"][_SHOWN_PARTS:]:
                rest = sum(sorted((part["score"] for part in why["parts"]), reverse=True)[_SHOWN_PARTS:])
                shown.append(f"{rest:6.3f}  {len(left)} more of the query's tokens\n", style="dim")
        table.add_row(str(hit["rank"]), f"{hit['score']:.4f}", Text(hit["id"]), shown)
    notes = [Text(f"note: {note}", style="yellow") for note in answer["notes"]]
    return Group(*([table] if answer["hits"] else [Text("nothing found")]), *notes)


def choice_tables(record: dict[str, Any]) -> list[Table]:
    """What candidates score, best first, with the controls; and what each takes."""
    names, by = record["candidates"], record["by"]
    others = list(dict.fromkeys(other for about in names.values() for other in about["other"]))
    words = {"multi-vector": "MaxSim", "dense": "dense"}
    scores: dict[str, Column] = {
        f"recall@1, {words[by]}": lambda about: points(about["score"]),
        "95 %": lambda about: _bounds(about["interval"]),
        "less the best": lambda about: points(about.get("difference"), signed=True),
        "95 % ": lambda about: _bounds(about["interval_of_difference"], True) if "difference" in about else "–",
        "without layers": lambda about: points(about["without_layers"]),
        **{words[other]: partial(_other_score, other) for other in others},
        "": lambda about: about["verdict"],
    }
    cost: dict[str, Column] = {
        "kind": lambda about: about["kind"],
        "parameters": lambda about: quantity(about["parameters"]),
        "bytes": lambda about: size(about["bytes"]),
        "documents/s": lambda about: rounded(about["documents_per_second"]),
        "took": lambda about: duration(about["seconds"]),
    }
    tables = []
    for columns in (scores, cost):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("", overflow="fold")
        for title in columns:
            table.add_column(title.strip(), justify="right" if title not in ("", "kind") else "left")
        for name, about in names.items():
            table.add_row(Text(name), *(cell(about) for cell in columns.values()))
        if columns is scores:
            bm25 = record["bm25"]
            table.add_row("BM25", points(bm25["score"]), _bounds(bm25["interval"]), style="dim")
        tables.append(table)
    return tables


def _other_score(kind: str, about: dict[str, Any]) -> str:
    return points(about["other"][kind]["score"]) if kind in about["other"] else "–"


def _bounds(interval: list[float], signed: bool = False) -> str:
    low, high = (points(bound, signed) for bound in interval)
    return f"{low} to {high}"


def choice_lines(record: dict[str, Any]) -> list[str]:
    """What to start from, in words, and what is to be said against that."""
    candidates, best = record["candidates"], record["best"]
    left_out = record["left_out"]
    shared = f"; {left_out:,} more left out, since they share a query or a document with these" if left_out else ""
    drawn = listed([f"{count:,} of {name}" for name, count in record["drawn_from"].items()])
    margin = f"{100 * record['margin']:g} points"
    lines = [f"{record['pairs']:,} pairs ({drawn}){shared}"]
    by = {verdict: [n for n, about in candidates.items() if about["verdict"] == verdict] for verdict in _VERDICTS}
    ends = [_VERDICTS[verdict].format(names=listed(names), margin=margin) for verdict, names in by.items() if names]
    lines.append("; ".join([f"start from {best}", *ends]))
    for name in record["as_good"]:
        if (share := candidates[name]["bytes"] / candidates[best]["bytes"]) < SMALLER:
            lines.append(f"{name} has {fraction(share)} of the bytes of {best}")
    bm25 = record["bm25"]["score"]
    if lexical := [name for name, about in candidates.items() if about["score"] < bm25]:
        lines.append(f"BM25, which is not trained at all, scores higher than {listed(lexical)}")
    for name, about in candidates.items():
        added = None if about["without_layers"] is None else about["score"] - about["without_layers"]
        if added is not None and added < LITTLE:
            lines.append(
                f"{name}: its layers add {points(added, signed=True)} points, so little that it is not much more than "
                "its token embeddings"
            )
    return lines


_VERDICTS = {
    "as good": "{names}: as good, within {margin}",
    "not told apart": "{names}: not told apart from it (more pairs may tell: --pairs-of)",
    "worse": "{names}: worse",
}


def leaks_table(record: dict[str, Any]) -> Table:
    """Which collections were seen in training sources."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for title in ("queries seen", "documents seen"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for name, seen in record["collections"].items():
        queries = f"{seen['queries_seen']:,} of {seen['queries']:,}"
        documents = f"{seen['documents_seen']:,} of {seen['documents_compared']:,}"
        style = "bold" if seen["queries_seen"] else ""
        table.add_row(Text(name), queries, documents, Text(seen["verdict"]), style=style)
    return table


def leaks_lines(record: dict[str, Any]) -> list[str]:
    """Where collections' texts were seen, with examples; what repeats inside and between sources."""
    lines = []
    for name, seen in record["collections"].items():
        for source, counts in seen["by_source"].items():
            lines.append(f"{name}: {counts['queries']:,} queries and {counts['documents']:,} documents in {source}")
        for example in seen["examples"]:
            how = "equal" if example["share"] == 1 else f"{example['share']:.0%} alike"
            lines.append(f"  {example['of']}, {example['id']}: {example['text']}")
            lines.append(f"    {how}, {example['part']} row {example['row']:,}: {example['training_text']}")
    for name, counts in record["sources"].items():
        if "texts" in counts:
            lines.append(
                f"inside {name}: of {counts['texts']:,} texts {counts['queries_repeated']:,} queries and "
                f"{counts['documents_repeated']:,} documents repeat an earlier one, {counts['near']:,} nearly do"
            )
    for names, counts in record.get("between", {}).items():
        lines.append(f"between {names}: {counts['equal']:,} texts are in both, {counts['near']:,} nearly")
    if record.get("sampled", 1) < 1:
        lines.append(
            f"inside and between sources, {record['sampled']:.0%} of what texts are compared by was looked at, for the "
            "memory's sake: some near-duplicates of short texts may be missed"
        )
    if not record["whole"]:
        lines.append(f"{record['rows']:,} rows of the sources were looked at, not all")
    return lines


def published_lines(names: list[str]) -> list[str]:
    """Published figures on public collections of these names, each with its source; what to say if there is none."""
    lines = [f"published {MEASURE}, not measured here:"]
    for figures in published_on(names):
        shown = [f"{name} {score:.4f}" for name, score in figures.scores.items()]
        mean = [f"mean of {figures.benchmark} {figures.mean:.4f}"] if figures.mean is not None else []
        lines.append(f"  {figures.model}: {', '.join(mean + shown)} ({figures.source})")
    return lines if len(lines) > 1 else [f"published {MEASURE}: none on these collections that this program knows of"]


def _groups(systems: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The systems under headings, the finished pipelines last, where the eye is when a run ends."""
    headings: dict[str, Callable[[dict[str, Any]], bool]] = {
        "BM25, no training": lambda s: s["representation"] == "lexical",
        "dense baselines": lambda s: s["kind"] == "baseline" and s["representation"] != "lexical",
        "on the way": lambda s: s["kind"] == "pipeline" and s["after"] is not None,
        "finished pipelines": lambda s: s["kind"] == "pipeline" and s["after"] is None,
        "ensembles": lambda s: s["kind"] == "ensemble",
    }
    groups = [(heading, [n for n, s in systems.items() if belongs(s)]) for heading, belongs in headings.items()]
    return [(heading, names) for heading, names in groups if names]


def _results_table(
    systems: dict[str, Any],
    groups: list[tuple[str, list[str]]],
    columns: dict[str, Column],
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(MEASURE if "device time" not in columns else "", overflow="fold")
    for title in columns:
        table.add_column(Text(title), justify="right", overflow="fold")
    for heading, names in groups:
        table.add_row(Text(heading), style="dim")
        for name in names:
            cells = (Text(show(systems[name])) for show in columns.values())
            table.add_row(Text("  " + name), *cells, style="bold" if heading == "finished pipelines" else "")
    return table


def _width(systems: dict[str, Any], groups: list[tuple[str, list[str]]], columns: dict[str, Column]) -> int:
    """Columns of the terminal that a table of these needs; two spaces part its columns."""
    names = ["  " + name for name in systems] + [heading for heading, _ in groups]
    cells = [[title, *map(show, systems.values())] for title, show in columns.items()]
    return max(map(cell_len, names)) + sum(2 + max(map(cell_len, column)) for column in cells)


def _was_counted(system: dict[str, Any]) -> bool:
    """Whether it was trained, by a version that counted; else there is nothing to show."""
    return bool(system["phases"]) and system.get("flops") is not None


def _mean(scores: dict[str, Any], collections: list[str]) -> float | None:
    """None where a collection has no score."""
    values = [scores.get(name, {}).get(MEASURE) for name in collections]
    return None if None in values else sum(values) / len(values)


def _score_on(collection: str, system: dict[str, Any]) -> str:
    return _score(system["scores"].get(collection, {}).get(MEASURE))


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"


def sweep_table(record: dict[str, Any]) -> Table:
    """The points, the best first, those that failed last with their reasons."""
    names = list(record["collections"])
    shown = names if 1 < len(names) <= _SWEEP_COLLECTIONS else []
    keys = [short_key(key, record["phase"]) for key in record["grid"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (*keys, "mean nDCG@10" if len(names) > 1 else f"{names[0]} nDCG@10", *shown, "loss", "device time"):
        table.add_column(escape(title), justify="right")
    table.add_column("")
    for row in sorted(record["points"], key=lambda row: -1 if row["score"] is None else row["score"], reverse=True):
        values = [short_value(row["values"][key]) for key in record["grid"]]
        best = row["id"] == record["best"]
        if row["score"] is None:
            figures = ["–"] * (len(shown) + 3)
        else:
            scores = [f"{row['scores'][name]:.4f}" for name in shown]
            figures = [f"{row['score']:.4f}", *scores, f"{row['final_loss']:.4f}", f"{row['device_seconds']:.1f} s"]
        note = "best" if best else _reason(row["error"] or "")
        table.add_row(*(escape(cell) for cell in (*values, *figures, note)), style="bold" if best else "")
    return table


def _reason(error: str) -> str:
    """The beginning of a message, without the key it is about."""
    return re.split(r"[.,;(] ", re.sub(r"^[\w.-]+: ", "", error))[0]


def best_overrides(record: dict[str, Any]) -> str:
    """The options that give a recipe the best point's values."""
    values = next(point["values"] for point in record["points"] if point["id"] == record["best"])
    return " ".join("--set " + shlex.quote(f"{key}={json.dumps(value)}") for key, value in values.items())


def rows_in_words(seen: dict[str, Any]) -> str:
    """The rows of a step in words: what they are of, the first numbers, a few texts."""
    rows, source = seen["rows"], seen["source"] + (f", part {seen['part']}" if seen["part"] != seen["source"] else "")
    more = f", … ({len(rows):,} in all)" if len(rows) > _SHOWN_ROWS else ""
    lines = [
        f"{seen['phase']}, step {seen['step']:,} of {seen['steps']:,}: {len(rows):,} rows of {source}, "
        f"in pass {seen['epoch']:,} over it",
        f"rows {', '.join(map(str, rows[:_SHOWN_ROWS]))}{more}",
    ]
    for row, texts in list(zip(rows, seen["texts"], strict=True))[:_SHOWN_TEXTS]:
        lines += ["", f"row {row}", *(f"  {label:9} {_short(text)}" for label, text in _labelled(texts))]
    return "\n".join(lines)


def _labelled(texts: dict[str, Any]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = [(key, texts[key]) for key in ("query", "document") if key in texts]
    lines += [("negative", text) for text in texts.get("negatives", ())]
    return lines + [
        (f"{s:9.4f}", text) for s, text in zip(texts.get("scores", ()), texts.get("documents", ()), strict=True)
    ]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
