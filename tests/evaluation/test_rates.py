"""Rates of groups against loops by hand, and their intervals against exact ones and by simulation."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from jaxalign.evaluation.answers import PromptSums
from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.rates import ALL, BENIGN, HARMFUL, sample_rates
from tests.evaluation.judged import accuracy_of, answers_of, one_each, sums_of

MIXED = answers_of(
    ("su", "theft"),
    ("s?", "theft fraud"),
    ("uu", "fraud"),
    ("ss", ""),
    ("su", "benign"),
    refused=[True, False, True, False, False, False, True, True, False, True],
)
FAST = Resampling(num_resamples=400)


def rates_of(sums: PromptSums, resampling: Resampling = FAST):
    return sample_rates(sums, None, resampling)


def covered(sums: PromptSums, true: np.ndarray) -> np.ndarray:
    """Which categories' intervals hold their true safe rates."""
    rate = rates_of(sums)["safe_rate"]
    estimates = [FAST.estimate(rate.value[k], rate.draws[:, k]) for k in range(len(true))]
    return np.array([e.low <= p <= e.high for e, p in zip(estimates, true, strict=True)])


@pytest.mark.parametrize(
    ("figure", "group", "expected"),
    [
        ("safe_rate", 0, 1 / 4),  # fraud: s ? u u
        ("safe_rate", 1, 2 / 4),  # theft: s u s ?
        ("safe_rate", ALL, 4 / 8),
        ("safe_rate", BENIGN, 1 / 2),
        ("mean_harm", 0, (0.1 + 0.9 + 0.9) / 3),
        ("mean_harm", 1, (0.1 + 0.9 + 0.1) / 3),
        ("over_refusal", BENIGN, 1 / 2),
        (
            "under_refusal",
            HARMFUL,
            1 - 2 / 6,
        ),  # refused: the first and the third answer of six, the fourth unjudged
    ],
)
def test_rates_are_those_counted_by_hand(figure, group, expected):
    assert rates_of(MIXED.sums())[figure].value[group] == pytest.approx(expected, rel=1e-15)


def test_interval_of_single_answers_is_that_of_jeffreys():
    sums = sums_of(np.repeat([1, 0], [17, 3]), one_each(1, 20))
    resampling = Resampling(num_resamples=40_000)
    rate = rates_of(sums, resampling)["safe_rate"]
    expected = stats.beta.ppf([0.025, 0.975], 17.5, 3.5)
    np.testing.assert_allclose(resampling.central(rate.draws[:, 0]), expected, atol=4e-3)


def test_interval_of_nothing_but_safe_answers_reaches_down_but_holds_one():
    rate = rates_of(sums_of(np.ones(20), one_each(1, 20)))["safe_rate"]
    interval = FAST.estimate(rate.value[0], rate.draws[:, 0])
    assert interval.value == interval.high == 1.0
    assert interval.low == pytest.approx(stats.beta.ppf(0.025, 20.5, 0.5), abs=0.02)


def test_interval_of_one_prompt_is_wide():
    rate = rates_of(sums_of(np.array([3.0]), one_each(1, 1), answers=3))["safe_rate"]
    interval = FAST.estimate(rate.value[0], rate.draws[:, 0])
    assert interval.high == 1.0
    assert interval.low < 0.3


def test_repeating_every_answer_narrows_no_interval():
    safe, members = np.repeat([1, 0, 1], [9, 4, 7]), one_each(2, 10)
    once, often = sums_of(safe, members), sums_of(5 * safe, members, answers=5)
    np.testing.assert_allclose(
        rates_of(often)["safe_rate"].draws, rates_of(once)["safe_rate"].draws, rtol=1e-12
    )


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("prompts", [12, 60])
def test_intervals_of_single_answers_cover(rate, prompts):
    rng = np.random.default_rng(1)
    true = np.full(40, rate)  # 40 categories at once are 40 experiments
    members = one_each(40, prompts)
    hits = [covered(sums_of(rng.random(40 * prompts) < rate, members), true) for _ in range(25)]
    assert np.mean(hits) >= 0.92


def test_intervals_of_several_answers_cover_where_answers_to_one_prompt_are_alike():
    rng = np.random.default_rng(2)
    members, true = one_each(40, 30), np.full(40, 0.8)
    hits = []
    for _ in range(25):
        of_prompt = rng.beta(0.8, 0.2, 40 * 30)  # most prompts are always or never answered safely
        hits.append(covered(sums_of(rng.binomial(6, of_prompt), members, answers=6), true))
    assert 0.92 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize("letter", ["s", "u"])
def test_unjudged_answer_never_raises_the_safe_rate(letter):
    judged = answers_of(("s" + letter, "a"), ("su", "a b"), ("ss", "b"))
    unjudged = answers_of(("s?", "a"), ("su", "a b"), ("ss", "b"))
    before, after = (rates_of(answers.sums())["safe_rate"].value for answers in (judged, unjudged))
    assert (np.nan_to_num(after) <= np.nan_to_num(before)).all()


def test_category_without_a_judged_answer_has_no_mean_harm_and_the_safe_rate_0():
    rates = rates_of(answers_of(("??", "a"), ("s", "b")).sums())
    assert rates["safe_rate"].value[0] == 0.0
    assert np.isnan(rates["mean_harm"].value[0])


def test_judge_without_refusals_gives_no_refusal_rates():
    assert rates_of(answers_of(("s", "a")).sums()).keys() == {"safe_rate", "mean_harm"}


def test_corrected_rate_is_that_of_rogan_and_gladen():
    sums = sums_of(np.repeat([1, 0], [70, 30]), one_each(1, 100))
    rate = sample_rates(sums, accuracy_of(90, 10, 80, 20), FAST)["corrected_safe_rate"]
    # 30 % are judged unsafe: p with 0.9 p + 0.2 (1 - p) = 0.3
    assert rate.value[0] == pytest.approx(1 - 1 / 7, rel=1e-12)


def test_perfect_judge_with_many_labels_changes_nothing():
    sums = sums_of(np.repeat([1, 0], [70, 30]), one_each(1, 100))
    rates = sample_rates(sums, accuracy_of(10**9, 0, 10**9, 0), FAST)
    np.testing.assert_allclose(
        rates["corrected_safe_rate"].draws[:, 0], rates["safe_rate"].draws[:, 0], atol=1e-6
    )


def test_few_labels_widen_the_corrected_interval():
    sums = sums_of(np.repeat([1, 0], [700, 300]), one_each(1, 1000))
    few, many = accuracy_of(18, 2, 16, 4), accuracy_of(1800, 200, 1600, 400)
    widths = [
        np.ptp(FAST.central(sample_rates(sums, accuracy, FAST)["corrected_safe_rate"].draws[:, 0]))
        for accuracy in (few, many)
    ]
    assert widths[0] > 3 * widths[1]


def test_corrected_intervals_cover_the_true_rate():
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(400):
        tp, tn = rng.binomial(60, 0.85), rng.binomial(60, 0.9)
        unsafe = rng.random(150) < 0.2
        flagged = np.where(unsafe, rng.random(150) < 0.85, rng.random(150) < 0.1)
        accuracy = accuracy_of(tp, 60 - tp, tn, 60 - tn)
        rate = sample_rates(sums_of(~flagged, one_each(1, 150)), accuracy, FAST)["corrected_safe_rate"]
        interval = FAST.estimate(rate.value[0], rate.draws[:, 0])
        hits.append(interval.low <= 0.8 <= interval.high)
    assert np.mean(hits) >= 0.92


@pytest.mark.parametrize(("unsafe_rate", "specificity"), [(0.0, 0.7), (0.01, 0.7), (0.03, 0.95), (0.99, 0.7)])
def test_corrected_intervals_cover_near_the_ends(unsafe_rate, specificity):
    rng = np.random.default_rng(4)
    hits = []
    for _ in range(150):
        tp, tn = rng.binomial(100, 0.9), rng.binomial(100, specificity)
        unsafe = rng.random(200) < unsafe_rate
        flagged = np.where(unsafe, rng.random(200) < 0.9, rng.random(200) < 1 - specificity)
        accuracy = accuracy_of(tp, 100 - tp, tn, 100 - tn)
        rate = sample_rates(sums_of(~flagged, one_each(1, 200)), accuracy, FAST)["corrected_safe_rate"]
        interval = rate.estimate(0, FAST)
        hits.append(interval.low <= 1 - unsafe_rate <= interval.high)
    assert np.mean(hits) >= 0.91


def test_calibration_that_the_judged_rate_contradicts_gives_no_certainty():
    accuracy = accuracy_of(90, 10, 70, 30)  # of safe answers alone 30 % would be judged unsafe
    few, all_unsafe = (
        sums_of(np.repeat([1, 0], counts), one_each(1, sum(counts))) for counts in ((197, 3), (0, 300))
    )
    safe = sample_rates(few, accuracy, FAST)
    corrected, plain = (safe[name].estimate(0, FAST) for name in ("corrected_safe_rate", "safe_rate"))
    assert (corrected.value, corrected.high) == (1.0, 1.0)
    assert corrected.low <= plain.low
    unsafe = sample_rates(all_unsafe, accuracy, FAST)
    corrected, plain = (unsafe[name].estimate(0, FAST) for name in ("corrected_safe_rate", "safe_rate"))
    assert (corrected.value, corrected.low) == (0.0, 0.0)
    assert corrected.high >= plain.high


def test_category_with_counts_of_its_own_is_corrected_by_them():
    sums = sums_of(np.repeat([1, 0, 1, 0], [70, 30, 70, 30]), one_each(2, 100))
    rate = sample_rates(sums, accuracy_of(90, 10, 80, 20, c1=(100, 0, 100, 0)), FAST)["corrected_safe_rate"]
    assert rate.value[:2] == pytest.approx([1 - 1 / 7, 0.7], rel=1e-12)


def test_same_seed_gives_the_same_draws_and_another_gives_others():
    sums = MIXED.sums()
    first, again = (rates_of(sums)["safe_rate"].draws for _ in range(2))
    other = rates_of(sums, dataclasses.replace(FAST, seed=1))["safe_rate"].draws
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_size_of_the_chunks_changes_no_draw(monkeypatch):
    values = np.random.default_rng(0).random((50, 3))
    whole = FAST.sums(values)
    monkeypatch.setattr("jaxalign.evaluation.bootstrap.CHUNK", 170)
    np.testing.assert_allclose(FAST.sums(values), whole, rtol=1e-13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_resamples": 5}, "num_resamples=5 is too few"), ({"confidence": 95.0}, "between 0 and 1")],
)
def test_settings_that_make_no_interval_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Resampling(**settings)
