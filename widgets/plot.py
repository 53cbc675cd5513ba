"""The one way to draw curves in a cell: small images that every notebook keeps, on light and on dark pages."""

from __future__ import annotations

import base64
import html
import math
from dataclasses import dataclass

from widgets.page import BLUE, GREY

PAIRS = 150  # of points of a curve that are drawn at most: the lowest and the highest of each stretch
SPARK = 24  # the same of a curve as small as a word
SIZE = 1000  # of the plane that curves are drawn in; it is stretched to the room that there is
LEFT, TOP, BOTTOM = 46, 6, 20  # px around it, for the numbers
OUTLIERS = 0.98  # when there are many points, so many of them decide how high the image is


@dataclass(frozen=True)
class Curve:
    """A line through `points` (x, y) with rising x; `width` in px. A curve without a name is not in the legend."""

    name: str
    points: list[tuple[float, float]]
    colour: str = BLUE
    width: float = 2
    dashed: bool = False
    opacity: float = 1


@dataclass(frozen=True)
class Scale:
    """Where numbers from `low` to `high` are placed along an axis, 0 to 1."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            return math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        """About `count` numbers that are easy to read."""
        if self.log and math.log10(self.high / self.low) >= 1:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = len(powers) > count / 2
            found = [digit * 10.0**power for power in powers for digit in ((1,) if few else (1, 2, 5))]
            return [value for value in found if self.low <= value <= self.high * 1.0001]
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def lines(
    curves: list[Curve],
    *,
    title: str = "",
    x_label: str = "",
    log_y: bool = False,
    marks: tuple[float, ...] = (),
    width: int = 720,
    height: int = 200,
) -> str:
    """HTML of a plot at most `width` px wide and `height` px high; the legend tells each curve's last value.

    `marks` are x of faint vertical lines. Points that are not finite (with `log_y`: not above 0) are left out. "" when
    no curve has points. A few spikes among many points may leave the image.
    """
    good = [[(x, y) for x, y in curve.points if math.isfinite(y) and (y > 0 or not log_y)] for curve in curves]
    if not any(good):
        return ""
    xs = Scale(*_apart(min(p[0][0] for p in good if p), max(p[-1][0] for p in good if p)))
    ys = _heights([y for points in good for _, y in points], log_y)
    drawn = [
        f'<path d="M{xs.place(mark) * SIZE:.0f} 0V{SIZE}" stroke="{GREY}" stroke-opacity=".5" stroke-dasharray="2 3" '
        f'fill="none" vector-effect="non-scaling-stroke"/>'
        for mark in marks
        if xs.low < mark < xs.high
    ]
    for curve, points in zip(curves, good, strict=True):
        if points:
            drawn.append(_line(curve, _thinned(points), xs, ys))
    legend = [
        f'<span style="white-space:nowrap"><span style="color:{curve.colour};opacity:{max(curve.opacity, 0.6)}">'
        f"{'╌' if curve.dashed else '━'}</span> {html.escape(curve.name)} {number(points[-1][1], 4)}</span>"
        for curve, points in zip(curves, good, strict=True)
        if curve.name and points
    ]
    return _figure(drawn, xs, ys, title, legend, x_label, width, height)


def bars(
    heights: list[float],
    low: float,
    high: float,
    *,
    title: str = "",
    x_label: str = "",
    level: float | None = None,
    width: int = 720,
    height: int = 200,
) -> str:
    """HTML of bars over equal stretches of low..high, with a dashed line at `level`; sizes as in `lines`."""
    ys = Scale(0, max(*heights, level or 0) * 1.05)
    step = SIZE / len(heights)
    columns = (f"M{i * step:.0f} {SIZE}V{_down(ys, bar)}h{step * 0.9:.0f}V{SIZE}z" for i, bar in enumerate(heights))
    drawn = [f'<path d="{"".join(columns)}" fill="{BLUE}"/>']
    if level is not None:
        even = Curve("", [(low, level), (high, level)], GREY, 1.5, dashed=True)
        drawn.append(_line(even, even.points, Scale(low, high), ys))
    return _figure(drawn, Scale(low, high), ys, title, [], x_label, width, height)


def spark(points: list[tuple[float, float]], width: int = 96, height: int = 18) -> str:
    """<img> of a curve without numbers, as large as a word; "" for fewer than two points."""
    if len(points) < 2:
        return ""
    xs, ys = Scale(points[0][0], points[-1][0]), _heights([y for _, y in points], log=False)
    line = _line(Curve("", points, width=1.5), _thinned(points, SPARK), xs, ys)
    plane = f'<svg width="100%" height="100%" viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none">{line}</svg>'
    return _image([plane], f"{width}px", height, "vertical-align:middle;display:inline")


def number(value: float, digits: int = 3) -> str:
    """A number as short as can be: 0.0123, 250, 1e-4."""
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def _apart(low: float, high: float) -> tuple[float, float]:
    """Two ends that differ."""
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _heights(values: list[float], log: bool) -> Scale:
    """What is shown of the values: all but far outliers, from 0 if that is not far below them."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    most = ordered[int(OUTLIERS * (len(ordered) - 1))]
    if len(ordered) >= 50 and high - most > most - low > 0:
        high = most
    if log:
        return Scale(low / 1.2, high * 1.2, log=True)
    low, high = _apart(low, high)
    room = (high - low) * 0.06
    return Scale(0 if 0 <= low < 0.3 * high else low - room, high + room)


def _down(ys: Scale, y: float) -> int:
    """y as a distance from the top of the plane; what would leave it stays at its edge."""
    return round(SIZE * (1 - min(1.0, max(0.0, ys.place(y)))))


def _thinned(points: list[tuple[float, float]], pairs: int = PAIRS) -> list[tuple[float, float]]:
    """The first and the last point and the extremes between, so that no spike and no restart is lost."""
    if len(points) <= 2 * pairs:
        return points
    inner, found = points[1:-1], [points[0]]
    share = len(inner) / (pairs - 1)
    for i in range(pairs - 1):
        stretch = inner[round(i * share) : round((i + 1) * share)]
        found += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [*found, points[-1]]


def _line(curve: Curve, points: list[tuple[float, float]], xs: Scale, ys: Scale) -> str:
    placed = " ".join(f"{xs.place(x) * SIZE:.0f},{_down(ys, y)}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if curve.dashed else ""
    return (
        f'<polyline points="{placed}" fill="none" stroke="{curve.colour}" stroke-width="{curve.width}" '
        f'stroke-opacity="{curve.opacity}" stroke-linejoin="round" vector-effect="non-scaling-stroke"{dashes}/>'
    )


def _figure(
    drawn: list[str], xs: Scale, ys: Scale, title: str, legend: list[str], x_label: str, width: int, height: int
) -> str:
    """The plane, numbers at its edges, and the page's own text above it.

    Two images, because only the right one is stretched to the width of the page; letters keep their size.
    """
    plane, numbers, marks = height - TOP - BOTTOM, [], []
    for y in ys.ticks(4):
        at = TOP + plane * (1 - ys.place(y))
        numbers.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>')
        marks.append(f'<path d="M0 {at:.1f}h4000" stroke="{GREY}" stroke-opacity=".25"/>')
    ticks = [(number(x, 6), xs.place(x)) for x in xs.ticks(5)]
    if x_label:  # says where the axis ends
        ticks = [tick for tick in ticks if tick[1] < 0.67] + [(f"{x_label} {number(xs.high, 6)}", 1.0)]
    for text, share in ticks:
        anchor = "start" if share < 0.02 else "end" if share > 0.98 else "middle"
        marks.append(f'<text x="{100 * share:.1f}%" y="{height - 5}" text-anchor="{anchor}">{html.escape(text)}</text>')
    marks.append(
        f'<svg y="{TOP}" width="100%" height="{plane}" viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none">'
        f"{''.join(drawn)}</svg>"
    )
    name = [f"<b>{html.escape(title)}</b>"] if title else []
    above = f'<div style="font-size:12px;line-height:1.5">{" &emsp;".join([*name, *legend])}</div>'
    return (
        f'<div style="max-width:{width}px;margin:8px 0">{above if name or legend else ""}'
        f"{_image(numbers, f'{LEFT}px', height, 'float:left')}"
        f'<div style="margin-left:{LEFT}px">{_image(marks, "100%", height, "display:block")}</div></div>'
    )


def _image(drawn: list[str], width: str, height: int, style: str) -> str:
    """As an <img>: JupyterLab strips SVG elements from a notebook that it opens again."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11" fill="{GREY}">{"".join(drawn)}</svg>'
    )
    data = base64.b64encode(svg.encode()).decode()
    return f'<img style="{style};width:{width};height:{height}px" src="data:image/svg+xml;base64,{data}">'
