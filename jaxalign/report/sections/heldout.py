"""Held-out pairs: which response is preferred, before and after, and how the reward gaps are spread."""

import functools
from collections.abc import Mapping
from typing import Any

from jaxalign.report.document import Column, Figure, Section, Table
from jaxalign.report.histograms import bar_chart
from jaxalign.report.record import CategoryPairs, HeldoutPairsSummary, RunRecord
from jaxalign.report.rows import Interval, Row, RowAxis, row_chart
from jaxalign.report.scales import domain, figure
from jaxalign.report.sections.answers import BEFORE_AFTER, lower_end
from jaxalign.report.svg import Drawing

ALL, NO_CATEGORY = "all pairs", "(no category)"
SUMMARIES = (NO_CATEGORY, ALL)
Key = tuple[bool, str]
"""Whether a row is a summary, and its name: a category may be called what a summary is."""
NO_HELDOUT = (
    "The run has no held-out figures: name data.heldout or data.heldout_fraction in its configuration, and train to "
    "the last step."
)
NO_PAIRS = (
    "The run left no single held-out pairs (evaluation/after_pairs.jsonl), so distributions and intervals are missing; "
    "a run that is trained to the last step leaves them."
)


def section(run: RunRecord) -> Section:
    """Accuracy by category, ordered by gain."""
    title = "Held-out preference"
    if run.after is None:
        return Section("heldout", title, "", missing=(NO_HELDOUT,))
    lead = (
        f"Share of {run.after['num_pairs']} held-out pairs whose chosen response is preferred, against the reference; "
        "a tie is one half, which is where every run starts. Intervals hold 95 % and are over prompts, as pairs of one "
        "prompt are alike."
    )
    missing = (NO_PAIRS,) if run.pairs is None else ()
    return Section("heldout", title, lead, (_accuracy_figure(run),), missing)


def gap_section(run: RunRecord) -> Section:
    """The spread of the reward gaps, overall and by category."""
    title = "Reward gaps"
    if run.after is None:
        return Section("gaps", title, "", missing=(NO_HELDOUT,))
    if run.pairs is None:
        return Section("gaps", title, "", missing=(NO_PAIRS,))
    threshold = run.after["threshold"]
    lead = (
        "By how much chosen responses gained on rejected ones: beta times the difference of their log-ratios to the "
        f"reference, for each held-out pair. Pairs below {threshold:g} (dashed) count as unsafe."
    )
    figures = [_histogram_figure(run.pairs, threshold)]
    if run.pairs.categories:
        figures.append(_spread_figure(run.pairs, threshold))
    return Section("gaps", title, lead, figures)


def _accuracy_figure(run: RunRecord) -> Figure:
    assert run.after is not None
    start, end = _groups(run.before), _groups(run.after)
    ordered = sorted(end, key=lambda key: (key[0], 0 if key[0] else _loss_of(start.get(key), end[key])))
    rows, cells = [], []
    for key in ordered:
        summary, name = key
        then, value = start.get(key, {}).get("accuracy"), end[key]["accuracy"]
        pairs = _pairs_of(run.pairs, key)
        now = pairs.accuracy if pairs else _dot(value)
        gain = None if then is None or value is None else value - then
        rows.append(Row(name, [_dot(then), now], figure(gain, "points"), summary=summary))
        bounds = (now.low, now.high) if now else (None, None)
        cells.append((name, end[key]["pairs"], pairs.prompts if pairs else None, then, value, *bounds))
    columns = [Column("category"), Column("pairs", "count"), Column("prompts", "count")]
    columns += [Column(part, "rate") for part in ("before", "after", "after, low", "after, high")]
    low = 0.4 if lower_end([Row("", row.intervals[1:]) for row in rows]) else 0.0
    axis = RowAxis(low, 1.0, "rate", reference=0.5, note_heading="gain")
    draw = functools.partial(_draw_rows, rows, axis)
    return Figure("Accuracy, ordered by gain", "Gain in points.", Table(columns, cells), draw)


def _groups(report: Mapping[str, Any] | None) -> dict[Key, dict[str, float | None]]:
    """Figures of every category and of the groups of SUMMARIES that have pairs."""
    if report is None:
        return {}
    others = zip(SUMMARIES, (report.get("without_category"), report["overall"]), strict=True)
    return {(False, name): figures for name, figures in report["categories"].items()} | {
        (True, name): figures for name, figures in others if figures is not None
    }


def _draw_rows(rows: list[Row], axis: RowAxis, width: float) -> Drawing:
    return row_chart(
        rows, BEFORE_AFTER, axis, width=width, description="Held-out accuracy before and after, by category"
    )


def _loss_of(before: dict[str, float | None] | None, after: dict[str, float | None]) -> float:
    """What the accuracy lost, to sort the largest gain first; a missing figure comes last."""
    start = (before or {}).get("accuracy")
    end = after["accuracy"]
    return 1.0 if end is None else (0.5 if start is None else start) - end


def _pairs_of(pairs: HeldoutPairsSummary | None, key: Key) -> CategoryPairs | None:
    if pairs is None:
        return None
    if key == (True, ALL):
        return pairs.overall
    return None if key[0] else pairs.categories.get(key[1])


def _dot(value: float | None) -> Interval | None:
    return None if value is None else Interval(value)


def _histogram_figure(pairs: HeldoutPairsSummary, threshold: float) -> Figure:
    bins = zip(pairs.edges, pairs.edges[1:], pairs.counts, strict=False)
    columns = [Column("from", "plain"), Column("to", "plain"), Column("pairs", "count")]

    def draw(width: float) -> Drawing:
        return bar_chart(
            pairs.edges,
            pairs.counts,
            width=width,
            threshold=threshold,
            description="Histogram of all reward gaps",
        )

    below = figure(pairs.overall.below, "rate")
    caption = (
        f"{pairs.overall.pairs} pairs, {below} below the threshold. The outermost bars hold what lies beyond."
    )
    return Figure("All held-out pairs", caption, Table(columns, [tuple(row) for row in bins]), draw)


def _spread_figure(pairs: HeldoutPairsSummary, threshold: float) -> Figure:
    ordered = sorted(pairs.categories.items(), key=lambda item: item[1].gap.value)
    rows = [Row(name, [one.gap], figure(one.below, "rate")) for name, one in ordered]
    ends = [end for _, one in ordered for end in (one.gap.low, one.gap.high) if end is not None]
    axis = RowAxis(*domain(ends, include=(threshold,)), "plain", threshold, "unsafe")

    def draw(width: float) -> Drawing:
        return row_chart(
            rows, BEFORE_AFTER[1:], axis, width=width, description="Spread of the reward gaps by category"
        )

    columns = [Column("category"), Column("pairs", "count"), Column("5 %"), Column("25 %"), Column("median")]
    columns += [Column("75 %"), Column("95 %"), Column("below threshold", "rate")]
    columns = [c if c.unit or c.name == "category" else Column(c.name, "plain") for c in columns]
    cells = [
        (name, one.pairs, one.gap.low, *_inner(one.gap), one.gap.high, one.below) for name, one in ordered
    ]
    caption = (
        "Dot: median. Thick: the middle half of the pairs. Thin: nine tenths of them. Lowest median first."
    )
    return Figure("By category", caption, Table(columns, cells), draw)


def _inner(gap: Interval) -> tuple[float | None, float, float | None]:
    low, high = gap.inner or (None, None)
    return low, gap.value, high
