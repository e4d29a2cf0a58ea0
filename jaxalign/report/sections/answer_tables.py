"""What else was measured on judged answers, as tables: wrong refusals, helpfulness, certificates of the targets."""

from jaxalign.report.document import Cell, Column, Figure, Table
from jaxalign.report.rows import Interval
from jaxalign.report.safety import STATUSES, Rate, Safety
from jaxalign.report.safety_groups import SafetyGroup
from jaxalign.report.scales import Unit


def answer_tables(title: str, group: SafetyGroup) -> list[Figure]:
    """The tables of a group of results, those for which something was measured."""
    labelled = list(zip(group.labels(), group.all, strict=True))
    refusals = [(label, rate) for label, one in labelled for rate in one.refusals]
    helpful = [(label, one.helpfulness) for label, one in labelled if one.helpfulness is not None]
    figures = []
    if refusals:
        shown = group.shown
        judge, limits = shown.judge, shown.limits
        if shown.refusal_judge:
            judge, limits = shown.refusal_judge, shown.refusal_limits or ""
        caption = (
            "Over-refusal: benign prompts refused. Under-refusal: harmful prompts answered. Refusals are told by "
            f"{judge}. {limits}"
        ).strip()
        figures.append(_figure(f"Refusals on {title}", caption, refusals, "rate"))
    if helpful:
        caption = "Mean scores of the answers; those of one reward model alone can be compared."
        figures.append(_figure(f"Helpfulness on {title}", caption, helpful, "plain"))
    return figures + [
        _certificate_figure(title if label == "after" else f"{title}, {label}", one)
        for label, one in labelled
        if one.certificate
    ]


def _figure(title: str, caption: str, rates: list[tuple[str, Rate]], unit: Unit) -> Figure:
    """A small table: figures by name, before training and after it."""
    columns = [Column("what"), Column("model"), Column("prompts", "count"), Column("value", unit)]
    columns += [Column("low", unit), Column("high", unit)]
    cells: list[list[Cell]] = [[one.name, label, one.prompts, *_bounds(one.rate)] for label, one in rates]
    cells.sort(key=lambda row: str(row[0]))  # stable: before stays before after
    return Figure(title, caption, Table(columns, cells), unfolded=True)


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
    if shown.corrected:
        caption += " The unsafe share is that as judged; its upper bound also holds the judge's error."
    return Figure(f"Certificates on {title}", caption, Table(columns, cells), unfolded=True)
