"""The document as one tall picture, with matplotlib: the verdicts, then every drawing below its title."""

import io
import logging
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

from jaxalign.errors import MissingPackageError
from jaxalign.report.document import Document, Figure, Section, Verdict
from jaxalign.report.palette import LIGHT
from jaxalign.report.svg import Box, Dot, Drawing, Label, Line, Mark, Path, outline

log = logging.getLogger(__name__)

WIDTH, EDGE = 760.0, 32.0
_LONGEST = 60_000  # pixels; more than that, no reader of PNG can be counted on
_COLUMNS = 118


def to_png(document: Document) -> bytes:
    """The picture, of twice as many pixels as units. Raises MissingPackageError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "--format png needs matplotlib: pip install 'jaxalign[report]', or write html, md or json"
        ) from error
    drawings = list(_drawings(document))
    height = sum(drawing.height for drawing in drawings) + 2 * EDGE
    scale = min(2.0, _LONGEST / height)
    canvas = Canvas(figsize=((WIDTH + 2 * EDGE) / 72, height / 72), dpi=72 * scale, facecolor=LIGHT["paper"])
    top = height - EDGE
    for drawing in drawings:
        top -= drawing.height
        place = (EDGE / (WIDTH + 2 * EDGE), top / height, WIDTH / (WIDTH + 2 * EDGE), drawing.height / height)
        axes = canvas.add_axes(place)
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(drawing.height, 0)
        axes.axis("off")
        for order, mark in enumerate(drawing.marks):
            _paint(axes, mark, order)
    content = io.BytesIO()
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        FigureCanvasAgg(canvas).print_png(content)
    _tell(raised)
    return content.getvalue()


def _tell(raised: list[warnings.WarningMessage]) -> None:
    """One line on all characters that no font has, in place of a warning for each; other warnings as they are."""
    lacking: dict[str, None] = {}
    for one in raised:
        if found := re.match(r"Glyph (\d+) .*missing from", str(one.message)):
            lacking[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if lacking:
        log.warning(
            "no font for %s: the picture shows boxes instead; install a font that has them and name it as font.family "
            "in matplotlibrc, or write html, which the reader's fonts show",
            " ".join(list(lacking)[:20]) + (" …" if len(lacking) > 20 else ""),
        )


def _drawings(document: Document) -> Iterator[Drawing]:
    yield _text(document.title, 20, bold=True)
    for part in document.parts:
        yield from _verdict(part.name, part.subtitle, part.verdict)
    if document.comparison is not None:
        yield from _section(document.comparison)
    for part in document.parts:
        if len(document.parts) > 1:
            yield _text(part.name, 18, bold=True)
        for section in part.sections:
            yield from _section(section)


def _verdict(name: str, subtitle: str, verdict: Verdict) -> Iterator[Drawing]:
    role = {"good": "good", "warn": "warn", "open": "ink"}[verdict.state]
    yield _text(f"{name} · {subtitle}", 11, "soft")
    yield _text(verdict.headline, 14, role, bold=True)
    for fact in verdict.facts:
        yield _text(f"{fact.label}: {fact.value}{f', {fact.note}' * bool(fact.note)}", 11)
    yield _text(verdict.basis, 10, "soft")


def _section(section: Section) -> Iterator[Drawing]:
    yield _text(section.title, 15, bold=True, above=22)
    for text in (section.lead, *section.missing):
        if text:
            yield _text(text, 10.5, "soft")
    for figure in section.figures:
        yield from _figure(figure)


def _figure(figure: Figure) -> Iterator[Drawing]:
    if figure.draw is None:
        return
    yield _text(figure.title, 11.5, bold=True, above=12)
    if figure.caption:
        yield _text(figure.caption, 9.5, "soft")
    yield figure.draw(WIDTH)


def _text(text: str, size: float, role: str = "ink", *, bold: bool = False, above: float = 4) -> Drawing:
    """A paragraph, broken into lines of the width of the picture."""
    lines = textwrap.wrap(text, int(_COLUMNS * 11 / size)) or [""]
    marks = [
        Label((0, above + (k + 0.85) * 1.35 * size), line, role, size, bold=bold)
        for k, line in enumerate(lines)
    ]
    return Drawing(WIDTH, above + 1.35 * size * len(lines) + 2, marks, text)


def _paint(axes: Any, mark: Mark, order: int) -> None:
    """Add one mark; units are points, as the canvas has 72 of them to an inch."""
    from matplotlib import patches

    colour = LIGHT[mark.role]
    match mark:
        case Line():
            (x1, y1), (x2, y2) = mark.start, mark.end
            style = (0, (4, 3)) if mark.dashed else "solid"
            axes.plot([x1, x2], [y1, y2], color=colour, linewidth=mark.width, linestyle=style, zorder=order)
        case Path() if mark.filled:
            axes.fill(
                *zip(*mark.points, strict=True), color=colour, alpha=mark.opacity, linewidth=0, zorder=order
            )
        case Path():
            axes.plot(*zip(*mark.points, strict=True), color=colour, linewidth=mark.width, zorder=order)
        case Box():
            box = patches.Rectangle((mark.x, mark.y), mark.width, mark.height, color=colour, linewidth=0)
            box.set(alpha=mark.opacity, zorder=order)
            axes.add_patch(box)
        case Dot():
            face = LIGHT["paper"] if mark.hollow else colour
            looks = {"facecolor": face, "edgecolor": colour, "linewidth": 1.6 if mark.hollow else 0}
            round_one = mark.shape == "circle"
            shape = patches.Circle(mark.at, mark.radius) if round_one else patches.Polygon(outline(mark))
            shape.set(**looks, zorder=order)
            axes.add_patch(shape)
        case Label():
            weight, side = (
                ("bold" if mark.bold else "normal"),
                {"start": "left", "middle": "center", "end": "right"},
            )
            axes.text(
                *mark.at, mark.text, color=colour, fontsize=mark.size, ha=side[mark.anchor], va="baseline",
                fontweight=weight, zorder=order, parse_math=False,
            )  # fmt: skip
