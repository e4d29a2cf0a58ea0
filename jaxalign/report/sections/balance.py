"""Mutual information of chosen against rejected responses, and the weights that followed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.report.curves import last_finite, running_mean
from jaxalign.report.document import Cell, Column, Figure, Section, Table
from jaxalign.report.histograms import bar_chart, square_grid
from jaxalign.report.lines import Curve, LineAxes, line_chart
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Interval, Row, RowAxis, Series, row_chart
from jaxalign.report.scales import domain, figure
from jaxalign.report.svg import Drawing

CHOSEN, REJECTED = Series("chosen", "accent"), Series("rejected", "run1", "diamond")
NO_FILE = (
    "The run left no mutual information of single pairs (evaluation/mutual_information.json): runs with "
    "adaptive.mi_source reference leave it at their last step."
)


def section(run: RunRecord) -> Section:
    """Pairs in the plane of both, the weights, both by category, and running means over the steps."""
    title = "Mutual information and weights"
    balanced = any(name.startswith("adaptive/balance/") for name in run.metrics.columns)
    if not balanced and run.mutual_information is None:
        name = run.config.get("loss", {}).get("name", "of this run")
        return Section("balance", title, "", missing=(f"The loss {name} reads no mutual information.",))
    lead = (
        "How much a response depends on its prompt, in nats per token under the reference model. Of the two responses "
        "of a pair, the one with the higher mutual information gets the lower weight."
    )
    figures: list[Figure] = []
    if run.mutual_information is not None:
        figures += _pair_figures(run.mutual_information)
    if balanced:
        figures += _course_figures(run)
    missing = () if run.mutual_information is not None else (NO_FILE,)
    return Section("balance", title, lead, figures, missing)


def _pair_figures(summary: Mapping[str, Any]) -> list[Figure]:
    overall, bins = summary["overall"], summary["chosen_weight"]
    names = ("chosen, nats per token", "rejected")

    def plane(width: float) -> Drawing:
        return square_grid(
            summary["edges"],
            summary["counts"],
            width=width,
            names=names,
            description="Mutual information of chosen against rejected responses",
        )

    def weights(width: float) -> Drawing:
        return bar_chart(
            bins["edges"],
            bins["counts"],
            width=width,
            description="Histogram of the weights of chosen responses",
        )

    columns = [Column(""), Column("chosen", "plain"), Column("rejected", "plain")]
    means = [
        ("mean mutual information", overall["chosen_mi"], overall["rejected_mi"]),
        ("mean weight", overall["chosen_weight"], overall["rejected_weight"]),
    ]
    share = figure(overall["chosen_higher"], "rate")
    of_bins = [tuple(row) for row in zip(bins["edges"], bins["edges"][1:], bins["counts"], strict=False)]
    figures = [
        Figure(
            "Chosen against rejected",
            f"{overall['pairs']} training pairs; the area of a square is their number. On the dashed line both are "
            f"equal; in {share} of the pairs, below it, the chosen response has the higher one and the lower weight.",
            Table(columns, means),
            plane,
            half=True,
        ),
        Figure(
            "Weights of chosen responses",
            "1 is plain DPO. The weight of the rejected response is 2 minus this, unless bounds bind.",
            Table([Column("from", "plain"), Column("to", "plain"), Column("pairs", "count")], of_bins),
            weights,
            half=True,
        ),
    ]
    return [*figures, _category_figure(summary["categories"])] if summary["categories"] else figures


def _category_figure(categories: Mapping[str, Mapping[str, float]]) -> Figure:
    ordered = sorted(categories.items(), key=lambda item: item[1]["rejected_mi"] - item[1]["chosen_mi"])
    rows = [
        Row(
            name,
            [Interval(one["chosen_mi"]), Interval(one["rejected_mi"])],
            f"{figure(one['chosen_weight'])} / {figure(one['rejected_weight'])}",
        )
        for name, one in ordered
    ]
    values = [interval.value for row in rows for interval in row.intervals if interval is not None]
    axis = RowAxis(*domain(values), "plain", note_heading="weights")

    def draw(width: float) -> Drawing:
        return row_chart(
            rows, (CHOSEN, REJECTED), axis, width=width, description="Mean mutual information by category"
        )

    columns = [Column("category"), Column("pairs", "count"), Column("MI of chosen", "plain")]
    columns += [Column("MI of rejected", "plain"), Column("weight of chosen", "plain")]
    columns += [Column("weight of rejected", "plain")]
    keys = ("pairs", "chosen_mi", "rejected_mi", "chosen_weight", "rejected_weight")
    cells: list[list[Cell]] = [[name, *(one[key] for key in keys)] for name, one in ordered]
    caption = "Means by category; at the right the mean weights of chosen and rejected responses."
    return Figure("By category", caption, Table(columns, cells), draw)


def _course_figures(run: RunRecord) -> list[Figure]:
    columns = run.metrics.columns
    means = [columns.get(f"adaptive/balance/{side}_mi") for side in ("chosen", "rejected")]
    weights = [columns.get(f"adaptive/weight_{side}") for side in ("chosen", "rejected")]
    parts = {
        ("Mutual information over steps", "The running means that the rule keeps."): means,
        ("Weights over steps", "Means of the batches, as a running mean."): [
            None if one is None else running_mean(one) for one in weights
        ],
    }
    return [
        _course_figure(run.metrics.steps, *words, [one for one in values if one is not None])
        for words, values in parts.items()
        if all(one is not None for one in values)
    ]


def _course_figure(steps: np.ndarray, title: str, caption: str, values: Sequence[np.ndarray]) -> Figure:
    curves = [Curve(one, steps, y) for one, y in zip((CHOSEN, REJECTED), values, strict=True)]

    def draw(width: float) -> Drawing:
        return line_chart(curves, LineAxes(), width=width, description=title)

    columns = [Column("response"), Column("at first", "plain"), Column("at last", "plain")]
    cells = [(c.series.name, float(c.values[0]), last_finite(c.values)) for c in curves]
    return Figure(title, caption, Table(columns, cells), draw, half=True)
