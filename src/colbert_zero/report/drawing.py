"""How the report draws: figures kept as SVG and PNG, one palette, labels that cover nothing."""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Okabe and Ito's palette: told apart with any kind of colour vision, on white and on black.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]
INK, MUTED, RULE = "#1b1e23", "#5c636d", "#d8dbe0"


@dataclass(frozen=True)
class Plot:
    """A drawing twice over: SVG that follows the page's colours, and PNG for the Markdown file."""

    name: str
    title: str
    shows: str
    svg: str
    png: bytes


def make_plot(name: str, title: str, shows: str, size: tuple[float, float], draw: Callable[[Any], None]) -> Plot:
    """Let `draw` fill a figure of this size in inches, and keep it as SVG and PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.fonttype": "none",  # the page's own font, text that can be selected
        "svg.hashsalt": name,  # without a fixed salt, each drawing has other ids
        "text.parse_math": False,  # a name with dollar signs is a name
        "font.size": 10,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The PNG's font lacks some scripts: boxes there, while the SVG and the tables show the names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Plot(name, title, shows, _inline(svg.getvalue(), name), png.getvalue())


def _inline(svg: str, name: str) -> str:
    """SVG fit to stand in a page: no prologue, ids of its own, and the page's colours for ink and rules."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, css in ((INK, "currentColor"), (MUTED, "var(--muted)"), (RULE, "var(--rule)")):
        svg = svg.replace(colour, css)
    return svg


def _annotate(axes: Any, label: tuple[float, float, str, str, bool], dx: float, dy: float) -> Any:
    x, y, words, colour, strong = label
    return axes.annotate(
        words,
        (x, y),
        (dx, dy),
        textcoords="offset points",
        ha="center" if dx == 0 else "left" if dx > 0 else "right",
        va="center" if dy == 0 else "bottom" if dy > 0 else "top",
        color=colour,
        fontsize=10 if strong else 8.5,
        fontweight="bold" if strong else "normal",
    )


def place(figure: Any, axes: Any, labels: list[tuple[float, float, str, str, bool]]) -> None:
    """Write each (x, y, words, colour, strong) beside its point where it covers nothing.

    A weak label without such a place is left out, a strong one stands to the right of its point all the same.
    """
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    taken = [text.get_window_extent(renderer) for text in axes.texts]
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        dots = [a + step / 40 * (b - a) for a, b in pairwise(corners) for step in range(41)]
        taken += [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in [*corners, *dots]]
    spots = [(9, 0), (0, 9), (0, -9), (-9, 0), (7, 7), (7, -7), (-7, 7), (-7, -7), (0, 18), (0, -18)]
    for label in sorted(labels, key=lambda label: not label[4]):
        for dx, dy in spots:
            text = _annotate(axes, label, dx, dy)
            box = text.get_window_extent(renderer)
            inside = axes.bbox.x0 < box.x0 and axes.bbox.y0 < box.y0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            if label[4]:
                box = _annotate(axes, label, *spots[0]).get_window_extent(renderer)
        taken.append(box)


def clip(name: str, length: int = 34) -> str:
    """A name on one line, cut in its middle if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def log_axis(axes: Any) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
