"""Tables for people: held-out figures per category, before and after."""

from pathlib import Path
from typing import ClassVar

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table
from rich.text import Text

from jaxalign.evaluation.heldout_pairs import ALL_PAIRS
from jaxalign.evaluation.preference import PreferenceReport
from jaxalign.hf.verify import VerifyReport
from jaxalign.run.train import TrainResult

EXPLANATION = (
    "accuracy: chosen preferred to rejected, against the reference (a tie is one half); gap: beta * (log-ratio of "
    "chosen - of rejected); unsafe: share of pairs with the gap below the threshold"
)


class _FoldedTable(TableElement):
    """A table whose long words go on in the next line: cut, names of categories may look alike."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                for column in part.columns:
                    column.overflow = "fold"
            yield part


class Figures(Markdown):
    """Markdown on a terminal, with nothing cut off."""

    elements: ClassVar = {**Markdown.elements, "table_open": _FoldedTable}


def print_report(report: PreferenceReport, console: Console) -> None:
    """One row per category, then the spread between categories."""
    title = f"Preference figures of {report.num_pairs} pairs (beta {report.beta})"
    table = Table(title=title, box=SIMPLE_HEAD)
    intervals = report.accuracy_intervals or {}
    for name in ("category", "pairs", "loss", "accuracy", *(["95 %"] if intervals else []), "gap", "unsafe"):
        table.add_column(name, justify="left" if name == "category" else "right")
    for name, values in _rows(report):
        low, high = intervals.get(ALL_PAIRS if name == "all" else name, (None, None))
        interval = f"{_cell(low, '.2f')} to {_cell(high, '.2f')}" if low is not None else "-"
        table.add_row(
            Text(name),
            f"{values['pairs']:.0f}",
            _cell(values["loss"], ".4f"),
            _cell(values["accuracy"], ".3f"),
            *([interval] if intervals else []),
            _cell(values["reward_gap"], "+.3f"),
            _cell(values["violation_rate"], ".3f"),
        )
    console.print(table)
    for metric, spread in report.spread.items():
        console.print(
            f"{metric} over categories: mean {_cell(spread['mean'], '.3f')}, "
            f"variance {_cell(spread['variance'], '.4f')}, best-to-worst gap {_cell(spread['gap'], '.3f')}, "
            f"worst {spread['worst_category']} ({_cell(spread['worst'], '.3f')})",
            markup=False,  # a category may be called [bold]
        )
    console.print(EXPLANATION, style="dim")


def print_training(result: TrainResult, workdir: Path, console: Console) -> None:
    """What a finished or stopped run leaves, and how the held-out figures moved."""
    if not result.finished:
        console.print(f"stopped at step {result.step}; the same command goes on from there")
    elif result.before is not None and result.after is not None:
        console.print(_before_after(result.before, result.after))
        console.print(EXPLANATION, style="dim")
    elif result.after is not None:
        print_report(result.after, console)
    if result.finished and result.selected:
        best = (
            "no state was eligible" if result.best_step is None else f"step {result.best_step}: --step best"
        )
        console.print(f"best          {best}", markup=False)
    console.print(f"checkpoints   {workdir / 'checkpoints'}", markup=False)
    console.print(f"figures       {workdir / 'metrics.jsonl'}", markup=False)
    console.print(f"manifest      {workdir / 'manifest.json'}", markup=False)


def print_verification(report: VerifyReport, console: Console) -> None:
    """Each difference beside its tolerance, and the verdict."""
    limit = report.tolerances
    title = f"{report.num_positions} positions of {report.num_sequences} texts"
    table = Table(title=title, box=SIMPLE_HEAD)
    for name in ("difference", "measured", "allowed"):
        table.add_column(name, justify="left" if name == "difference" else "right")
    table.add_row("logits, largest", f"{report.max_abs:.2e}", "")
    table.add_row("logits, over the largest logit", f"{report.relative:.2e}", f"{limit.relative:.0e}")
    table.add_row("mean KL, nats", f"{report.mean_kl:.2e}", f"{limit.mean_kl:.0e}")
    table.add_row("top-1 agreement", f"{report.top1_agreement:.4f}", f"{limit.top1_agreement}")
    table.add_row("response log-probs, nats", f"{report.max_response_logps:.2e}", f"{limit.response_logps}")
    console.print(table)
    verdict = "pass" if report.passed else "FAIL"
    console.print(f"{verdict}: weights stored as {report.stored_dtype}")


def _before_after(before: PreferenceReport, after: PreferenceReport) -> Table:
    title = f"{after.num_pairs} held-out pairs, before and after training"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("category", min_width=20)
    for name in ("pairs", "accuracy", "after", "gap", "after", "unsafe", "after"):
        table.add_column(name, justify="right", style="bold" if name == "after" else None)
    start = dict(_rows(before))
    for name, end in _rows(after):
        cells = [
            _cell(values[metric], style)
            for metric, style in (("accuracy", ".2f"), ("reward_gap", "+.2f"), ("violation_rate", ".2f"))
            for values in (start[name], end)
        ]
        table.add_row(Text(name), f"{end['pairs']:.0f}", *cells)
    return table


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def _rows(report: PreferenceReport) -> list[tuple[str, dict[str, float]]]:
    rows = sorted(report.categories.items(), key=lambda item: -item[1]["pairs"])
    if report.without_category is not None:
        rows.append(("(no category)", report.without_category))
    return [*rows, ("all", report.overall)]
