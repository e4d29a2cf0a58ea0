"""Counts drawn as bars and as a grid of squares. Binning happened before."""

from collections.abc import Sequence

from jaxalign.report.rows import NARROW
from jaxalign.report.scales import Scale, tick_text
from jaxalign.report.svg import Box, Drawing, Label, Line, Mark, Point

_HEIGHT = 120.0


def bar_chart(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    width: float,
    description: str,
    threshold: float | None = None,
) -> Drawing:
    """Bars over their bins; bins that lie below the threshold are those that are warned of."""
    across = Scale(edges[0], edges[-1], 16, width - 16)
    up = Scale(0, max(max(counts), 1), _HEIGHT + 8, 8)
    marks: list[Mark] = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        below = threshold is not None and high <= threshold + 1e-9
        top, left = up(count), across(low)
        role, title = "warn" if below else "accent", f"{low:.3g} to {high:.3g}: {count}"
        marks.append(
            Box(left + 0.5, top, max(across(high) - left - 1, 0.5), up.start - top, role, 0.85, title)
        )
    marks.append(Line((across.start, up.start), (across.end, up.start), "muted"))
    if threshold is not None:
        x = across(threshold)
        marks.append(Line((x, 0), (x, up.start), "soft", 1, dashed=True))
    for tick in across.ticks(4 if width < NARROW else 8):
        marks.append(Label((across(tick), up.start + 15), tick_text(tick, "plain"), "soft", 10, "middle"))
    return Drawing(width, _HEIGHT + 32, marks, description)


def square_grid(
    edges: Sequence[float],
    counts: Sequence[Sequence[int]],
    *,
    width: float,
    names: tuple[str, str],
    description: str,
) -> Drawing:
    """Squares whose area grows with the counts [across][up], and the diagonal where both are equal."""
    side = min(width - 52, 340.0)
    across = Scale(edges[0], edges[-1], 48, 48 + side)
    up = Scale(edges[0], edges[-1], side + 8, 8)
    most = max((count for column in counts for count in column), default=1) or 1
    marks: list[Mark] = [Line((across.start, up.start), (across.end, up.end), "soft", 1, dashed=True)]
    cell = side / len(counts)
    for i, column in enumerate(counts):
        for j, count in enumerate(column):
            if count:
                size = max(1.5, (cell - 1) * (count / most) ** 0.5)
                x, y = (across.start + (i + 0.5) * cell, up.start - (j + 0.5) * cell)
                marks.append(Box(x - size / 2, y - size / 2, size, size, "accent", 0.85, f"{count} pairs"))
    marks += _square_axes(across, up, names)
    return Drawing(width, side + 48, marks, description)


def _square_axes(across: Scale, up: Scale, names: tuple[str, str]) -> list[Mark]:
    corner: Point = (across.start, up.start)
    marks: list[Mark] = [
        Line(corner, (across.end, up.start), "muted"),
        Line(corner, (across.start, up.end), "muted"),
        Label((across.end, up.start + 32), f"{names[0]} →", "soft", 10.5, "end"),
        Label((across.start + 6, up.end + 8), f"↑ {names[1]}", "soft", 10.5),
    ]
    for tick in across.ticks(5):
        text = tick_text(tick, "plain")
        marks.append(Label((across(tick), up.start + 15), text, "soft", 10, "middle"))
        marks.append(Label((across.start - 6, up(tick) + 3.5), text, "soft", 10, "end"))
    return marks
