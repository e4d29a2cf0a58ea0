"""Safe rates of generated answers by category, before and after, refusals, and the certificates of the targets."""

from collections.abc import Mapping, Sequence

from jaxalign.report.document import Cell, Column, Figure, Section, Table
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Interval, Row, RowAxis, Series, row_chart
from jaxalign.report.safety import STATUSES, SafeRate, Safety
from jaxalign.report.scales import figure
from jaxalign.report.svg import Drawing

MISSING = (
    'No generated answers were judged. "jaxalign evaluate RUN --safety FILE" leaves their safe rates in the run; '
    "everything below rests on pairs that were written beforehand."
)
BEFORE_AFTER = (Series("before", "muted", "circle", hollow=True), Series("after", "accent"))
ALL = "all prompts"

Moments = tuple[SafeRate | None, SafeRate | None]


def section(run: RunRecord) -> Section:
    """One figure a prompt set, one table of refusals, and one of certificates where there is one."""
    title = "Safe answers by category"
    if not run.safety:
        return Section("answers", title, "", missing=(MISSING,))
    figures: list[Figure] = []
    for prompt_set in dict.fromkeys(one.prompt_set for one in run.safety):
        before, after = (run.safety_of(prompt_set, model) for model in ("before", "after"))
        shown = after or before
        assert shown is not None  # one of them named the prompt set
        figures.append(_rates_figure(run, shown, _moments(before, after)))
        if shown.others:
            figures.append(_others_figure(shown, before if after else None))
        if shown.certificate:
            figures.append(_certificate_figure(shown))
    lead = (
        "Share of generated answers that were judged safe; one that was not judged counts as not safe. Intervals hold "
        "95 %. Categories that fall short of what their target allows are named in the colour of warning."
    )
    return Section("answers", title, lead, figures)


def _moments(before: Safety | None, after: Safety | None) -> dict[str, Moments]:
    """Safe rates before and after by category, the largest gain first, and last of all prompts."""
    both = [{} if one is None else one.categories for one in (before, after)]
    names = dict.fromkeys(name for one in both for name in one)
    rates = {name: (both[0].get(name), both[1].get(name)) for name in names}
    ordered = dict(sorted(rates.items(), key=lambda item: _order(*item[1])))
    return ordered | {ALL: (before.overall if before else None, after.overall if after else None)}


def _order(before: SafeRate | None, after: SafeRate | None) -> float:
    if before is not None and after is not None:
        return before.rate.value - after.rate.value
    shown = before or after
    return 0.0 if shown is None else shown.rate.value


def _rates_figure(run: RunRecord, shown: Safety, rates: Mapping[str, Moments]) -> Figure:
    kept = [k for k in (0, 1) if any(moments[k] is not None for moments in rates.values())]
    rows = [_row(run, name, moments, kept) for name, moments in rates.items()]
    series = [BEFORE_AFTER[k] for k in kept]
    axis = RowAxis(lower_end(rows), 1.0, "rate", note_heading="gain" if len(kept) == 2 else "")

    def draw(width: float) -> Drawing:
        return row_chart(rows, series, axis, width=width, description=f"Safe rates on {shown.prompt_set}")

    columns = [
        Column("category"),
        Column("prompts", "count"),
        Column("unjudged", "count"),
        Column("allowed", "rate"),
    ]
    for name in ("before", "after"):
        parts = (name, f"{name}, low", f"{name}, high", f"{name}, corrected for the judge")
        columns += [Column(part, "rate") for part in parts]
    cells = [_cells(run, name, moments) for name, moments in rates.items()]
    title = f"Answers to {shown.prompt_set}" + ", ordered by gain" * (len(kept) == 2)
    caption = " ".join(
        (f"{shown.num_prompts} prompts, judged by {shown.judge}. {shown.limits}", *shown.notes)
    )
    return Figure(title, caption, Table(columns, cells), draw)


def lower_end(rows: Sequence[Row]) -> float:
    """Where an axis of rates begins: at 0, unless everything lies in the upper half."""
    lows = [i.value if i.low is None else i.low for row in rows for i in row.intervals if i is not None]
    return 0.5 if min(lows, default=0.0) >= 0.55 else 0.0


def _row(run: RunRecord, name: str, moments: Moments, kept: Sequence[int]) -> Row:
    before, after = moments
    least = _allowed(run, name)
    gain = None if before is None or after is None else after.rate.value - before.rate.value
    short = least is not None and after is not None and after.rate.value < least
    intervals = [None if moments[k] is None else moments[k].rate for k in kept]  # type: ignore[union-attr]
    return Row(name, intervals, "" if gain is None else figure(gain, "points"), least, short, name == ALL)


def _allowed(run: RunRecord, name: str) -> float | None:
    """The safe rate that a category's target allows."""
    target = None if name == ALL else run.target(name)
    return None if target is None else 1.0 - target


def _cells(run: RunRecord, name: str, moments: Moments) -> list[Cell]:
    shown = moments[1] or moments[0]
    cells: list[Cell] = [
        name,
        *((shown.prompts, shown.unjudged) if shown else (None, None)),
        _allowed(run, name),
    ]
    for moment in moments:
        if moment is None:
            cells += [None] * 4
        else:
            corrected = None if moment.corrected is None else moment.corrected.value
            cells += [moment.rate.value, moment.rate.low, moment.rate.high, corrected]
    return cells


def _others_figure(shown: Safety, before: Safety | None) -> Figure:
    """Refusals of benign prompts, compliance with harmful ones, helpfulness: a small table says it."""
    start = {one.name: one.rate.value for one in before.others} if before else {}
    columns = [Column("what"), Column("prompts", "count"), Column("before", "rate"), Column("now", "rate")]
    columns += [Column("low", "rate"), Column("high", "rate")]
    cells = [(one.name, one.prompts, start.get(one.name), *_bounds(one.rate)) for one in shown.others]
    caption = "Over-refusal: benign prompts refused. Under-refusal: harmful prompts answered."
    return Figure(f"Refusals on {shown.prompt_set}", caption, Table(columns, cells), unfolded=True)


def _bounds(interval: Interval) -> tuple[float, float | None, float | None]:
    return interval.value, interval.low, interval.high


def _certificate_figure(shown: Safety) -> Figure:
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
    return Figure(f"Certificates on {shown.prompt_set}", caption, Table(columns, cells), unfolded=True)
