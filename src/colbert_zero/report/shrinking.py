"""What a model was cut to: tables and pictures, of its record alone."""

from typing import Any

from colbert_zero.report.drawing import COLOURS, INK, MUTED, Plot, make_plot, place
from colbert_zero.report.records import Record
from colbert_zero.report.words import points, size

AGREEMENT = "agreement"
"""What is measured without judgements: the share of each text's first ten that it finds after the cut too."""


def combination(point: Record) -> str:
    """A combination that was tried, in words.

    Example:
        >>> combination({"layers": 4, "neurons": 0.75, "vocabulary": True})
        '4 layers, 0.75 of the neurons, vocabulary cut'
    """
    said = [f"{point['layers']} layer{'s' if point['layers'] > 1 else ''}"]
    said += [f"{point['neurons']:g} of the neurons"] if point["neurons"] < 1 else []
    said += ["vocabulary cut"] if point["vocabulary"] else []
    return ", ".join(said)


def curve_lines(record: Record) -> list[str]:
    """The combinations that were tried, fewest bytes last, a line each; `→` stands before the one that is written."""
    shown = sorted(enumerate(record["tried"]), key=lambda item: -item[1]["bytes"])
    name = measure_in_words(record)
    rows = [("", "cut", "bytes", name, "difference, 95 %", "documents/s", "× as fast, 95 %")]
    for number, point in shown:
        low, high = (points(bound, signed=True) for bound in point["interval"])
        rows.append((
            "→" if number == record["best"] else "", combination(point), size(point["bytes"]), points(point["score"]),
            f"{points(point['difference'], signed=True)} ({low} to {high})", f"{point['documents_per_second']:.0f}",
            "{:.2f} ({:.2f} to {:.2f})".format(point["times_faster"], *point["times_faster_interval"]),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [str.ljust] * 2 + [str.rjust] * (len(widths) - 2)
    return ["  ".join(to(cell, w) for to, cell, w in zip(left, row, widths, strict=True)).rstrip() for row in rows]


def measure_in_words(record: Record) -> str:
    """What a record's scores are, × 100."""
    return "agreement × 100" if record["measure"] == AGREEMENT else f"{record['measure']} × 100"


def layer_lines(removals: list[Record]) -> list[str]:
    """What leaving out each layer does to token vectors, a line a step."""
    lines = []
    for removal in removals:
        tried = {**removal["others"], **({} if removal["layer"] is None else {removal["layer"]: removal["cosine"]})}
        said = ", ".join(f"{number} {cosine:.3f}" for number, cosine in sorted((int(n), c) for n, c in tried.items()))
        gone = "" if removal["layer"] is None else f"; out goes {removal['layer']}"
        lines.append(f"cosine of token vectors without layer {said}{gone}")
    return lines


def curve_plot(record: Record) -> Plot:
    """Score against bytes, and against documents a second."""
    tried, best = record["tried"], record["best"]
    # The mark says whether the vocabulary is cut.
    labels = [
        combination({**point, "neurons": 1.0, "vocabulary": False})
        + (f" × {point['neurons']:g}" if point["neurons"] < 1 else "")
        for point in tried
    ]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        ys = [100 * point["score"] for point in tried]
        for axes, xs, name in (
            (left, [point["bytes"] / 1e6 for point in tried], "MB on the disk"),
            (right, [point["documents_per_second"] for point in tried], "documents encoded a second"),
        ):
            for kind, colour in ((False, COLOURS[0]), (True, COLOURS[1])):
                some = [(x, y) for x, y, point in zip(xs, ys, tried, strict=True) if point["vocabulary"] is kind]
                label = "vocabulary cut" if kind else "vocabulary as it was"
                if some:
                    axes.plot(*zip(*some, strict=True), "s" if kind else "o", color=colour, ms=6, label=label)
            axes.plot(xs[best], ys[best], "o", ms=14, mec=INK, mfc="none", mew=1.4)
            axes.set_xlabel(name)
            axes.margins(x=0.2, y=0.15)
        left.axvline(record["target_bytes"] / 1e6, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
        left.set_ylabel(measure_in_words(record))
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=2, frameon=False)
        named = [(point["bytes"] / 1e6, y, words, INK if number == best else MUTED, number == best)
                 for number, (point, y, words) in enumerate(zip(tried, ys, labels, strict=True))]  # fmt: skip
        place(figure, left, named)

    shows = (
        "Each mark is a combination that was tried, of so many layers × the share of neurons; the dashed line is the "
        f"target, {size(record['target_bytes'])}, and the ring is what was written: {combination(tried[best])}, "
        f"{points(tried[best]['score'])} at {size(tried[best]['bytes'])}."
    )
    return make_plot("curve", "Score against bytes and speed", shows, (10.5, 4.7), draw)


def layers_plot(removals: list[Record]) -> Plot:
    """What leaving out each layer by itself does to token vectors: the first step's trials."""
    first = removals[0]
    tried = {**first["others"], **({} if first["layer"] is None else {first["layer"]: first["cosine"]})}
    cosines = {int(number): cosine for number, cosine in tried.items()}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, cosine in cosines.items():
            axes.barh(number, 1 - cosine, height=0.62, color=COLOURS[1 if number == first["layer"] else 0])
            axes.annotate(f"{1 - cosine:.3f}", (1 - cosine, number), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(sorted(cosines), [f"layer {number}" for number in sorted(cosines)], color=INK)
        axes.set_xlabel("1 − mean cosine of token vectors without it and with it")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)

    least = min(cosines, key=lambda number: 1 - cosines[number])
    shows = f"Layer {least} changes token vectors least when it is left out: {1 - cosines[least]:.3f}."
    return make_plot("layers", "What each layer does", shows, (7.4, 0.9 + 0.4 * len(cosines)), draw)


def heads_plot(sensitivity: Record) -> Plot:
    """What leaving out each head, and each larger part of a layer, does to token vectors: a row a layer."""
    layers, heads = len(sensitivity["heads"]), len(sensitivity["heads"][0])
    parts = {"attention": "all\nheads", "neurons": "feed-\nforward", "layers": "whole\nlayer"}
    wide = heads > _HEADS_WITH_NUMBERS

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[heads, 2 * len(parts)], sharey=True)
        of_parts = [[sensitivity[part][layer] for part in parts] for layer in range(layers)]
        for axes, rows, shown in ((left, sensitivity["heads"], not wide), (right, of_parts, True)):
            # Another scale each: a layer does some ten times as much as one of its heads.
            most = max((value for row in rows for value in row if value is not None), default=0) or 1.0
            values = [[float("nan") if value is None else value for value in row] for row in rows]
            axes.imshow(values, cmap="Blues", vmin=0, vmax=most, aspect="auto")
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            for y, row in enumerate(rows):
                for x, value in enumerate(row):
                    words = "–" if value is None else _decimals(value, most)
                    colour = "white" if value is not None and value > 0.6 * most else INK
                    if shown:
                        axes.text(x, y, words, ha="center", va="center", color=colour, fontsize=8)
        left.set_yticks(range(layers), [f"layer {number}" for number in range(layers)], color=INK)
        every = 1 if not wide else 4
        left.set_xticks(range(0, heads, every), [f"{number}" for number in range(0, heads, every)], color=INK)
        left.set_xlabel("head")
        right.set_xticks(range(len(parts)), list(parts.values()), color=INK)

    places = [(value, layer, head) for layer, row in enumerate(sensitivity["heads"]) for head, value in enumerate(row)]
    (least, *where_least), (most, *where_most) = min(places), max(places)
    shows = (
        "1 − mean cosine of token vectors without a part and with it, one part at a time, of "
        f"{sensitivity['texts']} texts; heads and larger parts are coloured by scales of their own. Head "
        f"{where_least[1]} of layer {where_least[0]} does least ({least:.4f}), head {where_most[1]} of layer "
        f"{where_most[0]} most ({most:.4f})."
    )
    size = (3.6 + (0.48 if not wide else 0.16) * heads + 1.0, 1.3 + 0.36 * layers)
    return make_plot("heads", "What each head and each part of a layer does", shows, size, draw)


_HEADS_WITH_NUMBERS = 16


def _decimals(value: float, most: float) -> str:
    """A number of a scale, without its leading 0."""
    words = f"{value:.3f}" if most < 0.1 else f"{value:.2f}"
    return words.removeprefix("0")
