"""The categories of several runs in one figure: of answers that were asked and judged alike, of held-out pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.report.document import Column, Figure, Table
from jaxalign.report.origin import other_step
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Interval, Row, RowAxis, Series, row_chart
from jaxalign.report.safety import Safety
from jaxalign.report.safety_groups import SafetyGroup, group_titles, safety_groups
from jaxalign.report.sections.answers import AS_JUDGED, CORRECTED, lower_end
from jaxalign.report.svg import Drawing


def category_figures(runs: Sequence[RunRecord], series: Sequence[Series]) -> list[Figure]:
    """Safe rates where all runs have answers to the same prompts from one judge, and held-out accuracy likewise."""
    figures = []
    for title, found in _shared_answers(runs).items():
        if all(found):
            figures.append(_answers_figure(title, _which(runs, found), [one[-1] for one in found], series))
    if all(run.after is not None and run.after["categories"] for run in runs):
        values = [_accuracies(run) for run in runs]
        figures.append(_category_figure("Held-out accuracy", "", values, series))
    return figures


def _answers_figure(title: str, caption: str, results: Sequence[Safety], series: Sequence[Series]) -> Figure:
    """Safe rates under one judge, corrected for its error where those of all runs are."""
    corrected = all(one.corrected for one in results)
    values = [{name: r.shown(corrected) for name, r in one.categories.items()} for one in results]
    if corrected:
        caption = f"{caption} {CORRECTED}"
    elif any(one.corrected for one in results):
        caption = f"{caption} {AS_JUDGED}"
    return _category_figure(title, f"{caption} {results[0].limits}".strip(), values, series)


def _shared_answers(runs: Sequence[RunRecord]) -> dict[str, list[tuple[Safety, ...]]]:
    """By title the results after training of each run on the same prompts under the same judges, perhaps none."""
    titles = group_titles(one for run in runs for one in run.safety if one.moment == "after")
    groups = [safety_groups(run.safety) for run in runs]
    nothing = SafetyGroup((), ())
    return {
        f"Safe answers to {title}": [of_run.get(key, nothing).after for of_run in groups]
        for key, title in titles.items()
    }


def _which(runs: Sequence[RunRecord], found: Sequence[tuple[Safety, ...]]) -> str:
    """Which result is shown of runs that have several, or whose result is not of their last step."""
    sentences = []
    for run, results in zip(runs, found, strict=True):
        words = [f"the result {results[-1].file}, one of {len(results)}"] if len(results) > 1 else []
        words += [words_of_step] if (words_of_step := other_step(run, results[-1])) else []
        sentences += [f"{run.name}: {', '.join(words)}."] if words else []
    return " ".join(sentences)


def not_shared(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence on each result that some run has not."""
    sentences = []
    for title, found in _shared_answers(runs).items():
        without = [run.name for run, results in zip(runs, found, strict=True) if not results]
        if without:
            sentences.append(
                f"{title}: not side by side, as {', '.join(without)} left no result of the same prompts and judges, "
                "with the same settings of judges and answers."
            )
    return sentences


def _accuracies(run: RunRecord) -> dict[str, Interval]:
    if run.pairs is not None:
        return {name: one.accuracy for name, one in run.pairs.categories.items()}
    assert run.after is not None
    found: Mapping[str, Mapping[str, Any]] = run.after["categories"]
    return {name: Interval(f["accuracy"]) for name, f in found.items() if f["accuracy"] is not None}


def _category_figure(
    title: str, caption: str, values: Sequence[Mapping[str, Interval]], series: Sequence[Series]
) -> Figure:
    names = dict.fromkeys(name for one in values for name in one)
    ordered = sorted(names, key=lambda name: min(one[name].value for one in values if name in one))
    rows = [Row(name, [one.get(name) for one in values]) for name in ordered]
    axis = RowAxis(lower_end(rows), 1.0, "rate")

    def draw(width: float) -> Drawing:
        return row_chart(rows, series, axis, width=width, description=f"{title} of all runs by category")

    columns = [Column("category"), *(Column(one.name, "rate") for one in series)]
    cells = [(row.label, *(i.value if i is not None else None for i in row.intervals)) for row in rows]
    caption = f"The category in which some run is worst comes first. {caption}".strip()
    return Figure(title, caption, Table(columns, cells), draw)
