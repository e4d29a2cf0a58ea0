"""Held-out figures against a slow loop over pairs."""

import dataclasses
import json
import math
import statistics

import numpy as np
import pytest

from jaxalign.evaluation.preference import PreferenceReport, preference_report
from tests.training import toy

BETA, THRESHOLD, N = 0.2, 0.1, 23
PER_PAIR = ("loss", "accuracy", "reward_gap", "violation_rate", "chosen_logps", "rejected_logps")


def inputs(seed: int = 0, num_pairs: int = N):
    """Policy and reference log-probs [n, 2], and pairs of which some have no category, some two."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(-40.0, 10.0, (num_pairs, 2)).astype(np.float32)
    policy = reference + rng.normal(0.0, 3.0, (num_pairs, 2)).astype(np.float32)
    policy[::5] = reference[::5]  # ties
    table = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])  # the last category is absent
    return policy, reference, toy.make_dataset(table[np.arange(num_pairs) % 4])


def report_of(policy, reference, dataset) -> PreferenceReport:
    return preference_report(policy, reference, dataset, beta=BETA, threshold=THRESHOLD, step=7)


def loop_figures(policy, reference, rows) -> dict[str, float]:
    """Sums in plain Python, one division at the end."""
    total = dict.fromkeys(PER_PAIR, 0.0)
    for i in rows:
        chosen, rejected = (float(policy[i, b]) - float(reference[i, b]) for b in (0, 1))
        gap = BETA * (chosen - rejected)
        total["loss"] += math.log1p(math.exp(-gap))
        total["accuracy"] += 0.5 if gap == 0 else float(gap > 0)
        total["reward_gap"] += gap
        total["violation_rate"] += float(gap < THRESHOLD)
        total["chosen_logps"] += float(policy[i, 0])
        total["rejected_logps"] += float(policy[i, 1])
    return {"pairs": len(rows)} | {name: value / len(rows) for name, value in total.items()}


@pytest.fixture(scope="module")
def report():
    return report_of(*inputs())


def test_overall_figures_equal_a_loop_over_all_pairs(report):
    policy, reference, _ = inputs()
    assert report.num_pairs == N
    assert report.overall == pytest.approx(loop_figures(policy, reference, range(N)), rel=1e-12)


@pytest.mark.parametrize(("name", "k"), [("Violence", 0), ("Drugs", 1)])
def test_category_figures_equal_a_loop_over_its_pairs(report, name, k):
    policy, reference, dataset = inputs()
    rows = [i for i in range(N) if dataset.categories[i, k]]
    assert report.categories[name] == pytest.approx(loop_figures(policy, reference, rows), rel=1e-12)


def test_pairs_without_category_have_figures_of_their_own(report):
    policy, reference, dataset = inputs()
    rows = [i for i in range(N) if not dataset.categories[i].any()]
    assert report.without_category == pytest.approx(loop_figures(policy, reference, rows), rel=1e-12)


def test_category_without_pairs_is_left_out(report):
    assert report.categories.keys() == {"Violence", "Drugs"}


def test_order_of_the_pairs_changes_no_figure(report):
    policy, reference, dataset = inputs()
    order = np.random.default_rng(1).permutation(N)
    shuffled = report_of(policy[order], reference[order], toy.make_dataset(dataset.categories[order]))
    assert shuffled.figures() == pytest.approx(report.figures(), rel=1e-12)


def test_loss_is_in_float64_where_float32_would_lose_it():
    policy, reference = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)
    policy[0] = [100.0, -100.0]
    loss = report_of(policy, reference, toy.make_dataset(np.zeros((1, 3)))).overall["loss"]
    assert loss == pytest.approx(math.exp(-40.0), rel=1e-9)


def test_unchanged_policy_has_ln_2_half_accuracy_and_no_gap():
    _, reference, dataset = inputs()
    figures = report_of(reference, reference, dataset).overall
    assert figures["loss"] == pytest.approx(math.log(2.0), rel=1e-15)
    assert (figures["accuracy"], figures["reward_gap"]) == (0.5, 0.0)


def test_gap_at_the_threshold_is_no_violation():
    _, reference, dataset = inputs()
    report = preference_report(reference, reference, dataset, beta=BETA, threshold=0.0)
    assert report.overall["violation_rate"] == 0.0
    above = preference_report(reference, reference, dataset, beta=BETA, threshold=1e-6)
    assert above.overall["violation_rate"] == 1.0


@pytest.mark.parametrize(
    ("metric", "higher_is_better"), [("accuracy", True), ("violation_rate", False), ("reward_gap", True)]
)
def test_spread_is_over_the_categories_with_pairs(report, metric, higher_is_better):
    values = {name: figures[metric] for name, figures in report.categories.items()}
    worst = (min if higher_is_better else max)(values, key=lambda name: values[name])
    assert len(set(values.values())) == 2
    assert report.spread[metric] == {
        "mean": pytest.approx(statistics.fmean(values.values())),
        "variance": pytest.approx(statistics.pvariance(values.values())),
        "gap": pytest.approx(max(values.values()) - min(values.values())),
        "worst": values[worst],
        "worst_category": worst,
    }


def test_categories_count_alike_however_many_pairs_they_have():
    categories = np.array([[1, 0, 0]] * 9 + [[0, 1, 0]])
    reference = np.zeros((10, 2), np.float32)
    policy = reference + np.array([[1.0, 0.0]] * 9 + [[-1.0, 0.0]], np.float32)
    report = report_of(policy, reference, toy.make_dataset(categories))
    assert report.overall["accuracy"] == 0.9
    assert report.spread["accuracy"]["mean"] == 0.5
    assert report.spread["accuracy"]["worst_category"] == "Drugs"


def test_data_without_categories_has_overall_figures_only():
    policy, reference, _ = inputs()
    report = report_of(policy, reference, toy.make_dataset(np.zeros((N, 3))))
    assert (report.categories, report.spread) == ({}, {})
    assert report.without_category == report.overall


def test_data_with_categories_everywhere_has_no_figures_without_one():
    policy, reference, _ = inputs()
    assert report_of(policy, reference, toy.make_dataset(np.ones((N, 3)))).without_category is None


def test_figures_of_the_log_carry_these_names(report):
    expected = {f"eval/{name}" for name in ("pairs", *PER_PAIR)}
    expected |= {
        f"eval/category/{category}/{name}"
        for category in ("Violence", "Drugs")
        for name in ("pairs", *PER_PAIR)
    }
    expected |= {
        f"eval/{metric}/{figure}"
        for metric in ("accuracy", "violation_rate", "reward_gap")
        for figure in ("mean", "variance", "gap", "worst")
    }
    assert report.figures().keys() == expected
    assert report.figures("before/").keys() == {name.replace("eval/", "before/", 1) for name in expected}


def test_non_finite_log_probs_give_none_and_spare_other_categories():
    policy, reference, dataset = inputs()
    policy[1, 0] = np.nan  # a pair of the first category alone
    figures = report_of(policy, reference, dataset).figures()
    assert figures["eval/loss"] is None
    assert figures["eval/category/Violence/loss"] is None
    assert math.isfinite(figures["eval/category/Drugs/loss"])
    assert figures["eval/pairs"] == N


def test_non_finite_pair_is_never_counted_as_safe():
    policy, reference, dataset = inputs()
    policy[1, 0] = np.nan
    report = report_of(policy, reference, dataset)
    assert report.figures()["eval/violation_rate"] is None
    assert report.spread["violation_rate"]["worst_category"] == "Violence"
    assert report.spread["accuracy"]["worst_category"] == "Violence"


def test_report_holds_plain_values_for_json(report):
    assert json.loads(json.dumps(report.as_dict())) == dataclasses.asdict(report)
    assert (report.step, report.beta, report.threshold) == (7, BETA, THRESHOLD)


def test_another_number_of_log_probs_than_pairs_is_an_error():
    policy, reference, dataset = inputs()
    with pytest.raises(ValueError, match=r"policy has shape \(22, 2\), expected \(23, 2\): one row per pair"):
        report_of(policy[:-1], reference[:-1], dataset)


def test_log_probs_of_one_branch_alone_are_an_error():
    policy, reference, dataset = inputs()
    with pytest.raises(ValueError, match=r"reference has shape \(23, 1\), expected \(23, 2\)"):
        report_of(policy, reference[:, :1], dataset)
