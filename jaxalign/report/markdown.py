"""The document as Markdown: the verdict in words and every table. Drawings have no place there."""

from collections.abc import Sequence

from jaxalign.markdown import plain
from jaxalign.report.document import Document, Figure, Section, Table, Verdict


def to_markdown(document: Document) -> str:
    """The text, with whatever carries marks of Markdown or HTML escaped."""
    lines = [f"# {plain(document.title)}", ""]
    for part in document.parts:
        lines += _verdict(part.name, part.subtitle, part.verdict)
    if document.comparison is not None:
        lines += _section(document.comparison, 2)
    for part in document.parts:
        lines += [f"## {plain(part.name)}", ""]
        for section in part.sections:
            lines += _section(section, 3)
    return "\n".join([*lines, f"Made by jaxalign {plain(document.version)}.", ""])


def _verdict(name: str, subtitle: str, verdict: Verdict) -> list[str]:
    facts = [
        f"* {plain(f.label)}: **{plain(f.value)}**{f', {plain(f.note)}' * bool(f.note)}"
        for f in verdict.facts
    ]
    return [
        f"**{plain(name)}** ({plain(subtitle)}): {plain(verdict.headline)}",
        "",
        *facts,
        "",
        plain(verdict.basis),
        "",
    ]


def _section(section: Section, level: int) -> list[str]:
    texts = [text for text in (section.lead, *section.missing) if text]
    lines = [f"{'#' * level} {plain(section.title)}", ""]
    for text in texts:
        lines += [plain(text), ""]
    for figure in section.figures:
        lines += _figure(figure, level + 1)
    return lines


def _figure(figure: Figure, level: int) -> list[str]:
    caption = [plain(figure.caption), ""] if figure.caption else []
    return [f"{'#' * level} {plain(figure.title)}", "", *caption, *_table(figure.table), ""]


def _table(table: Table) -> list[str]:
    rule = ["---:" if column.unit else "---" for column in table.columns]
    return [
        _line([column.name for column in table.columns]),
        f"|{'|'.join(rule)}|",
        *map(_line, table.texts()),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(plain, cells))} |"
