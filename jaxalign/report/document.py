"""What a report says, before it is a page, Markdown, JSON or a picture: sections of figures, each with its table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxalign.report.scales import Unit, figure
from jaxalign.report.svg import Drawing

Cell = str | int | float | None
State = Literal["good", "warn", "open"]
"""How a fact stands: as wanted, not as wanted, or not known."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; without a unit it is text, set to the left."""

    name: str
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns; a cell that is None is missing."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def texts(self) -> list[list[str]]:
        """All cells as they are shown."""
        return [
            [figure(cell, column.unit or "plain") for cell, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def records(self) -> list[dict[str, Cell]]:
        """All cells as values, one object a row."""
        return [dict(zip((c.name for c in self.columns), row, strict=True)) for row in self.rows]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing at any width with the table of what it shows; a table alone is shown `unfolded` or not.

    One that is `half` as wide has room for another one beside it.
    """

    title: str
    caption: str
    table: Table
    draw: Callable[[float], Drawing] | None = None
    unfolded: bool = False
    half: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Figures on one question; `missing` says what could not be shown, and what would make it."""

    key: str
    title: str
    lead: str
    figures: Sequence[Figure] = ()
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the few things that a verdict rests on."""

    label: str
    value: str
    note: str
    state: State


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a run before anything else; `basis` is what it was measured on."""

    state: State
    headline: str
    basis: str
    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True)
class RunPart:
    """The part of a document that one run has."""

    name: str
    subtitle: str
    verdict: Verdict
    sections: Sequence[Section]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report; `comparison` is there where it is of more than one run."""

    title: str
    parts: Sequence[RunPart]
    comparison: Section | None
    version: str

    def as_dict(self) -> dict[str, Any]:
        """All that the page says, as plain values."""
        return {
            "title": self.title,
            "jaxalign": self.version,
            "comparison": None if self.comparison is None else _section(self.comparison),
            "runs": [
                {
                    "name": part.name,
                    "subtitle": part.subtitle,
                    "verdict": {
                        "state": part.verdict.state,
                        "headline": part.verdict.headline,
                        "basis": part.verdict.basis,
                        "facts": [
                            {"label": f.label, "value": f.value, "note": f.note, "state": f.state}
                            for f in part.verdict.facts
                        ],
                    },
                    "sections": [_section(section) for section in part.sections],
                }
                for part in self.parts
            ],
        }


def _section(section: Section) -> dict[str, Any]:
    return {
        "key": section.key,
        "title": section.title,
        "lead": section.lead,
        "missing": list(section.missing),
        "figures": [
            {"title": shown.title, "caption": shown.caption, "rows": shown.table.records()}
            for shown in section.figures
        ],
    }
