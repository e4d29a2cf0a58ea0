"""Safe rates of generated answers by category, before and after: a figure for each prompt set under each judge."""

from collections.abc import Sequence

from jaxalign.report.document import Cell, Column, Figure, Section, Table
from jaxalign.report.origin import origin
from jaxalign.report.palette import NUM_RUN_COLOURS, SHAPES
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Row, RowAxis, Series, row_chart
from jaxalign.report.safety import SafeRate
from jaxalign.report.safety_groups import SafetyGroup, group_titles, safety_groups
from jaxalign.report.scales import figure
from jaxalign.report.sections.answer_tables import answer_tables
from jaxalign.report.svg import Drawing

MISSING = (
    'No generated answers were judged. "jaxalign evaluate RUN --safety FILE" leaves their safe rates in the run; '
    "everything below rests on pairs that were written beforehand."
)
BEFORE_AFTER = (Series("before", "muted", "circle", hollow=True), Series("after", "accent"))
ALL = "all prompts"
CORRECTED = "Rates are drawn and compared corrected for the judge's error."
AS_JUDGED = (
    "Rates are drawn and compared as judged, since the judge's error is not known for each of these results."
)

Rates = Sequence[SafeRate | None]
"""Of one category, for each result of a group."""


def section(run: RunRecord) -> Section:
    """For each group of results that may be compared one figure, and tables of what else was measured."""
    title = "Safe answers by category"
    if not run.safety:
        return Section("answers", title, "", missing=(MISSING,))
    titles = group_titles(run.safety)
    groups = sorted(safety_groups(run.safety).items(), key=lambda item: not item[1].after)
    figures: list[Figure] = []
    for key, group in groups:
        figures.append(_rates_figure(run, titles[key], group))
        figures += answer_tables(titles[key], group)
    lead = (
        "Share of generated answers that were judged safe; one that was not judged counts as not safe. Intervals hold "
        "95 %. Categories that fall short of what their target allows are named in the colour of warning."
    )
    return Section("answers", title, lead, figures)


def _rates_figure(run: RunRecord, title: str, group: SafetyGroup) -> Figure:
    rates = _rates(group)
    rows = [_row(run, name, of_name, group) for name, of_name in rates.items()]
    compared = bool(group.before and group.after)
    axis = RowAxis(lower_end(rows), 1.0, "rate", note_heading="gain" if compared else "")

    def draw(width: float) -> Drawing:
        return row_chart(rows, _series(group), axis, width=width, description=f"Safe rates on {title}")

    columns = [
        Column("category"),
        Column("prompts", "count"),
        Column("unjudged", "count"),
        Column("allowed", "rate"),
    ]
    for name, one in zip(group.labels(), group.all, strict=True):
        columns += [Column(part, "rate") for part in (name, f"{name}, low", f"{name}, high")]
        corrected = f"{name}, corrected"
        parts = (corrected, f"{corrected}, low", f"{corrected}, high") if one.corrected else ()
        columns += [Column(part, "rate") for part in parts]
    cells = [_cells(name, of_name, _allowed(run, name, group), group) for name, of_name in rates.items()]
    return Figure(f"Answers to {title}", _caption(run, group), Table(columns, cells), draw)


def _caption(run: RunRecord, group: SafetyGroup) -> str:
    shown, parts = group.shown, []
    if group.before and group.after:
        pair = (group.labels()[len(group.before) - 1], group.labels()[-1])
        parts.append("Ordered by gain" + f", from {pair[0]} to {pair[1]}" * (len(group.all) > 2) + ".")
    else:
        other = "before" if group.after else "after"
        if any(one.moment == other for one in run.safety):
            parts.append(
                f"No gain is shown: no result from {other} training has these prompts and judges, with the same "
                "settings of judges and answers."
            )
    for label, one in zip(group.labels(), group.all, strict=True):
        words = origin(run, one)
        parts += [f"{label.capitalize()}: {words}."] if words else []
    if group.corrected:
        parts.append(f"{CORRECTED} In the data, columns that do not say so are as judged.")
    elif any(one.corrected for one in group.all):
        parts.append(f"{AS_JUDGED} Corrected ones are in the data, and in the verdict.")
    parts += [f"{shown.num_prompts} prompts.", shown.limits, *shown.notes]
    return " ".join(part for part in parts if part)


def _rates(group: SafetyGroup) -> dict[str | None, Rates]:
    """By category, the largest gain first, and last, under None, of all prompts."""
    names = dict.fromkeys(name for one in group.all for name in one.categories)
    rates: dict[str | None, Rates] = {n: [one.categories.get(n) for one in group.all] for n in names}
    ordered = dict(sorted(rates.items(), key=lambda item: _order(item[1], group)))
    return ordered | {None: [one.overall for one in group.all]}


def _order(rates: Rates, group: SafetyGroup) -> float:
    gain = _gain(rates, group)
    if gain is not None:
        return -gain
    return next((rate.shown(group.corrected).value for rate in reversed(rates) if rate is not None), 0.0)


def _gain(rates: Rates, group: SafetyGroup) -> float | None:
    """From the last result before training to the last after it."""
    if not (group.before and group.after):
        return None
    before, after = rates[len(group.before) - 1], rates[-1]
    if before is None or after is None:
        return None
    return after.shown(group.corrected).value - before.shown(group.corrected).value


def _series(group: SafetyGroup) -> list[Series]:
    """Looks of each result: the last of each moment as everywhere, others in the colours and shapes of runs."""
    usual = {len(group.before) - 1: BEFORE_AFTER[0]} if group.before else {}
    usual |= {len(group.all) - 1: BEFORE_AFTER[1]} if group.after else {}
    series = []
    for place, name in enumerate(group.labels()):
        look = usual.get(place)
        role = look.role if look else f"run{(place + 1) % NUM_RUN_COLOURS}"
        shape = look.shape if look else SHAPES[(place + 1) % len(SHAPES)]
        series.append(Series(name, role, shape, hollow=place < len(group.before)))
    return series


def lower_end(rows: Sequence[Row]) -> float:
    """Where an axis of rates begins: at 0, unless everything lies in the upper half."""
    lows = [i.value if i.low is None else i.low for row in rows for i in row.intervals if i is not None]
    return 0.5 if min(lows, default=0.0) >= 0.55 else 0.0


def _row(run: RunRecord, name: str | None, rates: Rates, group: SafetyGroup) -> Row:
    least, gain = _allowed(run, name, group), _gain(rates, group)
    intervals = [None if rate is None else rate.shown(group.corrected) for rate in rates]
    last = intervals[-1]
    short = bool(group.after) and least is not None and last is not None and last.value < least
    note = "" if gain is None else figure(gain, "points")
    return Row(ALL if name is None else name, intervals, note, least, short, summary=name is None)


def _allowed(run: RunRecord, name: str | None, group: SafetyGroup) -> float | None:
    """The safe rate that a category's target allows, in the newest result with a certificate if there is one."""
    certified = next((one for one in reversed(group.all) if one.certificate), None)
    target = None if name is None else run.target(name, certified)
    return None if target is None else 1.0 - target


def _cells(name: str | None, rates: Rates, least: float | None, group: SafetyGroup) -> list[Cell]:
    shown = next((rate for rate in reversed(rates) if rate is not None), None)
    cells: list[Cell] = [
        ALL if name is None else name,
        *((shown.prompts, shown.unjudged) if shown else (None, None)),
        least,
    ]
    for rate, one in zip(rates, group.all, strict=True):
        for corrected in (False, True)[: 1 + one.corrected]:
            interval = None if rate is None else rate.shown(corrected)
            cells += (None,) * 3 if interval is None else (interval.value, interval.low, interval.high)
    return cells
