"""The report's plots: quality against cost, where the cost goes, the losses."""

import math
from typing import Any

from colbert_zero.report.cost import TIME, Currency
from colbert_zero.report.drawing import COLOURS, INK, MARKERS, MUTED, Plot, clip, log_axis, make_plot, place
from colbert_zero.report.records import MEASURE, SEEN, Record, Records, chain_of
from colbert_zero.report.words import listed, points, size


def quality_plot(records: Records, currency: Currency) -> Plot | None:
    """nDCG@10 against cost: a line a pipeline, through the checkpoints it passes."""
    pipelines = records.pipelines()
    if not pipelines:
        return None
    unit, unit_name = currency.unit_of(max(records.cost(p, currency) for p in pipelines))
    # In the order of the records, so that a pipeline keeps its colour whoever wins.
    paths = {p: records.checkpoints(p) for p in records.systems if p in pipelines}
    costs = [records.cost(name, currency) / unit for path in paths.values() for name in path]
    logarithmic = min(costs) > 0 and max(costs) > 15 * min(costs)

    def draw(figure: Any) -> None:
        axes, labels = figure.subplots(), []
        named: set[str] = set()
        for i, (pipeline, path) in enumerate(paths.items()):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            xs = [records.cost(n, currency) / unit for n in path]
            ys = [100 * records.means[n] for n in path]
            axes.plot(xs, ys, color=colour, linewidth=2, zorder=2)
            for x, y, name in zip(xs, ys, path, strict=True):
                shared = sum(name in others for others in paths.values()) > 1
                dense = records.systems[name]["representation"] == "dense"
                axes.plot([x], [y], marker, ms=7, mec=colour, mfc="none" if dense else colour, mew=1.8, zorder=3)
                if name != pipeline and name not in named:
                    labels.append(
                        (x, y, clip(records.systems[name]["phases"][-1]["name"]), MUTED if shared else colour, False)
                    )
                named.add(name)
            labels.append((xs[-1], ys[-1], clip(pipeline), colour, True))
        axes.set_xlabel(f"{currency.name} from zero, {unit_name}{' (log scale)' if logarithmic else ''}")
        axes.set_ylabel(_measured(records))
        if logarithmic:
            log_axis(axes)
        axes.margins(x=0.12, y=0.12)
        _draw_lexical(axes, records)
        place(figure, axes, labels)

    ends = [f"{p} {points(records.means[p])} at {currency.words(records.cost(p, currency))}" for p in pipelines]
    shows = (
        f"Each line is a pipeline, from its first checkpoint to its end: {'; '.join(ends)}. "
        "Hollow marks are dense checkpoints, filled ones multi-vector."
    )
    if records.baselines("lexical"):
        shows += " The dashed line needs no training."
    if currency is TIME:
        shows += _doubt(records)
    name = "quality" if currency is records.currency else "quality-time"
    return make_plot(name, f"Quality against {currency.name}", shows, (8.6, 4.7), draw)


def _measured(records: Records) -> str:
    """An axis' name, of the mean over collections."""
    mean = ", mean" if len(records.collections) > 1 else ""
    return f"{MEASURE} × 100{mean}" + (f" {SEEN}" if records.seen else "")


def _draw_lexical(axes: Any, records: Records) -> None:
    """A dashed line with its name for each system that needs no model."""
    for name in records.baselines("lexical"):
        level = 100 * records.means[name]
        axes.axhline(level, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
        axes.annotate(
            clip(name), (1, level), (-4, 4), ("axes fraction", "data"), "offset points", ha="right", color=MUTED
        )


def bytes_plot(records: Records) -> Plot | None:
    """nDCG@10 against bytes of a system's models, where they differ by a tenth: some were cut, or answer together."""
    taken = {name: system["model_bytes"] for name, system in records.systems.items() if system.get("model_bytes")}
    shown = [name for name in taken if name in records.means]
    if not shown or max(taken[name] for name in shown) < 1.1 * min(taken[name] for name in shown):
        return None
    ends = set(records.pipelines())
    # Of more than four that take the same the best and the worst are named in the picture; all are under it.
    alike: dict[int, list[str]] = {}
    for name in sorted(shown, key=lambda name: -records.means[name]):
        alike.setdefault(round(math.log(taken[name]) / 0.02), []).append(name)
    named = {name for names in alike.values() for name in (names if len(names) <= 4 else (names[0], names[-1]))}

    def draw(figure: Any) -> None:
        axes, labels = figure.subplots(), []
        for name in shown:
            system = records.systems[name]
            together, dense = system["kind"] == "ensemble", system.get("representation") == "dense"
            colour = COLOURS[1] if together else COLOURS[0]
            x, y = taken[name] / 1e6, 100 * records.means[name]
            axes.plot([x], [y], "D" if together else "o", ms=7, mec=colour, mfc="none" if dense else colour, mew=1.8)
            if name in named:
                labels.append((x, y, clip(name), INK if name in ends or together else MUTED, name in ends))
        _draw_lexical(axes, records)
        axes.set_xlabel("MB of the models on the disk")
        axes.set_ylabel(_measured(records))
        axes.margins(x=0.15, y=0.12)
        place(figure, axes, labels)

    said = [f"{name} {points(records.means[name])} at {size(taken[name])}" for name in shown]
    shows = f"Systems by what their models take: {'; '.join(said)}. Diamonds answer together, hollow marks are dense."
    shows += " The dashed line needs no model." if records.baselines("lexical") else ""
    return make_plot("bytes", "Quality against bytes", shows, (8.6, 4.7), draw)


def _doubt(records: Records) -> str:
    """What a caption says of times that other work on the machine may have made longer."""
    if records.currency is TIME:
        return " The records do not say whether the machine had other work."
    idle = [pipeline for pipeline in records.pipelines() if not records.comparable(pipeline)]
    return f" Times not comparable: those of {listed(idle)}; see the answer." if idle else ""


def cost_plot(records: Records) -> Plot | None:
    """The cost of each pipeline, phase by phase."""
    pipelines = sorted(records.pipelines(), key=records.cost, reverse=True)
    if not pipelines:
        return None
    currency = records.currency
    unit, unit_name = currency.unit_of(records.cost(pipelines[0]))
    steps = list(dict.fromkeys(ph["name"] for p in reversed(pipelines) for ph in records.systems[p]["phases"]))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, pipeline in enumerate(pipelines):
            left = 0.0
            for phase in records.systems[pipeline]["phases"]:
                width = phase[currency.key] / unit
                colour = COLOURS[steps.index(phase["name"]) % len(COLOURS)]
                axes.barh(row, width, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.8)
                left += width
            total = currency.words(records.cost(pipeline))
            axes.annotate(total, (left, row), (6, 0), textcoords="offset points", va="center", fontweight="bold")
        axes.set_yticks(range(len(pipelines)), [clip(p, 26) for p in pipelines], color=INK)
        axes.set_xlabel(f"{currency.name}, {unit_name}")
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        handles = [axes.barh(0, 0, color=COLOURS[i % len(COLOURS)]) for i in range(len(steps))]
        names = [clip(step) for step in steps]
        figure.legend(handles, names, loc="outside upper left", ncols=4, frameon=False, handlelength=1)

    parts = [
        f"{p} {currency.words(records.cost(p))} ("
        + ", ".join(f"{ph['name']} {currency.words(ph[currency.key])}" for ph in records.systems[p]["phases"])
        + ")"
        for p in reversed(pipelines)
    ]
    rows = len(pipelines) + (len(steps) + 3) // 4
    shows = f"{currency.name.capitalize()} of each pipeline from zero, by phase: {'; '.join(parts)}."
    return make_plot("cost", f"Where the {currency.name} goes", shows, (8.6, 0.9 + 0.46 * rows), draw)


def _smooth(values: list[float]) -> list[float]:
    """Mean over a window of a twentieth of the curve, narrower at its ends."""
    reach = max(1, len(values) // 40)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _draw_validation(axes: Any, curve: list[Record]) -> None:
    """Mean scores on the small collections, on an axis of their own."""
    right = axes.twinx()
    steps, means = [point["step"] for point in curve], [100 * point["mean"] for point in curve]
    right.plot(steps, means, "o-", color=COLOURS[1], markersize=3.5, linewidth=1.2)
    right.tick_params(labelsize=8.5, labelcolor=COLOURS[1], length=0)
    right.locator_params(axis="y", nbins=4)
    right.grid(visible=False)


def loss_plot(records: Records) -> Plot | None:
    """A small curve a phase: every loss faint, their moving mean on top."""
    phases = [phase for phase in records.phases.values() if phase["losses"]]
    if not phases:
        return None
    columns, rows = min(3, len(phases)), math.ceil(len(phases) / 3)

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(phases) :]:
            axes.set_visible(False)
        for axes, phase in zip(grid.flat, phases, strict=False):
            steps = [point["step"] for point in phase["losses"]]
            losses = [point["loss"] for point in phase["losses"]]
            thin = math.ceil(len(steps) / 500)
            axes.plot(steps[::thin], losses[::thin], color=COLOURS[0], alpha=0.35, linewidth=0.8)
            axes.plot(steps[::thin], _smooth(losses)[::thin], color=COLOURS[0], linewidth=1.8)
            before = clip(" → ".join(phase["chain"][:-1]), 30)
            axes.set_title(clip(phase["name"], 30), loc="left", fontweight="bold", fontsize=10, pad=18)
            axes.annotate(
                f"after {before}" if before else "from the start",
                (0, 1),
                (0, 6),
                "axes fraction",
                "offset points",
                color=MUTED,
                fontsize=8.5,
                in_layout=False,
            )
            axes.tick_params(labelsize=8.5)
            axes.locator_params(nbins=4)
            if phase.get("validation"):
                _draw_validation(axes, phase["validation"])
        figure.supxlabel("step", fontsize=9, color=MUTED)
        figure.supylabel("loss", fontsize=9, color=MUTED)

    first_last = {
        chain_of(phase): (phase["losses"][0]["loss"], _smooth([point["loss"] for point in phase["losses"]])[-1])
        for phase in phases
    }
    ends = [f"{chain}: {first:.3g} to {last:.3g}" for chain, (first, last) in first_last.items()]
    shows = f"Training loss by step, every value faint and their moving mean on top: {'; '.join(ends)}."
    judged = {chain_of(phase): phase["validation"] for phase in phases if phase.get("validation")}
    if judged:
        scores = [
            f"{chain}: {points(curve[0]['mean'])} to {points(curve[-1]['mean'])}, "
            f"at best {points(max(point['mean'] for point in curve))}"
            for chain, curve in judged.items()
        ]
        shows += f" Dots, right: mean {MEASURE} × 100 on the validation collections: {'; '.join(scores)}."
    return make_plot("losses", "Loss of each phase", shows, (8.6, 0.5 + 2.1 * rows), draw)
