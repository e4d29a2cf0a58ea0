"""Several runs side by side: their verdicts, their categories in one figure, paired differences, curves over steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxalign.report.compared_categories import category_figures, not_shared
from jaxalign.report.curves import running_mean
from jaxalign.report.displacement import displacement
from jaxalign.report.document import Column, Figure, Section, Table, Verdict
from jaxalign.report.lines import Curve, LineAxes, line_chart
from jaxalign.report.palette import NUM_RUN_COLOURS, SHAPES
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Interval, Row, RowAxis, Series, row_chart
from jaxalign.report.safety_groups import decisive, weakest
from jaxalign.report.scales import MISSING, Unit, domain, figure
from jaxalign.report.sections.settings import flat_settings
from jaxalign.report.svg import Drawing


@dataclass(frozen=True)
class Difference:
    """The second run minus the first on the same pairs or prompts, with intervals; or why there is none.

    `summary` has figures over all categories by name, `gap_shrank` the probability that the best-to-worst gap of the
    second is the smaller one.
    """

    first: str
    second: str
    metric: str
    num_prompts: int = 0
    categories: Mapping[str, Interval] | None = None
    summary: Mapping[str, Interval] | None = None
    gap_shrank: float | None = None
    missing: str = ""


def section(
    runs: Sequence[RunRecord], verdicts: Sequence[Verdict], differences: Sequence[Difference]
) -> Section:
    """The comparison of two or more runs; differences are against the first."""
    title = "Runs side by side"
    series = [
        Series(run.name, f"run{k % NUM_RUN_COLOURS}", SHAPES[k % len(SHAPES)]) for k, run in enumerate(runs)
    ]
    figures = [_glance(runs, verdicts), *category_figures(runs, series)]
    figures += [_difference_figure(one) for one in differences if one.summary]
    figures += [*_course_figures(runs, series), _settings_figure(runs)]
    missing = not_shared(runs) + [
        f"{one.second} against {one.first}, {one.metric}: {one.missing}."
        for one in differences
        if one.missing
    ]
    lead = (
        f"Differences are against the first run, {runs[0].name}, on the same prompts, with 95 % intervals. "
        "An interval that leaves out 0 is a difference that chance alone would hardly make."
    )
    if any(one.corrected for run in runs for one in run.safety):
        lead += " Differences of safe answers are as judged, not corrected for the judge's error."
    return Section("comparison", title, lead, figures, list(dict.fromkeys(missing)))


def _glance(runs: Sequence[RunRecord], verdicts: Sequence[Verdict]) -> Figure:
    columns = [Column("run"), Column("loss")]
    columns += [Column(label) for fact in verdicts[0].facts for label in _labels(fact.label)]
    rows = []
    for run, verdict in zip(runs, verdicts, strict=True):
        cells: list[str] = [run.name, str(run.config.get("loss", {}).get("name", MISSING))]
        for fact in verdict.facts:
            cells += [fact.value, fact.note] if len(_labels(fact.label)) == 2 else [fact.value]
        rows.append(cells)
    weak = {run.name: weakest(decisive(run.safety)) for run in runs}
    corrected = [name for name, one in weak.items() if one is not None and one.corrected]
    caption = f"Worst category and gap are corrected for the judge's error in {', '.join(corrected)}"
    caption += "." if len(corrected) == len(runs) else ", and as judged in the others."
    return Figure("At a glance", caption if corrected else "", Table(columns, rows), unfolded=True)


def _settings_figure(runs: Sequence[RunRecord]) -> Figure:
    """The settings in which the runs differ."""
    flat = [flat_settings(run.config) for run in runs]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = [(name, *(one.get(name, MISSING) for one in flat)) for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    columns = [Column("setting"), *(Column(run.name) for run in runs)]
    caption = "" if differing else "None: the runs have the same settings."
    return Figure("Settings that differ", caption, Table(columns, differing), unfolded=True)


def _labels(label: str) -> list[str]:
    return [label.lower(), "how much"] if label == "Worst category" else [label.lower()]


def _difference_figure(one: Difference) -> Figure:
    summary, categories = dict(one.summary or {}), dict(one.categories or {})
    ordered = sorted(categories.items(), key=lambda item: item[1].value)
    entries = [*ordered, *summary.items()]
    rows = [
        Row(name, [interval], figure(interval.value, "points"), summary=place >= len(ordered))
        for place, (name, interval) in enumerate(entries)
    ]
    ends = [end for _, i in entries for end in (i.low, i.high, i.value) if end is not None]
    axis = RowAxis(*domain(ends, include=(0.0,)), "points", 0.0, "points")
    series = (Series(f"{one.second} minus {one.first}", "accent"),)

    def draw(width: float) -> Drawing:
        return row_chart(
            rows, series, axis, width=width, description=f"{one.metric}: {one.second} minus {one.first}"
        )

    columns: list[Column] = [Column("what")]
    columns += [Column(name, "points") for name in ("difference", "low", "high")]
    cells = [(name, i.value, i.low, i.high) for name, i in entries]
    caption = f"In points, over {one.num_prompts} prompts; summaries below the categories."
    if one.gap_shrank is not None:
        caption += f" Probability that the gap shrank: {figure(one.gap_shrank, 'rate')}."
    title = f"{one.metric}: {one.second} minus {one.first}"
    return Figure(title, caption, Table(columns, cells), draw)


def _course_figures(runs: Sequence[RunRecord], series: Sequence[Series]) -> list[Figure]:
    parts: tuple[tuple[str, str, Unit], ...] = (
        ("Accuracy on training pairs", "rewards/accuracies", "rate"),
        ("Violation rate of training pairs", "violation_rate", "rate"),
    )
    figures = [
        _course_figure(
            title,
            [
                Curve(one, run.metrics.steps, running_mean(run.metrics.columns[name]))
                for run, one in zip(runs, series, strict=True)
                if name in run.metrics.columns
            ],
            unit,
        )
        for title, name, unit in parts
    ]
    found = [(one, displacement(run)) for run, one in zip(runs, series, strict=True)]
    chosen = [Curve(one, d.steps, d.chosen) for one, d in found if not d.unknown]
    figures.append(_course_figure("Log-ratio of chosen responses, nats per token", chosen, "plain"))
    return [shown for shown in figures if shown.table.rows]


def _course_figure(title: str, curves: Sequence[Curve], unit: Unit) -> Figure:
    def draw(width: float) -> Drawing:
        return line_chart(curves, LineAxes(unit), width=width, description=f"{title}, all runs")

    cells = [(c.series.name, *_ends(c)) for c in curves if len(c.steps)]
    columns = [Column("run"), Column("at first", unit), Column("at last", unit)]
    return Figure(title, "Running means over batches.", Table(columns, cells), draw, half=True)


def _ends(curve: Curve) -> tuple[float | None, float | None]:
    finite = [float(v) for v in curve.values if v == v]
    return (finite[0], finite[-1]) if finite else (None, None)
