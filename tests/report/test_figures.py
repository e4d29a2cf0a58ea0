"""Scales, marks and charts: places, words, and that nothing is drawn outside of its canvas."""

import math
import re

import numpy as np
import pytest

from jaxalign.report.curves import running_mean, thinned, unbroken
from jaxalign.report.histograms import bar_chart, square_grid
from jaxalign.report.lines import Curve, LineAxes, line_chart
from jaxalign.report.palette import DARK, LIGHT, SHAPES
from jaxalign.report.panels import Panel, Strip, panel_grid
from jaxalign.report.rows import Interval, Row, RowAxis, Series, row_chart
from jaxalign.report.scales import Scale, domain, figure, tick_text
from jaxalign.report.svg import Box, Dot, Drawing, Label, Line, Path, fit, text_width, to_svg

STEPS = np.arange(1, 501)
SERIES = (Series("before", "muted", hollow=True), Series("after", "accent"))
WIDTHS = (343.0, 760.0)


def rows(count: int, name: str = "Endangering National Security") -> list[Row]:
    return [
        Row(f"{name} {k}", [Interval(0.5), Interval(0.9, 0.8, 0.95, (0.85, 0.92))], "+40.0", 0.95)
        for k in range(count)
    ]


def charts(width: float) -> dict[str, Drawing]:
    """One drawing of each kind, with long names and many rows."""
    wave = 0.5 + 0.4 * np.sin(STEPS / 30.0)
    strips = [Strip(wave, 0.0, 1.0, "accent", 42, 0.05), Strip(2 * wave, 0.0, 2.0, "soft", 20)]
    panels = [Panel(f"Discriminatory Behavior {k}", "12 % · 0.80", strips, warn=True) for k in range(19)]
    curves = [Curve(one, STEPS, wave) for one in SERIES]
    edges = np.linspace(0.0, 1.0, 25).tolist()
    grid = np.arange(576).reshape(24, 24).tolist()
    axis = RowAxis(0.4, 1.0, "rate", 0.5, "gain")
    return {
        "rows": row_chart(rows(19), SERIES, axis, width=width, description="x"),
        "panels": panel_grid(panels, STEPS, width=width, description="x"),
        "lines": line_chart(curves, LineAxes("rate", 0.3, (20, 50), (6,)), width=width, description="x"),
        "bars": bar_chart(edges, list(range(24)), width=width, description="x", threshold=0.5),
        "grid": square_grid(edges, grid, width=width, names=("a", "b"), description="x"),
    }


def reach(mark) -> list[tuple[float, float]]:
    """The corners of what a mark covers; a label by its estimated width."""
    match mark:
        case Line():
            return [mark.start, mark.end]
        case Path():
            return list(mark.points)
        case Box():
            return [(mark.x, mark.y), (mark.x + mark.width, mark.y + mark.height)]
        case Dot():
            x, y = mark.at
            return [(x - mark.radius, y - mark.radius), (x + mark.radius, y + mark.radius)]
        case Label():
            x, y = mark.at
            width = text_width(mark.text, mark.size)
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[mark.anchor]
            return [(left, y - 0.8 * mark.size), (left + width, y + 0.2 * mark.size)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", charts(760.0))
def test_nothing_is_drawn_outside_of_the_canvas(name, width):
    drawing = charts(width)[name]
    for mark in drawing.marks:
        for x, y in reach(mark):
            assert -3 <= x <= drawing.width + 3, mark
            assert -3 <= y <= drawing.height + 3, mark


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", charts(760.0))
def test_labels_do_not_lie_on_each_other(name, width):
    drawing = charts(width)[name]
    boxes = [reach(mark) for mark in drawing.marks if isinstance(mark, Label)]
    for i, ((left, top), (right, bottom)) in enumerate(boxes):
        for (other_left, other_top), (other_right, other_bottom) in boxes[:i]:
            beside = left >= other_right - 1 or other_left >= right - 1
            assert beside or top >= other_bottom - 1 or other_top >= bottom - 1


def test_every_mark_has_a_colour_in_both_palettes():
    roles = {mark.role for drawing in charts(760.0).values() for mark in drawing.marks}
    assert roles <= LIGHT.keys() == DARK.keys()


def test_text_of_labels_and_titles_is_escaped():
    text = '<script>"x"</script>'
    marks = [
        Label((0, 10), text, title=text),
        Dot((5, 5), "accent", title=text),
        Box(0, 0, 1, 1, "accent", title=text),
    ]
    svg = to_svg(Drawing(10, 10, marks, text))
    assert "<script>" not in svg
    assert svg.count("&lt;script&gt;") == 5
    assert 'aria-label="&lt;script&gt;&#34;' in svg


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_drawn(shape):
    svg = to_svg(Drawing(10, 10, [Dot((5, 5), "run1", shape=shape, hollow=True)], "x"))
    assert 'class="h-run1"' in svg
    assert ("<circle" in svg) == (shape == "circle")


def test_interval_without_a_value_is_not_drawn():
    axis = RowAxis(0.0, 1.0, "rate")
    row = Row("a", [None, Interval(math.nan)])
    drawing = row_chart([row], SERIES, axis, width=760.0, description="x")
    assert not [mark for mark in drawing.marks if isinstance(mark, Dot) and mark.at[1] > 30]


def test_long_name_is_cut_and_kept_in_its_title():
    drawing = row_chart(rows(1, "x" * 90), SERIES, RowAxis(0.0, 1.0, "rate"), width=343.0, description="x")
    (label,) = [mark for mark in drawing.marks if isinstance(mark, Label) and mark.title.startswith("x")]
    assert label.text.endswith("…")
    assert label.title == "x" * 90 + " 0"


def test_only_what_lies_above_the_target_is_shaded():
    below = Panel("a", "", [Strip(np.full(500, 0.04), 0.0, 1.0, "accent", 40, 0.05)])
    above = Panel("a", "", [Strip(np.full(500, 0.4), 0.0, 1.0, "accent", 40, 0.05)])
    shaded = [
        [m for m in panel_grid([p], STEPS, width=343.0, description="x").marks if m.role == "warn"]
        for p in (below, above)
    ]
    assert [len(found) for found in shaded] == [0, 1]


def test_bins_below_the_threshold_are_warned_of():
    drawing = bar_chart([0.0, 0.5, 1.0], [3, 4], width=343.0, description="x", threshold=0.5)
    assert [mark.role for mark in drawing.marks if isinstance(mark, Box)] == ["warn", "accent"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.1, 2.2, [-2.0, 0.0, 2.0]), (2.0, 2.0, [2.0])],
)
def test_ticks_are_round_and_within(low, high, expected):
    assert Scale(low, high, 0, 1).ticks(5) == pytest.approx(expected)


def test_scale_keeps_values_on_the_canvas():
    scale = Scale(0.0, 2.0, 100.0, 0.0)
    assert [scale(v) for v in (-1.0, 0.0, 1.0, 5.0)] == [100.0, 100.0, 50.0, 0.0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.934, "rate", "93 %"),
        (0.071, "rate", "7.1 %"),
        (0.05, "rate", "5 %"),
        (-0.034, "points", "−3.4"),
        (12345.6, "count", "12,346"),
        (0.5, "plain", "0.50"),
        (-0.0, "plain", "0.00"),
        (1.5e-5, "plain", "1.5e−05"),
        (None, "rate", "–"),
        (math.nan, "plain", "–"),
        ("<b>", "plain", "<b>"),
    ],
)
def test_figures_are_written_so(value, unit, text):
    assert figure(value, unit) == text


def test_tick_has_no_needless_digits():
    assert [tick_text(0.25, "rate"), tick_text(-2.0, "plain"), tick_text(0.1, "points")] == [
        "25 %",
        "−2",
        "10",
    ]


def test_domain_includes_what_it_must_and_some_room():
    low, high = domain([1.0, 2.0, math.nan], include=(0.0,))
    assert low < 0.0 < 2.0 < high
    assert domain([]) == (0.0, 1.0)


def test_running_mean_goes_over_missing_values():
    values = np.array([np.nan, 1.0, np.nan, 0.0])
    assert running_mean(values, 0.5).tolist() == pytest.approx([np.nan, 1.0, 1.0, 0.5], nan_ok=True)


def test_few_steps_are_not_smoothed():
    assert running_mean(np.array([0.0, 1.0, 0.0])).tolist() == [0.0, 1.0, 0.0]
    assert running_mean(np.append(np.zeros(199), 1.0))[-1] == pytest.approx(0.1)


def test_thinned_curve_keeps_its_mean_and_its_holes():
    values = np.where(STEPS > 400, np.nan, STEPS.astype(float))
    steps, means = thinned(STEPS, values, 100)
    assert len(steps) == len(means) == 100
    assert means[0] == 3.0
    assert np.isnan(means[-1])
    assert thinned(STEPS, values, 500)[1] is values


def test_curve_is_broken_where_values_are_missing():
    values = np.array([np.nan, 1.0, 2.0, np.nan, 3.0])
    assert unbroken(np.arange(5), values) == [[(1.0, 1.0), (2.0, 2.0)], [(4.0, 3.0)]]


def test_cut_text_fits():
    assert fit("abc", 100) == "abc"
    assert text_width(fit("a long name of a category", 60)) <= 60


def test_coordinates_are_short():
    svg = to_svg(Drawing(100, 50, [Line((1 / 3, 2), (30.04, 4))], "x"))
    assert re.findall(r'd="([^"]+)"', svg) == ["M0.3 2L30 4"]
