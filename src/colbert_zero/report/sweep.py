"""A sweep's record → words for a point, and one PNG."""

import json
from typing import Any

from colbert_zero.report.drawing import COLOURS, INK, MARKERS, MUTED, Plot, log_axis, make_plot

Record = dict[str, Any]
_BARS = 40


def short_key(key: str, phase: str) -> str:
    """A key without the part that all of a phase's keys have."""
    return key.removeprefix(f"phases.{phase.rpartition('@')[2]}.")


def short_value(value: Any) -> str:
    """A value as one would write it."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def label(values: Record, phase: str) -> str:
    """A point in words: `learning_rate=0.001, temperature=0.5`."""
    return ", ".join(f"{short_key(key, phase)}={short_value(value)}" for key, value in values.items())


def outcome(row: Record) -> str:
    """A point's score, or why it has none."""
    return row["error"] or f"nDCG@10 {row['score']:.4f}"


# ---- The plot


def draw(record: Record) -> Plot | None:
    """A line over a numeric key, a line for each value of a second key; bars where the keys are others.

    None where no point has a score.
    """
    points = [point for point in record["points"] if point["score"] is not None]
    if not points:
        return None
    varying = [key for key, values in record["grid"].items() if len(values) > 1]
    x, series = _axes_of(record["grid"], varying)
    failed = len(record["points"]) - len(points)
    note = f"{failed} of {len(record['points'])} points failed" if failed else ""

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        if x:
            _draw_lines(axes, record, points, x, series)
        else:
            _draw_bars(axes, record, points, varying or list(record["grid"]))
        axes.set_title(f"{record['name']}, {record['phase']}", loc="left", fontsize=10, fontweight="bold")
        axes.set_title(note, loc="right", fontsize=8.5, color=MUTED)

    height = 4.7 if x else 1.2 + 0.3 * min(len(points), _BARS)
    return make_plot("sweep", "Sweep", f"{_measure(record)} of {len(points)} points", (8.6, height), fill)


def _axes_of(grid: dict[str, list[Any]], varying: list[str]) -> tuple[str | None, str | None]:
    """The key along the axis, and the one that has a line for each value; (None, None) for bars."""
    for x in sorted(varying, key=lambda key: -len(grid[key])):
        others = [key for key in varying if key != x]
        if len(others) <= 1 and all(len(grid[key]) <= len(COLOURS) for key in others) and _numeric(grid[x]):
            return x, others[0] if others else None
    return None, None


def _numeric(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _draw_lines(axes: Any, record: Record, points: list[Record], x: str, series: str | None) -> None:
    phase = record["phase"]
    for number, value in enumerate(record["grid"][series] if series else [None]):
        line = [p for p in points if series is None or p["values"][series] == value]
        line.sort(key=lambda point: point["values"][x])
        xs, ys = [p["values"][x] for p in line], [100 * p["score"] for p in line]
        name = f"{short_key(series, phase)} {short_value(value)}" if series else None
        axes.plot(xs, ys, color=COLOURS[number], marker=MARKERS[number], linewidth=2, label=name)
    values = sorted({point["values"][x] for point in points})
    if logarithmic := values[0] > 0 and values[-1] >= 10 * values[0]:
        log_axis(axes)
        if len(values) <= 8:
            axes.set_xticks(values, [short_value(value) for value in values])
    axes.margins(x=0.08, y=0.15)
    axes.set_xlabel(f"{short_key(x, phase)}{' (log scale)' if logarithmic else ''}")
    axes.set_ylabel(_measure(record))
    best = next(point for point in points if point["id"] == record["best"])
    spot = best["values"][x], 100 * best["score"]
    axes.plot(*spot, "o", ms=14, mec=INK, mfc="none", mew=1.4)
    axes.annotate(f"{spot[1]:.2f}", spot, (0, 11), textcoords="offset points", ha="center", fontweight="bold")
    if series:
        axes.legend(frameon=False)


def _draw_bars(axes: Any, record: Record, points: list[Record], keys: list[str]) -> None:
    shown = sorted(points, key=lambda point: -point["score"])[:_BARS]
    for row, point in enumerate(shown):
        score, best = 100 * point["score"], point["id"] == record["best"]
        axes.barh(row, score, height=0.62, color=COLOURS[1 if best else 0])
        weight = "bold" if best else "normal"
        axes.annotate(f"{score:.2f}", (score, row), (5, 0), textcoords="offset points", va="center", fontweight=weight)
    names = [label({key: point["values"][key] for key in keys}, record["phase"]) for point in shown]
    axes.set_yticks(range(len(shown)), names, color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    best_of = f", the best {len(shown)} of {len(points)} points" if len(shown) < len(points) else ""
    axes.set_xlabel(_measure(record) + best_of)


def _measure(record: Record) -> str:
    return "nDCG@10 × 100" + (f", mean of {len(record['collections'])}" if len(record["collections"]) > 1 else "")
