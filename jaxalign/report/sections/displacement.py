"""Whether chosen responses lost likelihood while training, and the alarm about it."""

from jaxalign.report.curves import last_finite
from jaxalign.report.displacement import THRESHOLD, displacement
from jaxalign.report.document import Column, Figure, Section, Table
from jaxalign.report.lines import Curve, LineAxes, line_chart
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Interval, Row, RowAxis, row_chart
from jaxalign.report.scales import domain, figure
from jaxalign.report.sections.balance import CHOSEN, REJECTED
from jaxalign.report.svg import Drawing


def section(run: RunRecord) -> Section:
    """Log-ratios over the steps with the threshold, and held-out log-probs by category."""
    title = "Likelihood of chosen responses"
    found = displacement(run)
    lead = (
        "A preference loss can be met by making both responses less likely. The alarm is raised where the running mean "
        f"of the chosen log-ratio lies below {figure(THRESHOLD)} nats per token, a tenth of the likelihood of each "
        f"token, for {found.patience} steps in a row. "
    )
    if found.raised is not None:
        lead += f"It was raised from step {found.raised[0]} to {found.raised[1]}."
    elif not found.unknown:
        lead += "It was not raised."
    figures = []
    if not found.unknown:
        curves = [Curve(CHOSEN, found.steps, found.chosen), Curve(REJECTED, found.steps, found.rejected)]
        axes = LineAxes(level=THRESHOLD, span=found.raised, include=(0.0,))

        def draw(width: float) -> Drawing:
            return line_chart(curves, axes, width=width, description="Log-ratios to the reference over steps")

        columns = [Column("response"), Column("lowest", "plain"), Column("at last", "plain")]
        cells = [(c.series.name, _lowest(c), last_finite(c.values)) for c in curves]
        caption = (
            "Log-ratio to the reference in nats per token, a running mean over batches; lengths are the mean of both "
            "responses. Dashed: the threshold. Shaded: the alarm."
        )
        figures.append(Figure("Against the reference", caption, Table(columns, cells), draw))
    if run.before is not None and run.after is not None and run.after["categories"]:
        figures.append(_heldout_figure(run))
    missing = (f"No alarm can be given: {found.unknown}.",) if found.unknown else ()
    return Section("displacement", title, lead, figures, missing)


def _lowest(curve: Curve) -> float | None:
    finite = [float(v) for v in curve.values if v == v]
    return min(finite, default=None)


def _heldout_figure(run: RunRecord) -> Figure:
    assert run.before is not None
    assert run.after is not None
    changes = {
        name: tuple(
            _change(run.before["categories"].get(name, {}).get(key), after.get(key))
            for key in ("chosen_logps", "rejected_logps")
        )
        for name, after in run.after["categories"].items()
    }
    ordered = sorted(changes.items(), key=lambda item: item[1][0] if item[1][0] is not None else 0.0)
    rows = [
        Row(name, [None if v is None else Interval(v) for v in both], figure(both[0], signed=True))
        for name, both in ordered
    ]
    values = [v for both in changes.values() for v in both if v is not None]
    axis = RowAxis(*domain(values, include=(0.0,)), "plain", 0.0, "chosen")

    def draw(width: float) -> Drawing:
        return row_chart(
            rows,
            (CHOSEN, REJECTED),
            axis,
            width=width,
            description="Change of held-out log-probs by category",
        )

    columns = [Column("category"), Column("chosen", "plain"), Column("rejected", "plain")]
    caption = (
        "Change of the mean log-prob of a response from before to after, in nats; left of 0 is less likely."
    )
    return Figure("Held-out pairs", caption, Table(columns, [(name, *both) for name, both in ordered]), draw)


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
