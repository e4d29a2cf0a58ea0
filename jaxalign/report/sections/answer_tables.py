"""What else was measured on judged answers, as tables: wrong refusals, certificates of the targets."""

from jaxalign.report.document import Cell, Column, Figure, Table
from jaxalign.report.rows import Interval
from jaxalign.report.safety import STATUSES, Safety
from jaxalign.report.safety_groups import SafetyGroup


def answer_tables(title: str, group: SafetyGroup) -> list[Figure]:
    """The tables of a group of results, those for which something was measured."""
    labelled = list(zip(group.labels(), group.all, strict=True))
    refusals = [(label, one) for label, one in labelled if one.others]
    figures = [_refusal_figure(title, refusals)] if refusals else []
    return figures + [
        _certificate_figure(title if label == "after" else f"{title}, {label}", one)
        for label, one in labelled
        if one.certificate
    ]


def _refusal_figure(title: str, labelled: list[tuple[str, Safety]]) -> Figure:
    """Refusals of benign prompts, compliance with harmful ones: a small table says it."""
    columns = [Column("what"), Column("model"), Column("prompts", "count"), Column("rate", "rate")]
    columns += [Column("low", "rate"), Column("high", "rate")]
    cells: list[list[Cell]] = [
        [rate.name, label, rate.prompts, *_bounds(rate.rate)]
        for label, one in labelled
        for rate in one.others
    ]
    cells.sort(key=lambda row: str(row[0]))  # stable: before stays before after
    caption = "Over-refusal: benign prompts refused. Under-refusal: harmful prompts answered."
    return Figure(f"Refusals on {title}", caption, Table(columns, cells), unfolded=True)


def _bounds(interval: Interval) -> tuple[float, float | None, float | None]:
    return interval.value, interval.low, interval.high


def _certificate_figure(title: str, shown: Safety) -> Figure:
    columns = [Column("category"), Column("verdict"), Column("target", "rate"), Column("unsafe", "rate")]
    columns += [
        Column("at most", "rate"),
        Column("margin", "plain"),
        Column("prompts", "count"),
        Column("in words"),
    ]
    rows = sorted(shown.certificate, key=lambda row: STATUSES.index(row.status))
    cells = [
        (r.category, r.status, r.target, r.violation_rate, r.upper_bound, r.margin, r.prompts, r.message)
        for r in rows
    ]
    caption = f"Met where the upper bound on the unsafe share lies within the target ({shown.certified_by})."
    return Figure(f"Certificates on {title}", caption, Table(columns, cells), unfolded=True)
