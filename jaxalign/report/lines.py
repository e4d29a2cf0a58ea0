"""Curves over the steps, on one pair of axes. Small multiples of them are in panels.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.report.curves import thinned, unbroken
from jaxalign.report.rows import NARROW, Series, legend
from jaxalign.report.scales import Scale, Unit, domain, tick_text
from jaxalign.report.svg import Box, Dot, Drawing, Label, Line, Mark, Path

_HEIGHT, _LEFT = 170.0, 48.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Values [n] at steps [n]; `series` gives its name and looks."""

    series: Series
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class LineAxes:
    """What the height means, and what is marked: a level, a span of steps, single steps."""

    unit: Unit = "plain"
    level: float | None = None
    span: tuple[float, float] | None = None
    events: Sequence[int] = ()
    include: tuple[float, ...] = ()


def line_chart(curves: Sequence[Curve], axes: LineAxes, *, width: float, description: str) -> Drawing:
    """The curves with their legend; missing values break a curve."""
    marks, legend_height = legend([curve.series for curve in curves], width)
    top = legend_height + 8
    thin = [(curve, *thinned(curve.steps, curve.values, 240)) for curve in curves]
    steps = np.concatenate([curve.steps for curve in curves]) if curves else np.array([0.0, 1.0])
    across = Scale(float(steps.min()), float(steps.max()), _LEFT, width - 16)
    shown = [float(v) for _, _, values in thin for v in values]
    level = () if axes.level is None else (axes.level,)
    up = Scale(*domain(shown, include=(*axes.include, *level)), top + _HEIGHT, top)
    marks += _axes(across, up, axes.unit, width)
    marks += _marked(axes, across, up)
    for curve, x, y in thin:
        marks += _curve(curve.series, unbroken(x, y), across, up)
    return Drawing(width, top + _HEIGHT + 24, marks, description)


def _axes(across: Scale, up: Scale, unit: Unit, width: float) -> list[Mark]:
    marks: list[Mark] = []
    for tick in up.ticks(4):
        marks.append(Line((across.start, up(tick)), (across.end, up(tick))))
        marks.append(Label((across.start - 6, up(tick) + 3.5), tick_text(tick, unit), "soft", 10, "end"))
    for tick in across.ticks(4 if width < NARROW else 8):
        if tick == round(tick):
            marks.append(Label((across(tick), up.start + 15), tick_text(tick, "plain"), "soft", 10, "middle"))
    marks.append(Label((across.start - 6, up.start + 15), "step", "soft", 10, "end"))
    marks.append(Line((across.start, up.start), (across.end, up.start), "muted"))
    return marks


def _marked(axes: LineAxes, across: Scale, up: Scale) -> list[Mark]:
    marks: list[Mark] = []
    if axes.span is not None:
        first, last = map(across, axes.span)
        marks.append(Box(first, up.end, max(2.0, last - first), up.start - up.end, "warn", opacity=0.12))
    if axes.level is not None:
        level = up(axes.level)
        marks.append(Line((across.start, level), (across.end, level), "soft", 1, dashed=True))
    for step in axes.events:
        x = across(step)
        marks.append(Line((x, up.start), (x, up.start - 8), "warn", 2))
    return marks


def _curve(
    series: Series, stretches: Sequence[Sequence[tuple[float, float]]], across: Scale, up: Scale
) -> list[Mark]:
    """The stretches of a curve, and a dot at its end."""
    marks: list[Mark] = []
    for stretch in stretches:
        points = [(across(step), up(value)) for step, value in stretch]
        marks.append(Path(points, series.role) if len(points) > 1 else Dot(points[0], series.role, 2))
        if stretch is stretches[-1]:
            marks.append(Dot(points[-1], series.role, 3.2, series.shape, series.hollow))
    return marks
