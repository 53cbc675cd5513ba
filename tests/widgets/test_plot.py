"""Plots are small, tell sensible numbers, and lose no spike."""

import base64
import math
import re

import pytest

from widgets.plot import PAIRS, SIZE, Curve, bars, lines, number, spark


def drawn(html: str) -> str:
    """The SVG of all its images."""
    return "".join(base64.b64decode(data).decode() for data in re.findall(r"base64,([^\"]+)", html))


def points(html: str, place: int = 0) -> list[tuple[float, float]]:
    """What the curve at `place` goes through, on a plane of SIZE x SIZE with y down."""
    lines = re.findall(r'<polyline points="([^"]+)"', drawn(html))
    return [tuple(map(float, pair.split(","))) for pair in lines[place].split()]


def numbers(html: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn(html))


LONG = [(x, 0.1 + 0.05 * math.sin(x * 12.9898)) for x in range(10_000)]


def test_a_long_curve_stays_small():
    html = lines([Curve("raw", LONG), Curve("smoothed", LONG)], title="Loss", x_label="step")
    assert len(points(html)) <= 2 * PAIRS and len(html) < 12_000


def test_a_spike_is_seen_however_thin_it_is():
    spiky = [(x, 5.0 if x == 7321 else 1.0) for x in range(10_000)]
    thinned = points(lines([Curve("", spiky)]))
    assert min(y for _, y in thinned) < SIZE / 4 and len(thinned) <= 2 * PAIRS


def test_a_curve_ends_where_its_points_end_and_its_last_value_is_told():
    html = lines([Curve("loss", [*LONG, (10_000, 0.1234)])])
    assert points(html)[0][0] == 0 and points(html)[-1][0] == SIZE
    assert "loss 0.1234" in html


def test_numbers_at_the_axes_are_round():
    told = numbers(lines([Curve("", [(0, 0.0), (9_870, 0.0173)])]))
    assert {"0", "0.005", "0.01", "0.015", "2000", "4000"} <= set(told)
    told = numbers(lines([Curve("", [(0, 2.0), (5, 2.0)])], x_label="epoch"))
    assert "2" in told and "epoch 5" in told


def test_a_logarithmic_axis_gives_every_power_the_same_room():
    rising = lines([Curve("", [(i, 10.0**-i) for i in range(4)])], log_y=True)
    ys = [y for _, y in points(rising)]
    assert {"0.001", "0.01", "0.1", "1"} <= set(numbers(rising))
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=2) == pytest.approx(ys[3] - ys[2], abs=2)


def test_a_mark_stands_where_it_belongs():
    assert f"M{SIZE // 2} 0V{SIZE}" in drawn(lines([Curve("", [(0, 1.0), (100, 2.0)])], marks=(50.0,)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out(bad):
    assert len(points(lines([Curve("", [(0, 1.0), (1, bad), (2, 3.0)])]))) == 2
    assert lines([Curve("", [(0, bad)])]) == "" == lines([])


def test_letters_keep_their_size_and_everything_else_takes_the_page_s_width():
    html = lines([Curve("a", [(0, 1.0), (1, 2.0)])], title="Loss")
    assert "<svg" not in html and "<style" not in html and "black" not in html
    assert drawn(html).count("<svg xmlns") == 2 and 'preserveAspectRatio="none"' in drawn(html)


def test_names_cannot_bring_html():
    html = lines([Curve("<b>x", [(0, 1.0), (1, 2.0)])], title="<script>")
    assert "<script>" not in html and "<b>x" not in html


def test_bars_are_as_high_as_their_numbers():
    shapes = drawn(bars([1.0, 2.0, 4.0], 0, 1, level=1))
    tops = [SIZE - int(top) for top in re.findall(rf"M\d+ {SIZE}V(\d+)h", shapes)]
    assert tops[2] == pytest.approx(2 * tops[1], abs=2) == pytest.approx(4 * tops[0], abs=4)
    assert "stroke-dasharray" in shapes


def test_a_spark_is_a_few_hundred_bytes():
    assert 0 < len(spark(LONG)) < 1_500 and spark(LONG[:1]) == ""


@pytest.mark.parametrize(
    "value, told", [(0, "0"), (1e-4, "1e-4"), (0.00025, "2.5e-4"), (0.0123, "0.0123"), (250, "250"), (12345.6, "12346")]
)
def test_a_number_is_as_short_as_can_be(value, told):
    assert number(value) == told
