"""The document as one HTML file that needs nothing else: style and drawings are inside. No wording lives here."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jaxalign.report.document import Document, Figure
from jaxalign.report.palette import DARK, LIGHT
from jaxalign.report.svg import to_svg

WIDE, HALF, NARROW = 760.0, 368.0, 343.0
"""Each figure is drawn twice, for a desk or paper and for a phone; the page shows the one that fits."""


def to_html(document: Document) -> str:
    """The page. All text is escaped, whatever a category or a model is called."""
    environment = Environment(
        loader=PackageLoader("jaxalign.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawings"] = _drawings
    template: Any = environment.get_template("page.html.jinja")
    text: str = template.render(document=document, light=LIGHT, dark=DARK)
    return text


def _drawings(figure: Figure) -> list[tuple[str, Markup]]:
    """The class and the element of each drawing of a figure."""
    if figure.draw is None:
        return []
    wide = HALF if figure.half else WIDE
    return [("wide", to_svg(figure.draw(wide))), ("narrow", to_svg(figure.draw(NARROW)))]
