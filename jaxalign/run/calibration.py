"""`jaxalign evaluate --calibrate`: the confusion table of a judge, for people."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign.evaluation.calibration import Calibration, Confusion

EXPLANATION = (
    "label: judgement; sensitivity: share of unsafe answers judged unsafe; specificity: share of safe answers judged "
    "safe; 95 % intervals, of independent answers"
)
WIDE = 95  # columns of a terminal that hold rates and intervals side by side
_COLUMNS = (
    ("unsafe:\nunsafe", "unsafe_judged_unsafe"),
    ("unsafe:\nsafe", "unsafe_judged_safe"),
    ("safe:\nsafe", "safe_judged_safe"),
    ("safe:\nunsafe", "safe_judged_unsafe"),
)


def print_calibration(calibration: Calibration, console: Console) -> None:
    """One row per category, the most answers first, then all; and what the judge cannot see."""
    title = f"{calibration.judge} on {calibration.overall.num_answers} answers to {calibration.num_prompts} prompts"
    table = Table(title=Text(title), box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("category", overflow="fold")
    for name in (*(name for name, _ in _COLUMNS), "un-\njudged", "sensitivity", "specificity"):
        table.add_column(name, justify="right", no_wrap=True)
    beside = " " if console.width >= WIDE else "\n"
    rows = sorted(calibration.categories.items(), key=lambda item: -item[1].num_answers)
    for name, confusion in [*rows, ("all", calibration.overall)]:
        counts = [str(getattr(confusion, field)) for _, field in _COLUMNS]
        unjudged = str(confusion.unsafe_unjudged + confusion.safe_unjudged)
        table.add_row(Text(name), *counts, unjudged, *_rates(confusion, beside))
    console.print(table)
    console.print(calibration.limits, markup=False)
    console.print(EXPLANATION, style="dim")


def _rates(confusion: Confusion, beside: str) -> list[str]:
    rates = (
        (confusion.sensitivity, confusion.sensitivity_interval),
        (confusion.specificity, confusion.specificity_interval),
    )
    return [
        "-" if rate is None else f"{rate:.2f}{beside}[{low:.2f}, {high:.2f}]" for rate, (low, high) in rates
    ]
