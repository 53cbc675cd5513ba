"""Curves and bars in a cell: small SVG images by matplotlib that every notebook keeps, on light and on dark pages."""

from __future__ import annotations

import base64
import html
import io
import math
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from widgets.page import BLUE, GREY, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# (lowest, highest) pairs of points that are drawn of a curve at most, however long the run is.
PAIRS = 150
SPARK_PAIRS = 24  # the same for a curve as small as a word
HEIGHT = 200  # px of a plot
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 6, 20  # px around the plane, for the numbers at its edges
# Of many points the lower 98 % decide the height of the plot, so that one spike does not flatten the rest.
OUTLIERS = 0.98
# Comes with matplotlib, which measures text by it; the page shows its own sans-serif.
FONT = "DejaVu Sans"
STYLE = {
    # Letters stay text: smaller files, and the page's own font.
    "svg.fonttype": "none",
    # Without a fixed salt each SVG has other ids, and equal plots differ in their bytes.
    "svg.hashsalt": "lorakit",
    "font.family": [FONT],
    "font.size": 11,
}


@dataclass(frozen=True)
class Curve:
    """A line through `points` (x, y) with rising x; `width` in px. A curve without a name is not in the legend."""

    name: str
    points: list[tuple[float, float]]
    colour: str = BLUE
    width: float = 2
    dashed: bool = False
    opacity: float = 1


def lines(
    curves: list[Curve],
    *,
    title: str = "",
    x_label: str = "",
    log_y: bool = False,
    marks: tuple[float, ...] = (),
    height: int = HEIGHT,
) -> str:
    """HTML of a plot at most WIDTH px wide, and then `height` px high; the legend shows each curve's last value.

    `marks` are x of faint vertical lines. Points that are not finite (with `log_y`: not above 0) are left out. "" when
    no curve has points. A few spikes among many points may leave the image.
    """
    # A value that is not finite, as after an overflow, would break the curve.
    finite = [[(x, y) for x, y in curve.points if math.isfinite(y) and (y > 0 or not log_y)] for curve in curves]
    if not any(finite):
        return ""
    figure, axes = _plane(WIDTH, height)
    if log_y:
        axes.set_yscale("log")
    # Points have rising x, so that the first and the last are the ends.
    axes.set_xlim(*_apart(min(p[0][0] for p in finite if p), max(p[-1][0] for p in finite if p)))
    axes.set_ylim(*_heights([y for points in finite for _, y in points], log_y))
    low, high = axes.get_xlim()
    for mark in marks:
        # A line at an edge would look like a frame.
        if low < mark < high:
            axes.axvline(mark, color=GREY, alpha=0.5, linewidth=1, linestyle=(0, (2, 3)), gid=f"mark{mark:g}")
    for place, (curve, points) in enumerate(zip(curves, finite, strict=True)):
        if points:
            _draw(axes, curve, _thinned(points), f"curve{place}")
    _number_edges(axes, x_label)
    legend = [
        f'<span style="white-space:nowrap"><span style="color:{curve.colour};opacity:{max(curve.opacity, 0.6)}">'
        f"{'╌' if curve.dashed else '━'}</span> {html.escape(curve.name)} {number(points[-1][1], 4)}</span>"
        for curve, points in zip(curves, finite, strict=True)
        if curve.name and points
    ]
    return _as_html(figure, title, legend)


def bars(
    heights: list[float],
    low: float,
    high: float,
    *,
    title: str = "",
    x_label: str = "",
    level: float | None = None,
) -> str:
    """HTML of bars over equal intervals of low..high, with a dashed line at `level`; as large as `lines`."""
    figure, axes = _plane(WIDTH, HEIGHT)
    step = (high - low) / len(heights)
    lefts = [low + i * step for i in range(len(heights))]
    for i, bar in enumerate(axes.bar(lefts, heights, 0.9 * step, align="edge", color=BLUE, linewidth=0)):
        # The name becomes the id of the shape in the SVG: tests and browsers find it by that.
        bar.set_gid(f"bar{i}")
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=1.5, linestyle="--", gid="level")
    axes.set_xlim(low, high)
    # Bars begin at 0, else their heights could not be compared; 5 % of air above.
    axes.set_ylim(0, max(*heights, level or 0) * 1.05)
    _number_edges(axes, x_label)
    return _as_html(figure, title, [])


def spark(points: list[tuple[float, float]], width: int = 96, height: int = 18) -> str:
    """<img> of a curve without numbers, as large as a word; "" for fewer than two points."""
    if len(points) < 2:
        return ""
    figure, axes = _plane(width, height, edges=(0, 0, 0, 0))
    axes.set_axis_off()
    axes.set_xlim(points[0][0], points[-1][0])
    axes.set_ylim(*_heights([y for _, y in points], log=False))
    _draw(axes, Curve("", points, width=1.5), _thinned(points, SPARK_PAIRS), "curve0")
    return f'<img style="vertical-align:middle;width:{width}px;height:{height}px" src="{_source(figure)}">'


def number(value: float, digits: int = 3) -> str:
    """A number as short as can be: 0.0123, 250, 1e-4."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


# ---- drawing --------------------------------------------------------------------------------------------------------


def _apart(low: float, high: float) -> tuple[float, float]:
    """Two ends that differ."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _heights(values: list[float], log: bool) -> tuple[float, float]:
    """The range of y that is shown: all but far outliers, from 0 if that is not far below them."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    most = ordered[int(OUTLIERS * (len(ordered) - 1))]
    # Outliers: a few of many values lie further from the others than those do from the lowest.
    if len(ordered) >= 50 and high - most > most - low > 0:
        high = most
    if log:
        return low / 1.2, high * 1.2
    low, high = _apart(low, high)
    # 6 % of air, so that a flat curve does not lie on the edge.
    room = (high - low) * 0.06
    return (0 if 0 <= low < 0.3 * high else low - room), high + room


def _thinned(points: list[tuple[float, float]], pairs: int = PAIRS) -> list[tuple[float, float]]:
    """The first and the last point and the extremes between, so that no spike is lost."""
    if len(points) <= 2 * pairs:
        return points
    inner, kept = points[1:-1], [points[0]]
    # Points per stretch; not rounded, so that stretches differ by one point at most.
    share = len(inner) / (pairs - 1)
    for i in range(pairs - 1):
        stretch = inner[round(i * share) : round((i + 1) * share)]
        # a set: where a stretch is flat, both are the same point
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [*kept, points[-1]]


def _plane(
    width: int, height: int, edges: tuple[int, int, int, int] = (LEFT, RIGHT, TOP, BOTTOM)
) -> tuple[Figure, Axes]:
    """A figure of so many px without a ground, and its axes inside the edges; nothing on it is black or white."""
    # Not pyplot: it would keep every figure, and choose a backend for the whole kernel. Imported here, as it takes
    # a second that a view without plots need not wait for.
    import matplotlib
    from matplotlib.figure import Figure

    left, right, top, bottom = edges
    # At 72 dpi a point is a px, so that sizes of letters and lines are px as well.
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        inside = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        axes = figure.add_axes(inside, facecolor="none")
    axes.spines[:].set_visible(False)
    axes.margins(0)
    return figure, axes


def _draw(axes: Axes, curve: Curve, points: list[tuple[float, float]], name: str) -> None:
    xs, ys = zip(*points, strict=True)
    style = {"color": curve.colour, "linewidth": curve.width, "alpha": curve.opacity, "gid": name}
    (line,) = axes.plot(xs, ys, linestyle=(0, (4, 3)) if curve.dashed else "-", solid_joinstyle="round", **style)
    # The points are thinned already; matplotlib would drop more of them.
    line.get_path().should_simplify = False


def _number_edges(axes: Axes, x_label: str) -> None:
    """Few round numbers at both edges; the last one on the x axis is its end, with the label."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = axes.get_xlim()
    ticks = [x for x in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= x <= high]
    texts = [number(x, 6) for x in ticks]
    # The label stands at the right end, where the last numbers would run into it.
    if x_label:
        ticks = [x for x in ticks if (x - low) / (high - low) < 0.67]
        texts = [*(number(x, 6) for x in ticks), f"{x_label} {number(high, 6)}"]
        ticks.append(high)
    axes.set_xticks(ticks, texts)
    # Numbers at the ends stay inside the image.
    for x, label in zip(ticks, axes.get_xticklabels(), strict=True):
        share = (x - low) / (high - low)
        label.set_horizontalalignment("left" if share < 0.02 else "right" if share > 0.98 else "center")
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.tick_params(length=0, labelcolor=GREY, pad=4)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=1)
    # Grid lines behind the curves.
    axes.set_axisbelow(True)


def _as_html(figure: Figure, title: str, legend: list[str]) -> str:
    """The image, and the page's own text above it: that has the page's colour, and any script."""
    name = [f"<b>{html.escape(title)}</b>"] if title else []
    above = f'<div style="font-size:12px;line-height:1.5">{" &emsp;".join([*name, *legend])}</div>'
    return (
        f'<div style="max-width:{WIDTH}px;margin:8px 0">{above if name or legend else ""}'
        f'<img style="display:block;width:100%" alt="{html.escape(title)}" src="{_source(figure)}"></div>'
    )


def _source(figure: Figure) -> str:
    """`src` of an <img>: JupyterLab strips SVG elements from a notebook that it opens again, but keeps images."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The font that matplotlib measures by has no Chinese; the page's own, which shows the text, has.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # Line breaks and the XML head are dropped, as the image is saved with the notebook.
    svg = re.sub(r"<[^>]+>", _short, re.sub(r"\s+", " ", file.getvalue()[file.getvalue().index("<svg") :]))
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _short(element: re.Match[str]) -> str:
    """An element of an SVG with coordinates to a tenth of a px: half as many bytes."""
    text = re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.1f}".removesuffix(".0"), element[0])
    return text.replace(f"'{FONT}'", "sans-serif")
