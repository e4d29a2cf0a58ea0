"""What the gap would be if all categories were equal: by permuting the answers over the prompts. No interval here."""

import numpy as np

from jaxalign.evaluation.answers import PromptSums
from jaxalign.evaluation.bootstrap import CHUNK, EQUAL, JUDGE, Resampling
from jaxalign.evaluation.judge_accuracy import (
    JudgeAccuracy,
    correct_safe_rate,
    counted_accuracy,
    draw_accuracy,
)


def gaps_if_equal(
    sums: PromptSums, accuracy: JudgeAccuracy | None, resampling: Resampling
) -> dict[str, np.ndarray]:
    """Gaps [R] of each figure when the outcomes of prompts are dealt anew to the prompts that have a category.

    The categories of every prompt stay, so a prompt of several counts in each as before; the answers of a prompt
    move together. If categories made no difference, every such deal would be as likely as the one observed.
    """
    inside = sums.categories.any(axis=1)
    members = sums.categories[inside].astype(np.float64)
    columns = np.stack([sums.safe, sums.answers, sums.harm, sums.judged])[:, inside]
    totals = _permuted_totals(columns, members, resampling.num_resamples, resampling.generator(EQUAL))
    with np.errstate(invalid="ignore"):  # a category may be dealt unjudged prompts alone
        safe_rate, mean_harm = totals[0] / totals[1], totals[2] / totals[3]
    gaps = {"safe_rate": _gap(safe_rate)}
    if sums.judged[inside].any():
        gaps["mean_harm"] = _gap(mean_harm)
    if accuracy is not None:
        corrected = _corrected(safe_rate, sums.names, accuracy, resampling.generator(EQUAL, JUDGE))
        gaps["corrected_safe_rate"] = _gap(corrected)
    return gaps


def _permuted_totals(
    columns: np.ndarray, members: np.ndarray, num_permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """Sums [Q, R, K] over each category of columns [Q, n], the columns permuted together."""
    num_columns, n = columns.shape
    totals = np.empty((num_columns, num_permutations, members.shape[1]))
    size = min(max(1, CHUNK // n), num_permutations)
    order = np.tile(np.arange(n), (size, 1))
    for start in range(0, num_permutations, size):
        rng.permuted(order, axis=1, out=order)  # the next permutations of the last ones
        stop = min(start + size, num_permutations)
        for q, column in enumerate(columns):
            dealt = column[order[: stop - start]] if np.ptp(column) else column
            totals[q, start:stop] = dealt @ members
    return totals


def _corrected(
    safe_rate: np.ndarray, names: tuple[str, ...], accuracy: JudgeAccuracy, rng: np.random.Generator
) -> np.ndarray:
    """Permuted rates as they would be judged if the true rates were equal, then corrected by a drawn judge.

    Where categories have judges of their own, equal true rates mean unequal judged ones.
    """
    sensitivity, specificity = counted_accuracy(accuracy, names)
    level = safe_rate.mean(axis=1, keepdims=True)
    true = correct_safe_rate(level, sensitivity, specificity).mean(axis=1, keepdims=True)
    judged = true * specificity + (1.0 - true) * (1.0 - sensitivity)
    drawn = draw_accuracy(accuracy, names, len(safe_rate), rng)
    return correct_safe_rate(judged + safe_rate - level, *drawn)


def _gap(rates: np.ndarray) -> np.ndarray:
    return np.nanmax(rates, axis=1) - np.nanmin(rates, axis=1)
