"""The gap that equal categories would show: against enumeration and by simulation of equal categories."""

import itertools

import numpy as np
import pytest

from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.equality import gaps_if_equal
from jaxalign.evaluation.rates import sample_rates
from tests.evaluation.judged import accuracy_of, answers_of, one_each, sums_of

RESAMPLING = Resampling(num_resamples=300)


def gap_of(sums) -> float:
    return np.ptp(sample_rates(sums, None, RESAMPLING)["safe_rate"].value[: len(sums.names)])


def simulated(rng: np.random.Generator, members: np.ndarray, answers: int):
    """Prompts whose outcomes do not depend on their categories; answers to one prompt are alike."""
    return sums_of(rng.binomial(answers, rng.beta(2.0, 0.6, len(members))), members, answers)


def overlapping(rng: np.random.Generator) -> np.ndarray:
    members = rng.random((90, 6)) < [0.1, 0.2, 0.3, 0.4, 0.2, 0.15]
    members[:6] |= np.eye(6, dtype=bool)
    return members


def test_expected_gap_is_the_mean_over_all_permutations():
    members, safe = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], bool), np.array([1, 1, 0, 1])
    gaps = [
        abs(np.array(order)[members[:, 0]].mean() - np.array(order)[members[:, 1]].mean())
        for order in itertools.permutations(safe)
    ]
    found = gaps_if_equal(sums_of(safe, members), None, Resampling(num_resamples=20_000))["safe_rate"]
    assert found.mean() == pytest.approx(np.mean(gaps), abs=5e-3)


@pytest.mark.parametrize("answers", [1, 4])
@pytest.mark.parametrize("layout", ["one each", "overlapping"])
def test_expected_gap_is_what_equal_categories_show(layout, answers):
    rng = np.random.default_rng(6)
    members = one_each(8, 20) if layout == "one each" else overlapping(rng)
    observed, expected, p_values = [], [], []
    for _ in range(200):
        sums = simulated(rng, members, answers)
        gaps = gaps_if_equal(sums, None, RESAMPLING)["safe_rate"]
        observed.append(gap_of(sums))
        expected.append(gaps.mean())
        p_values.append(((gaps >= observed[-1] - 1e-12).sum() + 1) / (len(gaps) + 1))
    assert np.mean(expected) == pytest.approx(np.mean(observed), rel=0.06)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_categories_that_differ_show_more_than_the_expected_gap():
    rng = np.random.default_rng(7)
    safe = rng.random(8 * 40) < np.repeat(np.linspace(0.4, 0.9, 8), 40)
    sums = sums_of(safe, one_each(8, 40))
    assert (gaps_if_equal(sums, None, RESAMPLING)["safe_rate"] < gap_of(sums)).all()


def test_prompts_without_a_category_do_not_enter():
    without = answers_of(("u", ""), ("u", "benign"), ("s", "a"), ("s", "b"))
    assert not gaps_if_equal(without.sums(), None, RESAMPLING)["safe_rate"].any()


def test_judge_error_widens_the_expected_gap_as_it_widens_the_observed_one():
    rng = np.random.default_rng(8)
    sums = sums_of(rng.random(400) < 0.7, one_each(8, 50))
    gaps = gaps_if_equal(sums, accuracy_of(800, 200, 900, 100), RESAMPLING)
    assert gaps["corrected_safe_rate"].mean() == pytest.approx(gaps["safe_rate"].mean() / 0.7, rel=0.05)


def test_judge_that_errs_by_category_makes_no_gap_of_the_corrected_rates():
    """Equal true rates of 0.8 look like 0.8 and 0.72 to a judge who overlooks nothing and flags 10 % in c1."""
    true = np.repeat([1, 0], [800, 200])
    judged = true.copy()
    judged[:80] = 0
    sums = sums_of(np.concatenate([true, judged]), one_each(2, 1000))
    accuracy = accuracy_of(10_000, 0, 10_000, 0, c1=(10_000, 0, 9_000, 1_000))
    corrected = sample_rates(sums, accuracy, RESAMPLING)["corrected_safe_rate"].value[:2]
    assert gap_of(sums) == pytest.approx(0.08)
    assert np.ptp(corrected) == pytest.approx(0.0, abs=1e-3)
    assert 0.0 < gaps_if_equal(sums, accuracy, RESAMPLING)["corrected_safe_rate"].mean() < 0.04
