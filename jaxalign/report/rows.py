"""Dots and intervals, one row a category: before and after, several runs, distributions. No other charts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxalign.report.scales import Scale, Unit, figure, tick_text
from jaxalign.report.svg import Anchor, Box, Dot, Drawing, Label, Line, Mark, fit, text_width

NARROW = 500.0  # below this width labels stand above their rows
_LEGEND, _AXIS, _LABEL = 20.0, 18.0, 17.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and what lies around it; without bounds it is a dot alone. `inner` is drawn thicker."""

    value: float
    low: float | None = None
    high: float | None = None
    inner: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """What the intervals at one place in all rows have in common."""

    name: str
    role: str
    shape: str = "circle"
    hollow: bool = False


TARGET = Series("what the target allows", "ink", "tick")


@dataclass(frozen=True, slots=True)
class Row:
    """One category: an interval or None for each series, a note at the right, and a target if it has one.

    Summaries come last, below a line.
    """

    label: str
    intervals: Sequence[Interval | None]
    note: str = ""
    target: float | None = None
    warn: bool = False
    summary: bool = False


@dataclass(frozen=True, slots=True)
class RowAxis:
    """What the places along a row mean."""

    low: float
    high: float
    unit: Unit
    reference: float | None = None  # a dashed line through all rows
    note_heading: str = ""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Places of a chart of some width."""

    width: float
    narrow: bool
    row_height: float
    scale: Scale
    top: float

    def middle(self, number: int) -> float:
        """Height of the track of a row, below its label where that stands above."""
        label = _LABEL if self.narrow else 0.0
        return self.top + number * self.row_height + (self.row_height + label) / 2


def row_chart(
    rows: Sequence[Row], series: Sequence[Series], axis: RowAxis, *, width: float, description: str
) -> Drawing:
    """The chart, with labels beside the rows or, where it is narrow, above them."""
    targets = (TARGET,) if any(row.target is not None for row in rows) else ()
    marks, legend_height = legend((*series, *targets), width)
    layout = _layout(rows, series, axis, width, legend_height + _AXIS)
    bottom = layout.top + len(rows) * layout.row_height
    marks += _grid(axis, layout, bottom, at_bottom=len(rows) > 8)
    if axis.note_heading and not layout.narrow:
        marks.append(Label((width, layout.top - 7), axis.note_heading, "soft", 10, "end"))
    first = next((number for number, row in enumerate(rows) if row.summary), None)
    if first:
        edge = layout.top + first * layout.row_height
        marks.append(Line((0, edge), (width, edge), "muted"))
    for number, row in enumerate(rows):
        marks += _row(row, series, axis.unit, layout, number)
    return Drawing(width, bottom + (_AXIS if len(rows) > 8 else 6), marks, description)


def legend(series: Sequence[Series], width: float) -> tuple[list[Mark], float]:
    """The names of the series with their marks, on as many lines as they need, and the height; nothing for one."""
    if len(series) < 2:
        return [], 0.0
    marks: list[Mark] = []
    x, y = 5.0, 9.0
    for one in series:
        name = fit(one.name, width - 20)
        if x > 5 and x + 9 + text_width(name) > width:
            x, y = 5.0, y + _LEGEND
        dot = Dot((x, y), one.role, 4, one.shape, one.hollow)
        marks += [dot, Label((x + 9, y + 4), name, "soft", title=one.name)]
        x += 9 + text_width(name) + 16
    return marks, y - 9 + _LEGEND


def _layout(
    rows: Sequence[Row], series: Sequence[Series], axis: RowAxis, width: float, top: float
) -> _Layout:
    narrow = width < NARROW
    spread = max(0.0, 7.0 * (len(series) - 1))
    row_height = max(22.0, spread + 15) + (_LABEL if narrow else 0)
    longest = max((text_width(row.note, 10.5) for row in rows), default=0.0)
    notes = max(longest, text_width(axis.note_heading, 10)) + 22 if longest else 16.0
    labels = min(0.34 * width, max((text_width(row.label) for row in rows), default=0.0) + 14)
    start, end = (16.0, width - 16.0) if narrow else (labels, width - notes)
    return _Layout(width, narrow, row_height, Scale(axis.low, axis.high, start, end), top)


def _grid(axis: RowAxis, layout: _Layout, bottom: float, *, at_bottom: bool) -> list[Mark]:
    marks: list[Mark] = []
    for tick in layout.scale.ticks(4 if layout.narrow else 6):
        x = layout.scale(tick)
        marks.append(Line((x, layout.top - 3), (x, bottom)))
        heights = [layout.top - 7, *([bottom + 12] if at_bottom else [])]
        marks += [Label((x, y), tick_text(tick, axis.unit), "soft", 10, "middle") for y in heights]
    if axis.reference is not None:
        x = layout.scale(axis.reference)
        marks.append(Line((x, layout.top - 3), (x, bottom), "soft", 1, dashed=True))
    return marks


def _row(row: Row, series: Sequence[Series], unit: Unit, layout: _Layout, number: int) -> list[Mark]:
    middle, scale = layout.middle(number), layout.scale
    marks = _texts(row, layout, number)
    if row.target is not None:
        x, reach = scale(row.target), 4 + 3.5 * len(series)
        marks.append(Line((x, middle - reach), (x, middle + reach), "ink", 1.5))
    shown = [
        (place, interval)
        for place, interval in enumerate(row.intervals)
        if interval is not None and math.isfinite(interval.value)
    ]
    joined = len(shown) > 1 and all(interval.low is None for _, interval in shown)
    if joined:  # dots alone need no room between them, and a line shows which belong together
        ends = [scale(interval.value) for _, interval in shown]
        marks.append(Line((min(ends), middle), (max(ends), middle), "muted", 1.5))
    for place, interval in shown:
        offset = 0.0 if joined else 7.0 * (place - (len(series) - 1) / 2)
        marks += _interval(row.label, series[place], interval, unit, scale, middle + offset)
    return marks


def _texts(row: Row, layout: _Layout, number: int) -> list[Mark]:
    """Label and note of a row."""
    top, middle = layout.top + number * layout.row_height, layout.middle(number)
    role, note = "warn" if row.warn else "ink", fit(row.note, layout.width, 10.5)
    marks: list[Mark] = []
    if layout.narrow:
        label = fit(row.label, layout.width - 12 - text_width(note, 10.5))
        backing = Box(0, top + 2, text_width(label), 13, "paper")  # the grid must not cross the text
        place, height = (0.0, top + 12), top + 12
        marks.append(backing)
    else:
        label = fit(row.label, layout.scale.start - 12)
        place, height = (layout.scale.start - 10, middle + 4), middle + 4
    side: Anchor = "start" if layout.narrow else "end"
    marks.append(Label(place, label, role, 11, side, bold=row.summary, title=row.label))
    marks.append(Label((layout.width, height), note, "soft", 10.5, "end"))
    return marks


def _interval(
    label: str, series: Series, interval: Interval, unit: Unit, scale: Scale, height: float
) -> list[Mark]:
    marks: list[Mark] = []
    title = f"{label}, {series.name}: {figure(interval.value, unit)}"
    if interval.low is not None and interval.high is not None:
        low, high = scale(interval.low), scale(interval.high)
        title += f" ({figure(interval.low, unit)} to {figure(interval.high, unit)})"
        marks.append(Line((low, height), (high, height), series.role, 1.5))
    if interval.inner is not None:
        low, high = map(scale, interval.inner)
        marks.append(Box(low, height - 3, high - low, 6, series.role, opacity=0.35))
    marks.append(Dot((scale(interval.value), height), series.role, 3.6, series.shape, series.hollow, title))
    return marks
