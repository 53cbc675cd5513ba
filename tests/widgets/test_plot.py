"""Plots are small, show sensible numbers, lose no spike, and can be read on light and on dark pages."""

import base64
import math
import re
import warnings

import pytest

from widgets.plot import PAIRS, Curve, bars, lines, number, spark

TOP, BOTTOM = 6, 180  # px from the top of a plot that is 200 px high: the ends of its plane
LEFT, RIGHT = 46, 712


def svg(html: str) -> str:
    """The SVG of an image in HTML."""
    (data,) = re.findall(r"base64,([^\"]+)", html)
    return base64.b64decode(data).decode()


def points(html: str, name: str = "curve0") -> list[tuple[float, float]]:
    """What the shape of that name goes through, in px from the left and from the top."""
    path = re.search(rf'id="{name}"> <path d="([^"]+)"', svg(html))[1]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]


def numbers(html: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg(html))


LONG = [(x, 0.1 + 0.05 * math.sin(x * 12.9898)) for x in range(10_000)]


def test_a_long_curve_stays_small():
    html = lines([Curve("raw", LONG), Curve("smoothed", LONG)], title="Loss", x_label="step")
    assert len(points(html)) <= 2 * PAIRS and len(html) < 16_000


def test_a_spike_is_seen_however_thin_it_is():
    spiky = [(x, 5.0 if x == 7321 else 1.0) for x in range(10_000)]
    html = lines([Curve("", spiky)])
    assert min(y for _, y in points(html)) < TOP + (BOTTOM - TOP) / 4 and len(points(html)) <= 2 * PAIRS


def test_a_curve_ends_where_its_points_end_and_its_last_value_is_shown():
    html = lines([Curve("loss", [*LONG, (10_000, 0.1234)])])
    assert points(html)[0][0] == LEFT and points(html)[-1][0] == RIGHT
    assert "loss 0.1234" in html


def test_numbers_at_the_axes_are_round():
    shown = numbers(lines([Curve("", [(0, 0.0), (9_870, 0.0173)])]))
    assert {"0", "0.005", "0.01", "0.015", "2000", "4000"} <= set(shown)
    shown = numbers(lines([Curve("", [(0, 2.0), (5, 2.0)])], x_label="epoch"))
    assert "2" in shown and "epoch 5" in shown


def test_a_logarithmic_axis_gives_every_power_the_same_room():
    html = lines([Curve("", [(i, 10.0**-i) for i in range(4)])], log_y=True)
    ys = [y for _, y in points(html)]
    assert {"0.001", "0.01", "0.1", "1"} <= set(numbers(html))
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.3) == pytest.approx(ys[3] - ys[2], abs=0.3)


def test_a_mark_stands_where_it_belongs():
    html = lines([Curve("", [(0, 1.0), (100, 2.0)])], marks=(50.0, 101.0))
    assert {x for x, _ in points(html, "mark50")} == {(LEFT + RIGHT) / 2} and "mark101" not in svg(html)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_left_out(bad):
    assert len(points(lines([Curve("", [(0, 1.0), (1, bad), (2, 3.0)])]))) == 2
    assert lines([Curve("", [(0, bad)])]) == "" == lines([])


def test_a_plot_is_an_image_without_a_ground_whose_letters_are_text():
    html = lines([Curve("a", [(0, 1.0), (1, 2.0)])], title="Loss")
    assert "<svg" not in html and "<style" not in html and "max-width:720px" in html
    assert not re.search(r"black|white|#000|#fff", svg(html)) and "<text" in svg(html)


def test_a_chinese_label_is_shown_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "步 1" in numbers(lines([Curve("", [(0, 1.0), (1, 2.0)])], x_label="步"))


def test_names_cannot_bring_html():
    html = lines([Curve("<b>x", [(0, 1.0), (1, 2.0)])], title="<script>", x_label="<i>")
    assert "<script>" not in html and "<b>x" not in html and "<i>" not in svg(html)


def test_bars_are_as_high_as_their_numbers():
    html = bars([1.0, 2.0, 4.0], 0, 1, level=1)
    heights = [BOTTOM - min(y for _, y in points(html, f"bar{i}")) for i in range(3)]
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.5) == pytest.approx(4 * heights[0], abs=1)
    assert all(BOTTOM - y == pytest.approx(heights[0], abs=0.3) for _, y in points(html, "level"))


def test_a_spark_is_a_few_hundred_bytes():
    assert 0 < len(spark(LONG)) < 2_000 and spark(LONG[:1]) == ""


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (1e-4, "1e-4"), (0.00025, "2.5e-4"), (0.0123, "0.0123"), (250, "250"), (12345.6, "12346")]
)
def test_a_number_is_as_short_as_can_be(value, text):
    assert number(value) == text
