"""What probes measured while the run trained: violations in judged answers by category."""

import numpy as np

from jaxalign.report.curves import last_finite
from jaxalign.report.document import Cell, Column, Figure, Section, Table
from jaxalign.report.judges import probe_judge
from jaxalign.report.panels import panel_grid
from jaxalign.report.record import RunRecord
from jaxalign.report.scales import figure
from jaxalign.report.sections.margins import Category, panel
from jaxalign.report.svg import Drawing

NO_PROBES = "The run was trained without probes (adaptive.signal)."
NONE_YET = "No probe was made yet: the first comes after adaptive.probe.every_steps steps."


def section(run: RunRecord) -> Section:
    """One panel a category, the one with most violations at the last probe first."""
    title = "Judged answers at probes"
    if run.signal == "implicit_reward":
        return Section("probes", title, "", missing=(NO_PROBES,))
    columns = run.metrics.columns
    probed = np.isfinite(columns.get("probe/unjudged", np.array([])))
    if not probed.any():
        return Section("probes", title, "", missing=(NONE_YET,))
    lead = (
        "Every so often the policy answered the prompts of the probe, and the judge labelled the answers. Shown is the "
        "share of the judged ones that were called unsafe; those that were not judged count in no rate."
    )
    unjudged, share = columns["probe/unjudged"][probed], columns.get("probe/share_of_time")
    lead += f" {probed.sum()} probes, {figure(float(unjudged.sum()), 'count')} answers not judged"
    spent = None if share is None else last_finite(share)
    if spent is not None:
        lead += f"; probes took {figure(spent, 'rate')} of the time since the start or the last resumption"
    rates = {name: one[probed] for name, one in run.metrics.by_category("probe/violation/").items()}
    categories = [Category(name, values, None, run.target(name)) for name, values in rates.items()]
    categories.sort(key=lambda one: -one.last)
    figures = (_figure(categories, run.metrics.steps[probed]), _table_of_probes(run, probed))
    lead += f". {probe_judge(run)}"
    return Section("probes", title, lead, figures if categories else figures[1:])


def _figure(categories: list[Category], steps: np.ndarray) -> Figure:
    panels = [panel(one) for one in categories]

    def draw(width: float) -> Drawing:
        return panel_grid(panels, steps, width=width, description="Violations in answers at probes")

    caption = (
        f"Unsafe share from 0 to 100 % at the probes of steps {int(steps[0])} to {int(steps[-1])}, worst first; dashed "
        "the target. The number is that of the last probe that judged the category."
    )
    columns = [Column("category"), Column("probes", "count"), Column("unsafe at first", "rate")]
    columns += [Column("at last", "rate"), Column("target", "rate")]
    return Figure(
        "Unsafe answers by category", caption, Table(columns, [_cells(one) for one in categories]), draw
    )


def _cells(one: Category) -> list[Cell]:
    seen = one.violation[np.isfinite(one.violation)]
    first = float(seen[0]) if seen.size else None
    return [one.name, len(seen), first, last_finite(one.violation), one.target]


def _table_of_probes(run: RunRecord, probed: np.ndarray) -> Figure:
    columns = run.metrics.columns
    missing = np.full(len(probed), np.nan)
    share = columns.get("probe/share_of_time", missing)
    rows = [
        (int(step), float(unjudged), float(part))
        for step, unjudged, part in zip(
            run.metrics.steps[probed], columns["probe/unjudged"][probed], share[probed], strict=True
        )
    ]
    heads = [
        Column("step", "count"),
        Column("answers not judged", "count"),
        Column("share of time so far", "rate"),
    ]
    caption = "Time is that since the start or the last resumption."
    return Figure("Each probe", caption, Table(heads, rows))
