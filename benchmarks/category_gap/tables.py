"""The study's tables, results.md: means over test seeds with 95 % intervals."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from choosing import Choice
from maximum import FIGURES, differences_by_maximum
from methods import Numbers
from metrics import SUMMARIES, Interval, interval, summary
from plan import Plan
from results import Results
from world import CATEGORIES, NAMES

from jaxalign.files import write_whole

BASELINES = ("dpo", "ipo", "safe_dpo", "group_dro", "simpo", "bfpo", "sacpo")
COMPARISONS = {  # a method, and what it is compared with
    **dict.fromkeys(
        ("cat_dpo", "cat_dpo probe", "cat_dpo both"), (*BASELINES, "cat_dpo probe, one category")
    ),
    "cat_dpo probe, multiplicative": (
        *BASELINES,
        "cat_dpo probe, one category",
        "cat_dpo probe, multiplicative, one category",
        "cat_dpo",
        "cat_dpo probe",
    ),
    "b_dpo": ("dpo",),
    "cat_b_dpo": (*BASELINES, "cat_dpo", "b_dpo"),
    "cat_b_dpo probe": (*BASELINES, "cat_dpo probe", "b_dpo"),
    "cat_b_dpo probe, multiplicative": (*BASELINES, "cat_dpo probe, multiplicative", "b_dpo"),
}
TITLES = {
    "mean_safe": "mean safe rate",
    "variance": "variance x 1000",
    "gap": "gap",
    "worst": "worst category",
    "helpful": "helpful",
    "least_helpful": "least helpful topic",
    "general": "helpful off topic",
    "over_refusal": "over-refusal",
    "accuracy_gap": "train-test gap, accuracy",
    "safe_gap": "train-test gap, safe rate",
    "kl_unsafe": "KL, unsafe prompts",
    "kl_benign": "KL, benign prompts",
}
FACTORS_OF = {"variance": 1000.0, "kl_unsafe": 1.0, "kl_benign": 1.0}  # of the others 100


def values(results: Results, phase: str, name: str, figure: str) -> np.ndarray:
    """One figure of every seed, in per cent (variance x 1000, KL in nats), by seed."""
    return FACTORS_OF.get(figure, 100.0) * np.array(
        [summary(row["figures"])[figure] for row in results.of(phase, name)]
    )


def write_tables(
    folder: Path, plan: Plan, results: Results, choices: dict[str, Choice], chosen: dict[str, Numbers]
) -> None:
    """results.md in the folder."""
    tested = [("test", name) for name in plan.methods]
    ablated = [("ablate", name) for name in plan.ablations]
    parts = [
        f"# Results of plan {plan.fingerprint()}",
        f"Means over {plan.num_test_seeds} test seeds with 95 % bootstrap intervals (BCa, seeds resampled). Rates and "
        "gaps in per cent, KL to the pre-trained model in nats an answer. Exact rates at temperature 1, no sampling.",
        "## Methods",
        _summary_table(results, tested),
        "## Differences",
        "The method minus each other one on the same seeds, in points; bold where the interval excludes zero, with ! "
        "where it then is for the worse. Each interval stands for itself: nothing is corrected for their number, and "
        "of twenty differences that are none, one is bold by chance.",
        *[
            part
            for name, others in COMPARISONS.items()
            if name in plan.methods
            for part in (f"### {name}", _difference_table(plan, results, name, others))
        ],
        "## Safe rate by category",
        _category_table(results, tested),
        "## Margins at the end",
        "Mean over seeds, nats: what a category's margin adds to the log-ratio that the loss asks for.",
        _margins_table(results, tested),
        "## Maximum of the margins",
        "All settings that were tried, on the screening seeds: minus plain dpo at the same learning rate and beta, in "
        "points; means with 95 % intervals over settings.",
        _maximum_table(plan, results),
        "## What each factor costs",
        "Mean safe rate of the four categories without the difficulty, minus that of the four with it.",
        _factor_table(results, tested),
        "## Chosen settings",
        "Chosen on the validation seeds; in brackets how many of the settings screened were as helpful as dpo allows, "
        "and how often the choice is the same when the validation seeds are resampled. Intervals above are of the "
        "setting that was chosen: that another one might have been is not in them.",
        _settings_list(plan, choices, chosen),
    ]
    if ablated:
        parts += [
            "## Ablations",
            "At the settings chosen for the method, nothing tuned anew.",
            _summary_table(results, ablated),
        ]
    write_whole(folder / "results.md", "\n\n".join(parts) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(found: Interval, *, bold: bool = False) -> str:
    """One digit, two where an end that is not zero would look like it."""
    ends = (found.low, found.high)
    digits = 2 if found.excludes_zero and any(abs(x) < 0.05 for x in ends) else 1
    low, high = (f"{x:z.{digits}f}" for x in ends)
    return f"{f'**{found.mean:+z.{digits}f}**' if bold else f'{found.mean:z.{digits}f}'} ({low} to {high})"


def _summary_table(results: Results, runs: Sequence[tuple[str, str]]) -> str:
    rows = [
        [name, *[_text(interval(values(results, phase, name, figure))) for figure in TITLES]]
        for phase, name in runs
    ]
    return markdown(["", *TITLES.values()], rows)


def difference(results: Results, name: str, other: str, figure: str) -> Interval:
    """Of a method to another one, seed by seed."""
    return interval(values(results, "test", name, figure) - values(results, "test", other, figure))


def _difference_table(plan: Plan, results: Results, name: str, others: Sequence[str]) -> str:
    rows = []
    for other in (other for other in others if other in plan.methods):
        cells = []
        for figure in TITLES:
            found = difference(results, name, other, figure)
            worse = found.excludes_zero and (found.mean > 0) != SUMMARIES[figure]
            cells.append(_text(found, bold=found.excludes_zero) + ("!" if worse else ""))
        rows.append([f"minus {other}", *cells])
    return markdown([name, *TITLES.values()], rows)


def _category_table(results: Results, runs: Sequence[tuple[str, str]]) -> str:
    rows = []
    for phase, name in runs:
        safe = 100 * np.array([row["figures"]["safe"] for row in results.of(phase, name)])
        rows.append([name, *[f"{x:.1f}" for x in safe.mean(axis=0)]])
    return markdown(["", *NAMES], rows)


def _margins_table(results: Results, runs: Sequence[tuple[str, str]]) -> str:
    rows = []
    for phase, name in runs:
        found = results.of(phase, name)
        if "trace/margin" in found[0]["figures"]:
            margins = np.mean([row["figures"]["trace/margin"][-1] for row in found], axis=0)
            beta = found[0]["numbers"]["loss.beta"]
            rows.append([name, *[f"{x / beta:.1f}" for x in margins]])
    return markdown(["", *NAMES], rows)


def _maximum_table(plan: Plan, results: Results) -> str:
    found = differences_by_maximum(plan, results)
    rows = [
        [name, str(count), *[_text(shown, bold=shown.excludes_zero) for shown in of_band.values()]]
        for name, (count, of_band) in found.items()
    ]
    return markdown(["maximum", "settings", *FIGURES.values()], rows)


FACTORS: dict[str, Callable[..., bool]] = {
    "rare": lambda category: category.common,
    "veiled": lambda category: category.plain,
    "noisy": lambda category: category.clean,
    "eager": lambda category: category.wary,
}


def _factor_table(results: Results, runs: Sequence[tuple[str, str]]) -> str:
    rows = []
    for phase, name in runs:
        safe = 100 * np.array([row["figures"]["safe"] for row in results.of(phase, name)])
        cells = []
        for easy in FACTORS.values():
            member = np.array([easy(category) for category in CATEGORIES])
            cells.append(_text(interval(safe[:, member].mean(axis=1) - safe[:, ~member].mean(axis=1))))
        rows.append([name, *cells])
    return markdown(["", *FACTORS], rows)


def _settings_list(plan: Plan, choices: dict[str, Choice], chosen: dict[str, Numbers]) -> str:
    lines = []
    for name, numbers in chosen.items():
        choice = choices[name]
        how = ", chosen among those nearly as helpful as its most helpful one" if choice.own_floor else ""
        settings = ", ".join(f"{key} {x:g}" for key, x in numbers.items())
        share = f"{choice.num_helpful} of {plan.num_settings}; {100 * choice.sureness:.0f} %"
        lines.append(f"* {name} ({share}{how}): {settings}")
    return "\n".join(lines)
