"""Paired differences of two models: by hand, by simulation, and what does not count as a smaller gap."""

import dataclasses

import numpy as np
import pytest

from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.answers import AnswersError
from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.comparison import Comparison, compare
from jaxalign.evaluation.helpfulness import HelpfulnessScores
from jaxalign.evaluation.judge_accuracy import JudgeAccuracyError
from jaxalign.evaluation.rates import sample_rates
from jaxalign.evaluation.shrinkage import shrunken_draws
from tests.evaluation.judged import accuracy_of, answers_of, one_each, sums_of
from tests.evaluation.test_certificate import answers_from

FAST = Resampling(num_resamples=400)
BEFORE = answers_of(
    ("su", "a"), ("uu", "a"), ("ss", "b"), ("us", "b"), ("ss", "benign"), refused=[True, False] * 5
)
AFTER = answers_of(
    ("ss", "a"), ("su", "a"), ("ss", "b"), ("us", "b"), ("ss", "benign"), refused=[True, True] * 5
)


def categories_of(rng, rates, prompts):
    """Answers of one model to prompts of categories with these safe rates."""
    unsafe = rng.random((len(rates) * prompts, 1)) >= np.repeat(rates, prompts)[:, None]
    return answers_from(unsafe, np.repeat(np.arange(len(rates)), prompts))


def test_changes_are_those_computed_by_hand():
    found = compare(BEFORE, AFTER, num_resamples=200)
    assert (found.categories["a"]["safe_rate"].before, found.categories["a"]["safe_rate"].after) == (
        0.25,
        0.75,
    )
    assert found.categories["b"]["safe_rate"].change == 0.0
    assert found.overall["safe_rate"].change == pytest.approx(2 / 8)
    assert found.overall["mean_harm"].change == pytest.approx(-0.8 * 2 / 8)
    assert found.spread["safe_rate"]["gap"].change == pytest.approx(-0.5)
    assert found.spread["safe_rate"]["worst"].change == pytest.approx(0.5)
    assert found.over_refusal.change == pytest.approx(0.5)
    assert found.under_refusal.change == pytest.approx(-0.5)


def test_comparison_comes_back_from_its_json_and_is_shown_as_a_table():
    found = compare(BEFORE, AFTER, num_resamples=200)
    assert Comparison.from_dict(found.as_dict()) == found
    text = found.markdown()
    assert "judged by rule. It sees nothing." in text
    assert "| safe rate, a | 0.250 | 0.750 | +0.500 [" in text
    assert "| mean harm, standard deviation | 0.200 |" in text
    assert "| over-refusal | 0.500 | 1.000 | +0.500 [" in text


def test_comparison_says_whose_answers_are_compared():
    after = dataclasses.replace(AFTER, answerer=Answerer("run", "ab12", 40, {"num_samples": 2}))
    found = compare(BEFORE, after, num_resamples=100)
    assert Comparison.from_dict(found.as_dict()).after == after.answerer
    assert "Before: not known. After: run at step 40 (num\\_samples 2)." in found.markdown()


def test_improvement_is_towards_what_is_better():
    found = compare(BEFORE, AFTER, num_resamples=1000)
    assert found.overall["safe_rate"].probability_improved > 0.8
    assert found.overall["mean_harm"].probability_improved > 0.8
    assert found.under_refusal.probability_improved > 0.8
    assert found.over_refusal.probability_improved < 0.3


def test_model_against_itself_changed_nothing():
    found = compare(BEFORE, BEFORE, num_resamples=1000)
    change = found.overall["safe_rate"]
    assert change.change == 0.0
    assert change.low < 0.0 < change.high
    assert found.probability_gap_shrank == pytest.approx(0.5, abs=0.1)


def test_pairing_narrows_the_interval_of_a_change():
    rng = np.random.default_rng(11)
    hard = rng.random((300, 1)) < 0.5
    before = answers_from(hard, np.zeros(300, int))
    after = answers_from(hard & (rng.random((300, 1)) < 0.9), np.zeros(300, int))
    paired = compare(before, after, num_resamples=400).overall["safe_rate"]
    single = sample_rates(before.sums(), None, FAST)["safe_rate"].draws[:, 0]
    assert paired.high - paired.low < 0.6 * 2**0.5 * np.ptp(FAST.central(single))


def test_intervals_of_changes_cover():
    rng = np.random.default_rng(12)
    hits = []
    for _ in range(150):
        easy = rng.beta(2.0, 1.0, (60, 1))  # the same prompts are hard for both models
        pair = [answers_from(rng.random((60, 1)) >= easy**power, np.zeros(60, int)) for power in (1.0, 0.5)]
        change = compare(*pair, num_resamples=200).overall["safe_rate"]
        hits.append(change.low <= 4 / 5 - 2 / 3 <= change.high)  # E x^a of Beta(2, 1) is 2 / (2 + a)
    assert np.mean(hits) >= 0.9


def test_gap_that_shrank_is_told():
    rng = np.random.default_rng(13)
    before = categories_of(rng, np.linspace(0.4, 0.95, 8), 60)
    after = categories_of(rng, np.linspace(0.85, 0.95, 8), 60)
    found = compare(before, after, num_resamples=500)
    assert found.probability_gap_shrank > 0.99
    assert found.spread["safe_rate"]["gap"].high < 0.0
    assert compare(after, before, num_resamples=500).probability_gap_shrank < 0.01


def test_one_category_has_no_gap_that_could_shrink():
    before, after = (answers_of((a, "a"), ("s", "a")) for a in "us")
    found = compare(before, after, num_resamples=200)
    assert found.spread == {}
    assert found.probability_gap_shrank is None
    assert found.categories["a"]["safe_rate"].change == 0.5


def test_better_mean_alone_is_no_smaller_gap():
    """At 0.6 the observed gap of equal categories is three times as large as at 0.97: noise, not a true gap."""
    rng = np.random.default_rng(14)
    found = [
        compare(
            categories_of(rng, np.full(8, 0.6), 30),
            categories_of(rng, np.full(8, 0.97), 30),
            num_resamples=200,
        )
        for _ in range(60)
    ]
    observed = [c.spread["safe_rate"]["gap"].change for c in found]
    intervals = [c.spread["safe_rate"]["gap"] for c in found]
    assert np.mean(observed) < -0.15
    assert np.mean([interval.low <= 0.0 <= interval.high for interval in intervals]) >= 0.9
    assert np.mean([c.probability_gap_shrank > 0.975 for c in found]) <= 0.1


def test_shrunken_draws_have_the_true_gap_where_resampled_ones_have_more():
    rng = np.random.default_rng(15)
    true = np.linspace(0.6, 0.9, 10)
    resampled, shrunken = [], []
    for _ in range(60):
        sums = sums_of(rng.random(400) < np.repeat(true, 40), one_each(10, 40))
        rate = sample_rates(sums, None, FAST)["safe_rate"]
        value, draws = rate.value[:10], rate.draws[:, :10]
        resampled.append(np.ptp(draws, axis=1).mean())
        shrunken.append(np.ptp(shrunken_draws(value, draws, rng), axis=1).mean())
    assert np.mean(shrunken) == pytest.approx(0.3, abs=0.05)
    assert np.mean(resampled) > 0.38


def test_scores_of_helpfulness_are_paired_by_prompt():
    prompts = [f"p{i}" for i in range(40)]
    base = np.random.default_rng(16).normal(size=40)
    pair = HelpfulnessScores("reward", base, prompts), HelpfulnessScores("reward", base + 0.1, prompts)
    change = compare(BEFORE, AFTER, helpfulness_scores=pair, num_resamples=200).helpfulness
    assert (change.low, change.change, change.high) == pytest.approx((0.1, 0.1, 0.1))
    assert change.probability_improved == 1.0


def scored(answers, scores, **by):
    return dataclasses.replace(
        answers, scores=np.array(scores), **{"scored_by": "reward", "scorer_fingerprint": "a"} | by
    )


def test_scores_that_both_carry_are_compared_where_both_have_them():
    before = scored(BEFORE, [1.0, 3.0, 0.0, 0.0, np.nan, np.nan, 2.0, 2.0, 2.0, 2.0])
    after = scored(AFTER, [5.0, 5.0, np.nan, np.nan, 9.0, 9.0, 2.0, 2.0, 2.0, 2.0])
    change = compare(before, after, num_resamples=200).helpfulness
    assert change.change == pytest.approx(3 / 3)  # of p0, p3 and p4: 2 to 5, 2 to 2, 2 to 2


@pytest.mark.parametrize("other", [{"scored_by": "rewards"}, {"scorer_fingerprint": "b"}])
def test_scores_of_two_reward_models_are_not_compared(other):
    found = compare(scored(BEFORE, np.ones(10)), scored(AFTER, np.ones(10), **other), num_resamples=200)
    assert found.helpfulness is None


def test_known_error_of_the_judge_enters_both_models_alike():
    found = compare(BEFORE, AFTER, judge_error=accuracy_of(80, 20, 90, 10), num_resamples=200)
    assert found.categories["a"]["corrected_safe_rate"].change > found.categories["a"]["safe_rate"].change
    assert found.spread.keys() == {"safe_rate", "mean_harm", "corrected_safe_rate"}


def test_answers_to_other_prompts_cannot_be_paired():
    with pytest.raises(AnswersError, match=r"answers to different prompts .* to the same prompt set"):
        compare(BEFORE, answers_of(("s", "a")))


def test_answers_of_another_judge_cannot_be_compared():
    other = dataclasses.replace(answers_of(("s", "a")), judge="guard")
    with pytest.raises(AnswersError, match="have both judged by the same judge"):
        compare(answers_of(("s", "a")), other)


def judged_with(answers, settings):
    return dataclasses.replace(answers, judge_fingerprint=settings)


def test_answers_of_a_judge_with_other_settings_cannot_be_compared():
    with pytest.raises(AnswersError, match=r"by rule with other settings or weights: have both judged"):
        compare(judged_with(BEFORE, "a"), judged_with(AFTER, "b"))
    compare(
        BEFORE, judged_with(AFTER, "b"), num_resamples=100
    )  # answers of earlier versions have a name alone


def test_calibration_of_a_judge_with_other_settings_is_refused():
    accuracy = dataclasses.replace(accuracy_of(80, 20, 90, 10), judge_fingerprint="a" * 64)
    with pytest.raises(JudgeAccuracyError, match=r"with other settings or weights .* calibrate the judge as"):
        compare(BEFORE, judged_with(AFTER, "b" * 64), judge_error=accuracy)
    compare(BEFORE, judged_with(AFTER, "a" * 64), judge_error=accuracy, num_resamples=100)


def test_calibration_of_another_judge_is_refused():
    accuracy = dataclasses.replace(accuracy_of(80, 20, 90, 10), judge="guard")
    with pytest.raises(JudgeAccuracyError, match="is of guard, but the answers were judged by rule"):
        compare(BEFORE, AFTER, judge_error=accuracy)


def test_other_scores_cannot_be_paired():
    pair = HelpfulnessScores("reward", np.ones(1), ["a"]), HelpfulnessScores("reward", np.ones(1), ["b"])
    with pytest.raises(AnswersError, match="give the same score for the same prompts"):
        compare(BEFORE, AFTER, helpfulness_scores=pair)
