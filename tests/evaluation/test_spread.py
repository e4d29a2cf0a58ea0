"""Spread over the categories: figures by hand, intervals by simulation, also where all categories are equal."""

import numpy as np
import pytest

from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.rates import sample_rates
from jaxalign.evaluation.spread import Spread, spread
from tests.evaluation.judged import accuracy_of, one_each, sums_of

RESAMPLING = Resampling(num_resamples=400)
FIGURES = ("mean", "variance", "standard_deviation", "gap", "worst")


def spread_of(safe: np.ndarray, members: np.ndarray, answers: int = 1) -> Spread:
    sums = sums_of(safe, members, answers)
    rate, k = sample_rates(sums, None, RESAMPLING)["safe_rate"], members.shape[1]
    return spread(
        sums.names,
        rate.value[:k],
        rate.draws[:, :k],
        np.zeros(9),
        higher_is_better=True,
        resampling=RESAMPLING,
    )


def true_figures(rates: np.ndarray) -> dict[str, float]:
    return {
        "mean": rates.mean(),
        "variance": rates.var(),
        "standard_deviation": rates.std(),
        "gap": np.ptp(rates),
        "worst": rates.min(),
    }


def test_figures_are_those_computed_by_hand():
    safe = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0])  # 1, 1/2, 1/4
    found = spread_of(safe, one_each(3, 4))
    mean = 7 / 12
    variance = ((1 - mean) ** 2 + (1 / 2 - mean) ** 2 + (1 / 4 - mean) ** 2) / 3
    values = [getattr(found, figure).value for figure in FIGURES]
    assert values == pytest.approx([mean, variance, variance**0.5, 3 / 4, 1 / 4], rel=1e-12)
    assert (found.worst_category, found.best_category) == ("c2", "c0")


def test_worst_of_a_figure_that_should_be_low_is_the_highest():
    rates, rng = np.array([0.1, 0.4, 0.2]), np.random.default_rng(0)
    draws = rates + 0.01 * rng.standard_normal((400, 3))
    found = spread("abc", rates, draws, np.zeros(9), higher_is_better=False, resampling=RESAMPLING)
    assert (found.worst.value, found.worst_category, found.best_category) == (0.4, "b", "a")
    assert 0.37 < found.worst.low < 0.4 < found.worst.high < 0.43


@pytest.mark.parametrize("figure", FIGURES)
def test_interval_holds_its_figure(figure):
    rng = np.random.default_rng(4)
    for _ in range(20):
        estimate = getattr(spread_of(rng.random(40) < 0.7, one_each(4, 10)), figure)
        assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


@pytest.mark.parametrize(
    "rates",
    [np.full(8, 0.85), np.linspace(0.55, 0.95, 8), np.array([0.5] + [0.9] * 7), np.full(19, 0.95)],
    ids=["equal", "graded", "one bad", "nineteen equal"],
)
def test_intervals_cover_the_true_spread(rates):
    rng = np.random.default_rng(5)
    members = one_each(len(rates), 30)
    true, hits = true_figures(rates), []
    for _ in range(150):
        found = spread_of(rng.random(len(members)) < np.repeat(rates, 30), members)
        estimates = [getattr(found, figure) for figure in FIGURES]
        hits.append([e.low <= true[f] <= e.high for e, f in zip(estimates, FIGURES, strict=True)])
    least = 0.95 - 3 * (0.95 * 0.05 / len(hits)) ** 0.5
    assert (np.mean(hits, axis=0) >= least).all(), dict(zip(FIGURES, np.mean(hits, axis=0), strict=True))


def test_gap_between_categories_that_differ_is_told_from_zero():
    safe = np.concatenate([np.repeat([1, 0], [95, 5]), np.repeat([1, 0], [55, 45])])
    assert spread_of(safe, one_each(2, 100)).gap.low > 0.2


def test_one_category_has_no_spread():
    found = spread_of(np.array([1, 0, 1]), one_each(1, 3))
    assert (found.gap.value, found.gap.high, found.variance.value) == (0.0, 0.0, 0.0)
    assert found.worst.value == found.mean.value


@pytest.mark.filterwarnings("error")
def test_categories_whose_draws_are_all_the_same_do_not_spoil_the_gap():
    draws = np.column_stack([np.ones(400), np.ones(400), np.random.default_rng(5).beta(1, 300, 400)])
    found = spread(
        ("x", "y", "z"),
        np.array([1.0, 1.0, 0.0]),
        draws,
        np.zeros(9),
        higher_is_better=True,
        resampling=RESAMPLING,
    )
    assert found.gap.value == 1.0
    assert 0.98 < found.gap.low <= found.gap.high == 1.0


@pytest.mark.filterwarnings("error")
def test_gap_of_rates_at_both_ends_is_sure_with_a_calibrated_judge():
    safe = np.repeat([1, 1, 0], 300)
    accuracy = accuracy_of(90, 10, 70, 30)
    rate = sample_rates(sums_of(safe, one_each(3, 300)), accuracy, RESAMPLING)["corrected_safe_rate"]
    found = spread(
        ("x", "y", "z"),
        rate.value[:3],
        rate.draws[:, :3],
        np.zeros(9),
        higher_is_better=True,
        resampling=RESAMPLING,
    )
    assert found.gap.low > 0.95
