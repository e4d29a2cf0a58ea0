"""How training went: loss, accuracy, gradient, throughput, skipped steps."""

from collections.abc import Sequence

import numpy as np

from jaxalign.report.curves import last_finite, running_mean
from jaxalign.report.document import Column, Figure, Section, Table
from jaxalign.report.judges import selection_judge
from jaxalign.report.lines import Curve, LineAxes, line_chart
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Series
from jaxalign.report.scales import Unit
from jaxalign.report.svg import Drawing

_ONE = Series("", "accent")
_CURVES: tuple[tuple[str, str, str, Unit, bool], ...] = (
    ("Loss", "loss", "Running mean over batches.", "plain", True),
    ("Accuracy on training pairs", "rewards/accuracies", "Chosen preferred, a running mean.", "rate", True),
    ("Norm of the gradient", "grad_norm", "Before clipping.", "plain", False),
    ("Throughput", "response_tokens_per_second", "Response tokens a second.", "count", False),
    (
        "Worst category in answers",
        "selection/worst_safe_rate_at_least",
        "Safe rate of the worst category, a lower bound, at each look of the selection.",
        "rate",
        False,
    ),
)


def section(run: RunRecord) -> Section:
    """A curve each, with the steps marked that were skipped because they were not finite."""
    title = "Training"
    steps = run.metrics.steps
    if not len(steps):
        return Section("course", title, "", missing=("metrics.jsonl holds no step.",))
    skipped = skipped_steps(run)
    lead = f"{len(steps)} steps logged, {len(skipped)} skipped as not finite."
    if skipped:
        shown = ", ".join(map(str, skipped[:12])) + (", …" if len(skipped) > 12 else "")
        lead += f" Skipped (marked at the foot of each figure): {shown}."
    figures = [
        _figure(run, title, name, caption, unit, smooth, skipped)
        for title, name, caption, unit, smooth in _CURVES
        if name in run.metrics.columns
    ]
    return Section("course", title, lead, [_summary(run), *figures])


def skipped_steps(run: RunRecord) -> list[int]:
    """The steps at which the count of skipped steps went up."""
    counts = run.metrics.columns.get("skipped_steps")
    if counts is None:
        return []
    known = np.where(np.isfinite(counts), counts, 0.0)
    rises = np.flatnonzero(np.diff(np.maximum.accumulate(known), prepend=0.0) > 0)
    return [int(step) for step in run.metrics.steps[rises]]


def _figure(
    run: RunRecord, title: str, name: str, caption: str, unit: Unit, smooth: bool, skipped: Sequence[int]
) -> Figure:
    steps, column = run.metrics.steps, run.metrics.columns[name]
    if name.startswith("selection/"):  # a value at each look, none between
        steps, column = steps[np.isfinite(column)], column[np.isfinite(column)]
        caption += f" {selection_judge(run)}"
    values = running_mean(column) if smooth else column
    curve = Curve(_ONE, steps, values)

    def draw(width: float) -> Drawing:
        return line_chart(
            [curve],
            LineAxes(unit, events=skipped, include=(0.0,) if unit == "count" else ()),
            width=width,
            description=f"{title} over steps",
        )

    finite = values[np.isfinite(values)]
    cells = [(float(finite[0]), float(np.median(finite)), last_finite(values))] if finite.size else []
    columns = [Column(name, unit) for name in ("at first", "median", "at last")]
    return Figure(title, caption, Table(columns, cells), draw, half=True)


def _summary(run: RunRecord) -> Figure:
    columns = run.metrics.columns
    seconds = columns.get("seconds_per_step", np.array([]))
    tokens = columns.get("response_tokens", np.array([]))
    rate = columns.get("response_tokens_per_second", np.array([]))
    rows: list[tuple[str, float | None]] = [
        ("steps", float(len(run.metrics.steps))),
        ("skipped steps", float(len(skipped_steps(run)))),
        ("pairs", float(np.nansum(columns.get("pairs", np.array([]))))),
        ("response tokens", float(np.nansum(tokens))),
        ("seconds in steps", float(np.nansum(seconds))),
        ("median tokens a second", float(np.nanmedian(rate)) if np.isfinite(rate).any() else None),
    ]
    caption = ""
    if "probe/seconds_taken" in columns:
        rows.append(("seconds in probes", float(np.nansum(columns["probe/seconds_taken"]))))
    elif "probe/seconds" in columns:
        rows.append(("seconds in probes", _total(columns["probe/seconds"])))
        caption = (
            "This older log has running totals of each process alone: at least so many seconds were spent in probes, "
            "as a resumption shows only where the total falls."
        )
    if "selection/seconds" in columns:
        rows.append(("seconds in looks of the selection", float(np.nansum(columns["selection/seconds"]))))
    if "selection/best_step" in columns:
        rows.append(("best step", last_finite(columns["selection/best_step"])))
    return Figure(
        "In numbers", caption, Table([Column("what"), Column("how much", "count")], rows), unfolded=True
    )


def _total(running: np.ndarray) -> float:
    """The sum of what a running total grew by; it begins anew with each resumption."""
    known = running[np.isfinite(running)]
    growth = np.diff(known, prepend=0.0)
    return float(np.where(growth < 0, known, growth).sum())
