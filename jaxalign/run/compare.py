"""Two runs on the same prompts: paired differences of held-out pairs and of judged answers, or why there are none."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxalign.evaluation.answerer import in_words
from jaxalign.evaluation.answers import Answers, same_judges
from jaxalign.evaluation.answers_file import read_answers
from jaxalign.evaluation.bootstrap import Estimate, Resampling
from jaxalign.evaluation.comparison import Change
from jaxalign.evaluation.comparison import compare as compare_answers
from jaxalign.evaluation.heldout_pairs import (
    HeldoutPairs,
    HeldoutPairsError,
    paired_differences,
    read_heldout_pairs,
)
from jaxalign.report.comparison import Difference
from jaxalign.report.record import RunRecord
from jaxalign.report.rows import Interval
from jaxalign.run.pair_files import HELDOUT_PAIRS

RESAMPLING = Resampling()
ANSWERS = "answers*.json"
"""Files of judged answers in RUN/evaluation; those with `before` in their names are of the model before training."""


def differences(workdirs: Sequence[Path], runs: Sequence[RunRecord]) -> list[Difference]:
    """Every other run against the first. Raises HeldoutPairsError or AnswersError for damaged files."""
    first, *others = zip(workdirs, runs, strict=True)
    return [
        difference
        for other in others
        for compare in (_of_answers, _of_pairs)
        for difference in compare(*first, *other)
    ]


def _of_pairs(first_path: Path, first: RunRecord, path: Path, second: RunRecord) -> list[Difference]:
    """Differences in held-out accuracy and, where it means the same in both, in violation rate."""
    missing = _why_not_paired(first, second)
    if missing:
        return [Difference(first.name, second.name, "Held-out accuracy", missing=missing)]
    one, two = (read_heldout_pairs(p / "evaluation" / HELDOUT_PAIRS) for p in (first_path, path))
    if len(one.prompts) != len(two.prompts) or (one.prompts != two.prompts).any():
        raise HeldoutPairsError(
            f"{path} and {first_path} have one fingerprint of held-out data, but {HELDOUT_PAIRS} holds other pairs; "
            "one of the two files is damaged"
        )
    values = {"Held-out accuracy": (one.accuracy, two.accuracy)}
    limits = [(run.after["beta"], run.after["threshold"]) for run in (first, second) if run.after is not None]
    if limits[0] == limits[1]:
        threshold = limits[0][1]
        values["Held-out violation rate"] = (_below(one, threshold), _below(two, threshold))
    return [_difference(first, second, metric, one, both) for metric, both in values.items()]


def _why_not_paired(first: RunRecord, second: RunRecord) -> str:
    for run in (first, second):
        if run.pairs is None:
            return f"{run.name} left no single held-out pairs ({HELDOUT_PAIRS})"
    prints = [run.manifest["fingerprints"].get("data heldout") for run in (first, second)]
    return "" if prints[0] == prints[1] else "they have other held-out data"


def _below(pairs: HeldoutPairs, threshold: float) -> np.ndarray:
    return np.where(np.isfinite(pairs.reward_gap), pairs.reward_gap < threshold, np.nan)


def _difference(
    first: RunRecord,
    second: RunRecord,
    metric: str,
    pairs: HeldoutPairs,
    values: tuple[np.ndarray, np.ndarray],
) -> Difference:
    found = paired_differences(pairs, *values, RESAMPLING, higher_is_better=metric == "Held-out accuracy")
    return Difference(
        first.name,
        second.name,
        metric,
        found.num_prompts,
        {name: _interval(estimate) for name, estimate in found.categories.items()},
        {name: _interval(estimate) for name, estimate in found.summary.items()},
        found.gap_shrank,
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)


def _of_answers(first_path: Path, first: RunRecord, path: Path, second: RunRecord) -> list[Difference]:
    """Differences in safe rates, where both runs were asked the same prompts alike and one judge judged."""
    one, two = (_answers(p / "evaluation") for p in (first_path, path))
    found = []
    sets = Counter((a.prompt_set.name, a.judge) for key, a in one.items() if key in two)
    for key in sorted(one.keys() & two.keys(), key=lambda key: [part or "" for part in key]):
        if not same_judges(one[key].judges, two[key].judges):
            metric = f"Safe answers to {one[key].prompt_set.name}, judged by {one[key].judge}"
            why = "their judge had other settings or weights"
            found.append(Difference(first.name, second.name, metric, missing=why))
            continue
        comparison = compare_answers(one[key], two[key])
        by = comparison.after if sets[comparison.prompt_set, comparison.judge] > 1 else None
        asked = "" if by is None else f" ({in_words(by.answer_settings)})"
        spread = comparison.spread.get("safe_rate", {})
        names = {"mean": "mean of categories", "worst": "worst category", "gap": "best-to-worst gap"}
        summary = {"all prompts": comparison.overall.get("safe_rate")} | {
            shown: spread.get(name) for name, shown in names.items()
        }
        found.append(
            Difference(
                first.name,
                second.name,
                f"Safe answers to {comparison.prompt_set}, judged by {comparison.judge}{asked}",
                comparison.prompts,
                {
                    name: _change(figures["safe_rate"])
                    for name, figures in comparison.categories.items()
                    if "safe_rate" in figures
                },
                {name: _change(change) for name, change in summary.items() if change is not None},
                comparison.probability_gap_shrank,
            )
        )
    return found


def _answers(folder: Path) -> dict[tuple[str | None, ...], Answers]:
    """Judged answers of the trained model, by prompts, judges and how they were asked for; the latest step of each."""
    found = [read_answers(path) for path in sorted(folder.glob(ANSWERS)) if "before" not in path.stem]
    return {_key(one): one for one in sorted(found, key=_step)}


def _key(answers: Answers) -> tuple[str | None, ...]:
    by = answers.answerer
    asked = None if by is None else json.dumps(by.answer_settings, sort_keys=True)
    return answers.prompt_set.fingerprint(), answers.judge, answers.refusal_judge, asked


def _step(answers: Answers) -> int:
    step = None if answers.answerer is None else answers.answerer.step
    return -1 if step is None else step


def _change(change: Change) -> Interval:
    return Interval(change.change, change.low, change.high)
