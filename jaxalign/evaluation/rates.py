"""Rates and means of groups of prompts, with draws under resampling. What is made of them is not here."""

import dataclasses

import numpy as np

from jaxalign.evaluation.answers import PromptSums
from jaxalign.evaluation.bootstrap import JUDGE, PRIOR, Estimate, Resampling
from jaxalign.evaluation.judge_accuracy import (
    JudgeAccuracy,
    correct_safe_rate,
    counted_accuracy,
    draw_accuracy,
    rogan_gladen,
)

ALL, HARMFUL, BENIGN = -3, -2, -1  # the last groups, after the categories
CATEGORY_FIGURES = ("safe_rate", "corrected_safe_rate", "mean_harm")
LOWER_IS_BETTER = ("mean_harm", "over_refusal", "under_refusal")


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A figure of every group, [G], and its draws, [R, G]; NaN where a group has nothing to measure.

    `unclipped` [2, G], of corrected rates, are the central bounds of what Rogan's and Gladen's formula gives, which lie
    both above 1 or both below 0 where the judged rate contradicts the calibration.
    """

    value: np.ndarray
    draws: np.ndarray
    unclipped: np.ndarray | None = None

    def estimate(self, group: int, resampling: Resampling) -> Estimate:
        """The figure of a group with its interval, which holds what the bounds before clipping allow."""
        found = resampling.estimate(self.value[group], self.draws[:, group])
        if self.unclipped is None or found.low is None or found.high is None:
            return found
        low, high = np.clip(self.unclipped[:, group], 0.0, 1.0)
        return Estimate(found.value, min(found.low, float(low)), max(found.high, float(high)))


def sample_rates(
    sums: PromptSums, accuracy: JudgeAccuracy | None, resampling: Resampling, *, model: int = 0
) -> dict[str, Sampled]:
    """Every figure by name, for the K categories and the groups ALL, HARMFUL and BENIGN.

    Models that answered the same prompts get the same weights of prompts and the same draws of the judge's error,
    so that their draws are paired; `model` numbers them.
    """
    columns = {"answers": sums.answers, "safe": sums.safe, "judged": sums.judged, "harm": sums.harm}
    if sums.refused is not None and sums.complied is not None:
        columns |= {"refused": sums.refused, "complied": sums.complied}
    values = np.stack(list(columns.values()), axis=1)[:, :, None] * sums.groups[:, None, :]
    n, num_columns, num_groups = values.shape
    drawn = resampling.sums(values.reshape(n, -1)).reshape(-1, num_columns, num_groups)
    totals = dict(zip(columns, values.sum(axis=0), strict=True))
    draws = dict(zip(columns, drawn.swapaxes(0, 1), strict=True))
    shape = (2, resampling.num_resamples, num_groups)
    prior = resampling.generator(PRIOR, model).standard_gamma(0.5, shape)
    prompts = sums.groups.sum(axis=0)

    def ratio(hits: str, of: str, hit: int = 0) -> Sampled:
        # Two more prompts, one all hits and one none, weighted by Gamma(1/2): with one answer to a prompt the draws
        # are Beta(hits + 1/2, misses + 1/2). That is Jeffreys' interval, which is wide also without a single miss.
        with np.errstate(invalid="ignore"):  # an empty group is 0 / 0, NaN
            size = totals[of] / prompts
            return Sampled(
                totals[hits] / totals[of],
                (draws[hits] + size * prior[hit]) / (draws[of] + size * prior.sum(axis=0)),
            )

    rates = {"safe_rate": ratio("safe", "answers"), "mean_harm": ratio("harm", "judged", hit=1)}
    if "refused" in columns:
        rates["over_refusal"] = _complement(ratio("complied", "answers"))
        rates["under_refusal"] = _complement(ratio("refused", "answers"))
    if accuracy is not None:
        with np.errstate(invalid="ignore"):
            size = totals["answers"] / prompts
            least = size * prior / (draws["answers"] + size * prior.sum(axis=0))
        rates["corrected_safe_rate"] = _corrected(rates["safe_rate"], least, sums.names, accuracy, resampling)
    return rates


def _complement(rate: Sampled) -> Sampled:
    return Sampled(1.0 - rate.value, 1.0 - rate.draws)


def _corrected(
    rate: Sampled, least: np.ndarray, names: tuple[str, ...], accuracy: JudgeAccuracy, resampling: Resampling
) -> Sampled:
    """Corrected rates; `least` [2, R, G] are draws of the rates of as many answers without a safe, an unsafe one.

    Clipped at 0 and 1 draws would all be the same, and look certain, where the judged rate is near what a judge says
    of safe answers alone. As in the certificate, what is deducted never leaves less than `least`. Where nearly all
    draws lie beyond 0 or 1, the judge cannot err here as it did in the calibration: nothing is deducted any more.
    """
    groups = (*names, "", "", "")  # the pooled counts hold for groups of several categories
    sensitivity, specificity = draw_accuracy(accuracy, groups, len(rate.draws), resampling.generator(JUDGE))
    low, high = unclipped = resampling.central(rogan_gladen(rate.draws, sensitivity, specificity))
    sensitivity = np.where(high < 0.0, 1.0, sensitivity)
    specificity = np.where(low > 1.0, 1.0, specificity)
    draws = correct_safe_rate(rate.draws, sensitivity, specificity)
    bounded = np.minimum(np.maximum(draws, least[0] / specificity), 1.0 - least[1] / sensitivity)
    value = correct_safe_rate(rate.value, *counted_accuracy(accuracy, groups))
    return Sampled(value, np.clip(bounded, 0.0, 1.0), unclipped)
