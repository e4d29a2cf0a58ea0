"""Marks on a canvas, and the canvas as SVG. Marks carry roles, not colours, and no figure is laid out here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    start: Point
    end: Point
    role: str = "rule"
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """Points joined by lines, or the area within them."""

    points: Sequence[Point]
    role: str
    width: float = 1.5
    filled: bool = False
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; `title` is shown where it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    role: str
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A small mark of one of the SHAPES of the palette; a hollow one is filled with paper."""

    at: Point
    role: str
    radius: float = 4.0
    shape: str = "circle"
    hollow: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """One line of text, `at` its baseline."""

    at: Point
    text: str
    role: str = "ink"
    size: float = 11.0
    anchor: Anchor = "start"
    bold: bool = False
    title: str = ""


Mark = Line | Path | Box | Dot | Label


@dataclass(frozen=True, slots=True)
class Drawing:
    """Marks in the order in which they are painted; `description` is what a screen reader says."""

    width: float
    height: float
    marks: Sequence[Mark]
    description: str


def to_svg(drawing: Drawing) -> Markup:
    """The drawing as an `<svg>` element for a page whose style has a class for each role. All text is escaped."""
    size = Markup('viewBox="0 0 {} {}" width="{}"').format(
        _n(drawing.width), _n(drawing.height), _n(drawing.width)
    )
    head = Markup('<svg {} role="img" aria-label="{}">').format(size, drawing.description)
    return head + Markup("").join(map(_element, drawing.marks)) + Markup("</svg>")


def outline(dot: Dot) -> list[Point]:
    """The corners of a dot that is no circle, of about the area of the circle."""
    x, y = dot.at
    if dot.shape == "tick":
        return [(x - 0.75, y - 6), (x + 0.75, y - 6), (x + 0.75, y + 6), (x - 0.75, y + 6)]
    corners, turn, size = {
        "square": (4, math.pi / 4, 1.25),
        "triangle": (3, -math.pi / 2, 1.4),
        "diamond": (4, 0.0, 1.35),
    }[dot.shape]
    angles = (turn + 2 * math.pi * k / corners for k in range(corners))
    return [(x + size * dot.radius * math.cos(a), y + size * dot.radius * math.sin(a)) for a in angles]


def text_width(text: str, size: float = 11.0) -> float:
    """About how wide a text is; fonts of systems differ by a tenth."""
    return 0.56 * size * len(text)


def fit(text: str, width: float, size: float = 11.0) -> str:
    """The text, cut with an ellipsis where it would be wider."""
    most = max(1, int(width / text_width("x", size)))
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _element(mark: Mark) -> Markup:
    match mark:
        case Line():
            (x1, y1), (x2, y2) = mark.start, mark.end
            dash = Markup(' stroke-dasharray="4 3"') if mark.dashed else ""
            return Markup('<path class="s-{}" stroke-width="{}"{} d="M{} {}L{} {}"/>').format(
                mark.role, _n(mark.width), dash, _n(x1), _n(y1), _n(x2), _n(y2)
            )
        case Path():
            return _path(mark)
        case Box():
            opacity = Markup(' opacity="{}"').format(_n(mark.opacity)) if mark.opacity < 1 else ""
            return Markup('<rect class="f-{}"{} x="{}" y="{}" width="{}" height="{}">{}</rect>').format(
                mark.role, opacity, *map(_n, (mark.x, mark.y, mark.width, mark.height)), _title(mark.title)
            )
        case Dot():
            return _dot(mark)
        case Label():
            bold = Markup(' font-weight="600"') if mark.bold else ""
            return Markup(
                '<text class="f-{}" x="{}" y="{}" font-size="{}" text-anchor="{}"{}>{}{}</text>'
            ).format(
                mark.role, *map(_n, (*mark.at, mark.size)), mark.anchor, bold, mark.text, _title(mark.title)
            )


def _path(mark: Path) -> Markup:
    points = " ".join(f"{_n(x)} {_n(y)}" for x, y in mark.points)
    if mark.filled:
        return Markup('<path class="f-{}" opacity="{}" d="M{}Z"/>').format(
            mark.role, _n(mark.opacity), points
        )
    style = Markup('class="s-{}" stroke-width="{}"').format(mark.role, _n(mark.width))
    return Markup('<path {} d="M{}"/>').format(style, points)


def _dot(mark: Dot) -> Markup:
    role = f"h-{mark.role}" if mark.hollow else f"f-{mark.role}"
    if mark.shape == "circle":
        place = Markup('cx="{}" cy="{}" r="{}"').format(*map(_n, (*mark.at, mark.radius)))
        return Markup('<circle class="{}" {}>{}</circle>').format(role, place, _title(mark.title))
    points = " ".join(f"{_n(x)} {_n(y)}" for x, y in outline(mark))
    return Markup('<path class="{}" d="M{}Z">{}</path>').format(role, points, _title(mark.title))


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _n(value: float) -> str:
    """A coordinate with as few digits as matter."""
    return f"{value:.1f}".removesuffix(".0")
