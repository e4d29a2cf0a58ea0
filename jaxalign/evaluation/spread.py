"""How far the categories lie apart: mean, variance, gap and worst, with intervals that hold also where all are equal.

Noise pushes a maximum up and a minimum down, so quantiles of resampled gaps would lie above the truth. Gap, deviation
and worst are each the largest of many linear figures (differences of two categories, directions, single categories).
The bound away from zero must hold for all of these at once, the other one only for the largest, whichever it is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special  # type: ignore[import-untyped]

from jaxalign.evaluation.bootstrap import Estimate, Resampling

FIGURES = ("mean", "variance", "standard_deviation", "gap", "worst")


@dataclasses.dataclass(frozen=True)
class Spread:
    """One figure over the categories, each counting alike; the variance is that of these categories (divisor K).

    `gap_if_equal` is the mean gap, and `gap_p_value` the probability of one at least as large, if all were equal.
    """

    mean: Estimate
    variance: Estimate
    standard_deviation: Estimate
    gap: Estimate
    worst: Estimate
    worst_category: str
    best_category: str
    gap_if_equal: float
    gap_p_value: float

    @property
    def of_one(self) -> bool:
        """Whether there is one category alone, and so no gap to speak of."""
        return self.worst_category == self.best_category


def spread_figures(rates: np.ndarray, *, higher_is_better: bool) -> dict[str, np.ndarray]:
    """The figures [...] of rates [..., K]."""
    low, high = rates.min(axis=-1), rates.max(axis=-1)
    deviation = rates.std(axis=-1)
    worst = low if higher_is_better else high
    figures = (rates.mean(axis=-1), deviation**2, deviation, high - low, worst)
    return dict(zip(FIGURES, figures, strict=True))


def spread(
    names: Sequence[str],
    rates: np.ndarray,
    draws: np.ndarray,
    gaps_if_equal: np.ndarray,
    *,
    higher_is_better: bool,
    resampling: Resampling,
) -> Spread:
    """The spread of rates [K] with draws [R, K], and gaps [P] of permutations."""
    figures = spread_figures(rates, higher_is_better=higher_is_better)
    by_rate = np.argsort(rates if higher_is_better else -rates, kind="stable")
    deviation = _deviation(float(figures["standard_deviation"]), draws, resampling)
    at_least = (gaps_if_equal >= figures["gap"] - 1e-12).sum()  # sums in another order round otherwise
    return Spread(
        mean=_mean(float(figures["mean"]), draws, resampling),
        variance=Estimate(*(bound**2 for bound in deviation)),
        standard_deviation=Estimate(*deviation),
        gap=_gap(float(figures["gap"]), draws, resampling),
        worst=_worst(float(figures["worst"]), draws, resampling, higher_is_better),
        worst_category=names[by_rate[0]],
        best_category=names[by_rate[-1]],
        gap_if_equal=float(gaps_if_equal.mean()),
        gap_p_value=float((1 + at_least) / (1 + len(gaps_if_equal))),
    )


def _gap(gap: float, draws: np.ndarray, resampling: Resampling) -> Estimate:
    """The largest difference of two categories."""
    first, second = np.triu_indices(draws.shape[1], 1)
    if len(first) == 0:
        return Estimate(gap, gap, gap)
    differences = draws[:, first] - draws[:, second]
    middle, error = differences.mean(axis=0), differences.std(axis=0)
    noisy = (
        error > 1e-12
    )  # two categories whose draws differ by nothing, or by a constant, have no noise to bound
    scaled = np.abs(differences - middle)[:, noisy] / error[noisy]
    largest_error = scaled.max(axis=1, initial=0.0)
    _, factor = resampling.central(largest_error)
    low, high = resampling.central(differences)
    return _holding(gap, (np.abs(middle) - factor * error).max(), max(high.max(), -low.min()))


def _mean(mean: float, draws: np.ndarray, resampling: Resampling) -> Estimate:
    """The mean rate. Draws lie nearer to 1/2 than rates do, by little, but all alike; a mean of many would show it."""
    means = draws.mean(axis=1)
    bounds = resampling.central(means) + (mean - means.mean())
    return _holding(mean, *bounds)


def _worst(worst: float, draws: np.ndarray, resampling: Resampling, higher_is_better: bool) -> Estimate:
    """The smallest rate, or the largest where higher is worse."""
    goodness = draws if higher_is_better else 1.0 - draws
    low = resampling.central(goodness)[0].min()
    tail = (1.0 - resampling.confidence) / 2 / draws.shape[1]  # for all categories at once
    high = _beta_quantile(goodness, 1.0 - tail).min()
    return _holding(worst, *((low, high) if higher_is_better else (1.0 - high, 1.0 - low)))


def _beta_quantile(draws: np.ndarray, probability: float) -> np.ndarray:
    """A quantile of each column of draws [R, K] in [0, 1], of the Beta distribution with its mean and variance.

    With one answer to a prompt the draws are of such a distribution; their own far quantiles would be rough.
    """
    mean, variance = draws.mean(axis=0), draws.var(axis=0)
    size = np.maximum(mean * (1.0 - mean) / np.maximum(variance, 1e-12) - 1.0, 1e-6)
    inner = np.clip(mean, 1e-12, 1.0 - 1e-12)
    return special.betaincinv(inner * size, (1.0 - inner) * size, probability)


def _deviation(deviation: float, draws: np.ndarray, resampling: Resampling) -> tuple[float, float, float]:
    """The standard deviation: the length of the deviations from their mean, the largest of all their projections."""
    num_categories = draws.shape[1]
    noise = draws - draws.mean(axis=0)
    noise -= noise.mean(axis=1, keepdims=True)
    _, radius = resampling.central(np.sqrt((noise**2).mean(axis=1)))
    largest_variance = np.linalg.eigvalsh(noise.T @ noise / len(noise))[-1] / num_categories
    normal = float(special.ndtri((1.0 + resampling.confidence) / 2))
    high = deviation + normal * float(np.sqrt(max(largest_variance, 0.0)))
    return deviation, max(0.0, deviation - float(radius)), high


def _holding(value: float, low: float, high: float) -> Estimate:
    """The interval within [0, 1], where all these figures lie, and widened to hold the value."""
    return Estimate(value, float(max(0.0, min(low, value))), float(min(1.0, max(high, value))))
