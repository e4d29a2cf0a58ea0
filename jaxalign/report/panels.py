"""Small multiples: one panel a category, a few strips over the steps in each. Rows and single charts are elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.report.curves import thinned, unbroken
from jaxalign.report.scales import Scale
from jaxalign.report.svg import Dot, Drawing, Label, Line, Mark, Path, Point, fit

_GAP_X, _GAP_Y, _TITLE = 18.0, 14.0, 31.0
_LEAST_WIDTH = 150.0


@dataclass(frozen=True, slots=True)
class Strip:
    """One curve [n] over the steps within bounds; shaded is what lies above its target, without one all below it."""

    values: np.ndarray
    low: float
    high: float
    role: str
    height: float
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """A category with its strips, and a note below its name."""

    title: str
    note: str
    strips: Sequence[Strip]
    warn: bool = False


def panel_grid(panels: Sequence[Panel], steps: np.ndarray, *, width: float, description: str) -> Drawing:
    """All panels in rows, as many beside each other as the width lets be legible, all of one scale."""
    columns = max(1, min(len(panels), 4, int((width + _GAP_X) / (_LEAST_WIDTH + _GAP_X))))
    panel_width = (width - (columns - 1) * _GAP_X) / columns
    height = _TITLE + sum(strip.height + 5 for strip in panels[0].strips) if panels else 0.0
    marks: list[Mark] = []
    for number, panel in enumerate(panels):
        x = number % columns * (panel_width + _GAP_X)
        y = number // columns * (height + _GAP_Y)
        marks += _panel(panel, steps, x, y, panel_width)
    num_rows = -(-len(panels) // columns)
    return Drawing(width, num_rows * (height + _GAP_Y), marks, description)


def _panel(panel: Panel, steps: np.ndarray, x: float, y: float, width: float) -> list[Mark]:
    role = "warn" if panel.warn else "soft"
    marks: list[Mark] = [
        Label((x, y + 11), fit(panel.title, width, 10.5), "ink", 10.5, title=panel.title),
        Label((x, y + 24), panel.note, role, 10.5),
    ]
    top = y + _TITLE
    for strip in panel.strips:
        marks += _strip(strip, steps, x, top, width)
        top += strip.height + 5
    return marks


def _strip(strip: Strip, steps: np.ndarray, x: float, top: float, width: float) -> list[Mark]:
    across = Scale(float(steps[0]), float(steps[-1]), x, x + width - 4)
    up = Scale(strip.low, strip.high, top + strip.height, top)
    marks: list[Mark] = [Line((x, up.start), (x + width, up.start))]
    stretches = unbroken(*thinned(steps, strip.values))
    for stretch in stretches:
        points = [(across(step), up(value)) for step, value in stretch]
        marks += (
            _area(points, up.start, strip.role) if strip.target is None else _excess(points, up(strip.target))
        )
        marks.append(Path(points, strip.role) if len(points) > 1 else Dot(points[0], strip.role, 2))
        if stretch is stretches[-1]:
            marks.append(Dot(points[-1], strip.role, 2.6))
    if strip.target is not None:
        level = up(strip.target)
        marks.append(Line((x, level), (x + width, level), "soft", 1, dashed=True))
    return marks


def _area(points: Sequence[Point], level: float, role: str, opacity: float = 0.15) -> list[Mark]:
    """The area between a curve and a level."""
    if len(points) < 2:
        return []
    corners = [(points[0][0], level), *points, (points[-1][0], level)]
    return [Path(corners, role, filled=True, opacity=opacity)]


def _excess(points: Sequence[Point], level: float) -> list[Mark]:
    """The area between the curve and the target where the curve is above it."""
    if all(y >= level for _, y in points):
        return []
    return _area([(x, min(y, level)) for x, y in points], level, "warn", 0.22)
