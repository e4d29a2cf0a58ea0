"""Margins and violation rates by category over the steps, with their targets."""

from dataclasses import dataclass

import numpy as np

from jaxalign.report.curves import last_finite, running_mean
from jaxalign.report.document import Column, Figure, Section, Table
from jaxalign.report.judges import probe_judge
from jaxalign.report.panels import Panel, Strip, panel_grid
from jaxalign.report.record import RunRecord
from jaxalign.report.scales import figure
from jaxalign.report.svg import Drawing

NO_CATEGORIES = "No category was logged: the training pairs have none, or no step was taken."

VIOLATES = {
    "implicit_reward": "A pair violates where its reward gap lies below the threshold.",
    "probe": (
        "The margins follow the answers at probes alone: one violates where the judge calls it unsafe. The curves are "
        "the running rates that the margin rule keeps of them, and move at probes only."
    ),
    "both": (
        "The margins follow training pairs and the answers at probes: a pair violates where its reward gap lies below "
        "the threshold, an answer where the judge calls it unsafe. The curves are the running rates of both together."
    ),
}
"""By signal of the margins."""
OF_BATCHES = "The curves are running means over batches"


@dataclass(frozen=True)
class Category:
    """Its violation rates over the steps, with the margin and the target where there are such."""

    name: str
    violation: np.ndarray
    margin: np.ndarray | None
    target: float | None

    @property
    def last(self) -> float:
        """The newest violation rate, 0 where there is none."""
        found = last_finite(self.violation)
        return 0.0 if found is None else found


def section(run: RunRecord) -> Section:
    """One panel a category, the one with most violations at the end first."""
    title = "Violations and margins over steps"
    categories = sorted(_categories(run), key=lambda one: -one.last)
    if not categories:
        return Section("margins", title, "", missing=(NO_CATEGORIES,))
    most = float(run.config.get("adaptive", {}).get("margin", {}).get("maximum") or 1.0)
    steps = run.metrics.steps
    panels = [panel(one, most) for one in categories]

    def draw(width: float) -> Drawing:
        return panel_grid(panels, steps, width=width, description=f"{title}, {len(panels)} categories")

    span = f"steps {int(steps[0])} to {int(steps[-1])}"
    caption = f"Violation rate from 0 to 100 % over {span}, worst first; the number is that of the last step."
    if run.has_margins and not run.metrics.by_category("adaptive/violation/"):
        lead = (
            f"The margins have not moved yet, as nothing that they follow was seen. {OF_BATCHES} of training pairs; a "
            "pair violates where its reward gap lies below the threshold."
        )
    elif run.has_margins:
        lead = (
            f"{VIOLATES[run.signal]} While a category violates more than its target (dashed; the excess is shaded) its "
            f"margin grows, and relaxes once it has caught up. {probe_judge(run)}"
        ).strip()
        caption += f" Below it the margin, from 0 to {most:g}."
    else:
        lead = f"{VIOLATES[run.signal]} This loss has no margins and no targets. {OF_BATCHES}."
    return Section("margins", title, lead, (Figure("By category", caption, _table(run, categories), draw),))


def _categories(run: RunRecord) -> list[Category]:
    margins = run.metrics.by_category("adaptive/margin/")
    rates = run.metrics.by_category("adaptive/violation/")
    if not rates:  # no margin rule, or none that saw anything: the batches' own rates, which no target is for
        batches = run.metrics.by_category("category/", "/violation_rate")
        return [Category(name, running_mean(values), None, None) for name, values in batches.items()]
    return [Category(name, values, margins.get(name), run.target(name)) for name, values in rates.items()]


def panel(one: Category, most: float = 1.0) -> Panel:
    """The curve of a category, above that of its margin, which ends at `most`."""
    strips = [Strip(one.violation, 0.0, 1.0, "accent", 42, one.target)]
    note = figure(last_finite(one.violation), "rate")
    if one.margin is not None:
        strips.append(Strip(one.margin, 0.0, most, "soft", 20))
        note += f" · margin {figure(last_finite(one.margin))}"
    over = one.target is not None and one.last > one.target
    return Panel(one.name, note, strips, warn=over)


def _table(run: RunRecord, categories: list[Category]) -> Table:
    columns = [
        Column("category"),
        Column("training pairs seen", "count"),
        Column("violations at first", "rate"),
    ]
    columns += [Column("at last", "rate"), Column("target", "rate"), Column("largest margin", "plain")]
    columns += [Column("last margin", "plain")]
    rows = []
    for one in categories:
        pairs = run.metrics.columns.get(f"category/{one.name}/pairs")
        seen = None if pairs is None else float(np.nansum(pairs))
        first = one.violation[np.isfinite(one.violation)]
        margin = one.margin if one.margin is not None else np.array([])
        largest = margin[np.isfinite(margin)]
        rows.append(
            (
                one.name,
                seen,
                float(first[0]) if first.size else None,
                last_finite(one.violation),
                one.target,
                float(largest.max()) if largest.size else None,
                last_finite(margin),
            )
        )
    return Table(columns, rows)
