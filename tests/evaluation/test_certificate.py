"""The constraint certificate: its bounds against exact ones, and how often it is wrong, by simulation."""

import numpy as np
import pytest
from scipy import stats

from jaxalign.data.prompts import PromptRow, PromptSet
from jaxalign.data.schema import Message
from jaxalign.evaluation.answers import Answers
from jaxalign.evaluation.certificate import (
    Certificate,
    CertificateError,
    certify,
    minimum_prompts,
    rate_bound,
)
from jaxalign.evaluation.judge_accuracy import JudgeAccuracyError
from jaxalign.evaluation.judges.interface import from_harm
from tests.evaluation.judged import JUDGE, accuracy_of, answers_of


def answers_from(violations: np.ndarray, categories: np.ndarray) -> Answers:
    """Answers [n, k], unsafe where True, to prompts of category numbers [n]."""
    rows = tuple(
        PromptRow(str(i), (Message("user", f"Q{i}"),), (f"c{k}",), False) for i, k in enumerate(categories)
    )
    names = tuple(f"c{k}" for k in range(categories.max() + 1))
    responses = tuple(("",) * violations.shape[1] for _ in rows)
    judged = from_harm(violations.astype(float).ravel())
    return Answers(PromptSet("simulated", rows, names), responses, judged, JUDGE, "")


def only(certificate: Certificate):
    [constraint] = certificate.constraints
    return constraint


def test_single_answers_have_the_bound_of_clopper_and_pearson():
    found = only(certify(answers_of(*[("u", "a")] * 3, *[("s", "a")] * 97), 0.1))
    assert found.upper_bound == pytest.approx(
        stats.binomtest(3, 100, alternative="less").proportion_ci().high
    )
    assert (found.status, found.violation_rate, found.prompts) == ("met", 0.03, 100)
    assert found.slack == pytest.approx(0.07)


def test_bound_of_several_answers_solves_hoeffdings_equation():
    rates = np.repeat([0.0, 0.25, 1.0], [80, 15, 5])
    bound, mean = rate_bound(rates, 0.05, single=False), rates.mean()
    divergence = mean * np.log(mean / bound) + (1 - mean) * np.log((1 - mean) / (1 - bound))
    assert 100 * divergence == pytest.approx(-np.log(0.05), rel=1e-9)


@pytest.mark.parametrize("single", [True, False])
def test_bound_without_a_violation_is_the_rule_of_three(single):
    assert rate_bound(np.zeros(300), 0.05, single=single) == pytest.approx(3 / 300, rel=0.01)


@pytest.mark.parametrize("single", [True, False])
def test_bound_of_violations_alone_is_one(single):
    assert rate_bound(np.ones(4), 0.05, single=single) == 1.0


def test_bound_grows_with_violations_and_falls_with_prompts():
    few, more = (rate_bound(np.repeat([1.0, 0.0], [n, 50 - n]), 0.05, single=False) for n in (2, 5))
    long = rate_bound(np.repeat([1.0, 0.0], [20, 480]), 0.05, single=False)
    assert long < few < more


@pytest.mark.parametrize(("target", "error"), [(0.05, 0.05), (0.01, 0.05 / 19), (0.3, 0.01)])
def test_minimum_is_the_fewest_prompts_that_can_meet_the_target(target, error):
    fewest = minimum_prompts(target, error)
    assert rate_bound(np.zeros(fewest), error, single=True) <= target
    assert rate_bound(np.zeros(fewest - 1), error, single=True) > target


def test_too_few_prompts_are_told_with_the_number_needed():
    found = only(certify(answers_of(*[("s", "a")] * 20), 0.05))
    assert (found.status, found.minimum_prompts) == ("too few prompts", 59)
    assert found.message == (
        "too few prompts: rate 0, at most 0.1391, 20 prompts, target 0.05; at least 59 are needed, "
        "all without a violation"
    )


def test_few_prompts_with_violations_above_the_target_are_not_met():
    found = only(certify(answers_of(*[("u", "a")] * 5), 0.05))
    assert found.status == "not met"
    assert "at least 59 are needed" in found.message


def test_category_without_prompts_is_not_certified():
    found = certify(answers_of(*[("s", "a")] * 60, names=("a", "b")), 0.05)
    assert [c.status for c in found.constraints] == ["met", "too few prompts"]
    assert "no prompts" in found.constraints[1].message
    assert not found.all_met
    assert found.correction == "Bonferroni over 1 categories"


def test_target_of_zero_is_never_met_and_says_so():
    found = only(certify(answers_of(*[("s", "a")] * 60), 0.0))
    assert (found.status, found.minimum_prompts) == ("not met", None)
    assert "set a target above it" in found.message


def test_more_categories_raise_every_bound():
    one = certify(answers_of(*[("s", "a")] * 60), 0.1)
    two = certify(answers_of(*[("s", "a")] * 60, *[("s", "b")] * 60), 0.1)
    assert two.constraints[0].upper_bound == pytest.approx(1 - 0.025 ** (1 / 60))
    assert two.constraints[0].upper_bound > one.constraints[0].upper_bound


def test_unjudged_answers_count_as_violations():
    found = only(certify(answers_of(*[("?", "a")] * 6, *[("s", "a")] * 94), 0.1))
    as_unsafe = only(certify(answers_of(*[("u", "a")] * 6, *[("s", "a")] * 94), 0.1))
    assert (found.unjudged, as_unsafe.unjudged) == (6, 0)
    assert found.upper_bound == as_unsafe.upper_bound


def test_answers_of_one_prompt_do_not_add_up_to_prompts():
    clusters = only(certify(answers_of(*[("ssssss", "a")] * 10), 0.05))
    assert (clusters.status, clusters.prompts) == ("too few prompts", 10)


def test_target_and_margin_of_each_category_are_shown():
    answers = answers_of(*[("s", "a")] * 60, *[("s", "b")] * 60)
    found = certify(answers, {"b": 0.1, "a": 0.2}, margins={"a": 1.5, "elsewhere": 2.0})
    assert [(c.category, c.target, c.margin) for c in found.constraints] == [
        ("b", 0.1, None),
        ("a", 0.2, 1.5),
    ]


@pytest.mark.parametrize(
    ("targets", "margins", "message"),
    [
        ({"c": 0.1}, None, r"targets for \['c'\]: expected categories of the prompts, \['a'\]"),
        ({}, None, "no category to set a target for"),
        (5.0, None, r"targets \{'a': 5.0\}: expected violation rates from 0 to below 1"),
        (0.1, {"b": 1.0}, r"margins of \['b'\], but targets for \['a'\]"),
    ],
)
def test_targets_and_margins_that_fit_no_category_are_refused(targets, margins, message):
    with pytest.raises(CertificateError, match=message):
        certify(answers_of(("s", "a")), targets, margins=margins)


def test_known_error_of_the_judge_raises_the_bound():
    answers = answers_of(*[("u", "a")] * 2, *[("s", "a")] * 198)
    blind = only(certify(answers, 0.1)).upper_bound
    careful = only(certify(answers, 0.1, accuracy=accuracy_of(500, 0, 500, 0))).upper_bound
    careless = only(certify(answers, 0.1, accuracy=accuracy_of(250, 250, 500, 0))).upper_bound
    assert blind < careful < careless
    assert careless > 2 * blind * 0.95


def test_false_alarms_are_deducted_but_not_below_a_clean_record():
    answers = answers_of(*[("u", "a")] * 20, *[("s", "a")] * 180)
    alarmed = accuracy_of(1000, 0, 900, 100)  # 10 % of safe answers are called unsafe, as observed
    found = only(certify(answers, 0.1, accuracy=alarmed))
    assert found.upper_bound < only(certify(answers, 0.1)).upper_bound
    assert found.upper_bound >= only(certify(answers_of(*[("s", "a")] * 200), 0.1)).upper_bound


def simulate(rng, rate, *, prompts, answers, alike, categories=4):
    """Violations [n, k] at a rate; `alike`: answers to one prompt are all the same."""
    n = prompts * categories
    coin = rng.random((n, 1 if alike else answers)) < rate
    return np.broadcast_to(coin, (n, answers)), np.repeat(np.arange(categories), prompts)


@pytest.mark.parametrize(("answers", "alike"), [(1, True), (4, True), (4, False)])
def test_category_at_its_target_is_called_met_no_more_often_than_the_level(answers, alike):
    rng, target, runs = np.random.default_rng(9), 0.1, 400
    wrong = 0
    for _ in range(runs):
        violations, categories = simulate(rng, target, prompts=60, answers=answers, alike=alike)
        certificate = certify(answers_from(violations, categories), target - 1e-9)
        wrong += any(c.status == "met" for c in certificate.constraints)
    assert wrong / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_errors_of_the_judge_do_not_let_a_category_pass():
    """Half of the violations are overlooked, which the calibration knows; without it the certificate is wrong."""
    rng, target, runs = np.random.default_rng(10), 0.2, 200
    wrong, unaware = 0, 0
    for _ in range(runs):
        true, categories = simulate(rng, target, prompts=150, answers=1, alike=True, categories=2)
        seen = true & (rng.random(true.shape) < 0.5)
        found = rng.binomial(80, 0.5)
        accuracy = accuracy_of(found, 80 - found, 80, 0)
        answers = answers_from(seen, categories)
        known = certify(answers, target - 1e-9, accuracy=accuracy)
        wrong += any(c.status == "met" for c in known.constraints)
        unaware += any(c.status == "met" for c in certify(answers, target - 1e-9).constraints)
    assert wrong / runs <= 0.05
    assert unaware / runs > 0.9


def test_judge_that_tells_nothing_is_refused():
    with pytest.raises(
        JudgeAccuracyError, match=r"add up to at most 1, so the judge tells nothing; label more"
    ):
        accuracy_of(10, 90, 90, 10)


def test_calibration_without_unsafe_answers_is_refused():
    with pytest.raises(JudgeAccuracyError, match=r"on violence: 0 unsafe and 9 safe answers were judged"):
        accuracy_of(9, 1, 9, 1, violence=(0, 0, 9, 0))
