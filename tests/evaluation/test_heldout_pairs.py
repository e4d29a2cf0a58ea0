"""Held-out pairs one by one: written, read, and compared between runs."""

import math

import numpy as np
import pytest

from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.heldout_pairs import (
    HeldoutPairs,
    HeldoutPairsError,
    heldout_pairs,
    interval_rates,
    paired_differences,
    read_heldout_pairs,
)
from jaxalign.evaluation.preference import preference_report
from tests.evaluation.test_preference import inputs

NAMES = ("Violence", "Drugs")
RESAMPLING = Resampling(num_resamples=500)


def made(num_prompts: int = 40, seed: int = 0) -> tuple[HeldoutPairs, np.ndarray, np.ndarray]:
    """Pairs, two of a prompt, and the values of two runs of which the second is better."""
    rng = np.random.default_rng(seed)
    prompts = np.arange(2 * num_prompts) // 2
    first = prompts % 2 == 0
    pairs = HeldoutPairs(NAMES, prompts, np.stack([first, ~first], axis=1), rng.normal(size=2 * num_prompts))
    one = rng.random(2 * num_prompts) < 0.5
    return pairs, one.astype(float), (one | (rng.random(2 * num_prompts) < 0.5)).astype(float)


def test_means_over_pairs_are_those_of_the_report():
    policy, reference, dataset = inputs()
    pairs = heldout_pairs(policy, reference, dataset, beta=0.2)
    report = preference_report(policy, reference, dataset, beta=0.2, threshold=0.1)
    assert pairs.reward_gap.mean() == pytest.approx(report.overall["reward_gap"])
    assert pairs.accuracy.mean() == pytest.approx(report.overall["accuracy"])
    inside = pairs.members()["Drugs"]
    assert pairs.accuracy[inside].mean() == pytest.approx(report.categories["Drugs"]["accuracy"])
    assert set(pairs.members()) == set(report.categories)


def test_pairs_of_one_prompt_have_one_number():
    policy, reference, dataset = inputs()
    prompts = heldout_pairs(policy, reference, dataset, beta=0.2).prompts
    texts = [ids.tobytes() for ids in dataset.prompt_ids]
    for i in range(len(texts)):
        for j in range(i):
            assert (prompts[i] == prompts[j]) == (texts[i] == texts[j])


def test_pairs_are_read_as_they_were_written(tmp_path):
    policy, reference, dataset = inputs()
    policy[1, 0] = np.nan
    pairs = heldout_pairs(policy, reference, dataset, beta=0.2)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{line}\n" for line in pairs.lines()))
    again = read_heldout_pairs(path)
    assert np.isnan(again.reward_gap[1])
    assert [again.members()[name].sum() for name in again.category_names] == [
        pairs.members()[name].sum() for name in again.category_names
    ]
    np.testing.assert_allclose(again.reward_gap, pairs.reward_gap, atol=1e-6)


def test_empty_file_of_pairs_is_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(HeldoutPairsError, match=r"pairs\.jsonl is empty, expected one held-out pair a line"):
        read_heldout_pairs(tmp_path / "pairs.jsonl")


def test_pairs_without_categories_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": 0, "categories": [], "reward_gap": 0.5}\n')
    pairs = read_heldout_pairs(path)
    assert (pairs.category_names, pairs.categories.shape, pairs.members()) == ((), (1, 0), {})


@pytest.mark.parametrize(
    "line", ["{", '{"prompt": 1}', '{"prompt": "a", "categories": [], "reward_gap": 0}', "[1, 2, 3]", ""]
)
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": 0, "categories": [], "reward_gap": 0.5}}\n{line}\n')
    with pytest.raises(
        HeldoutPairsError, match=r"pairs\.jsonl, line 2: expected an object with prompt, .*; delete"
    ):
        read_heldout_pairs(path)


def test_interval_of_a_rate_holds_it_and_is_wide_where_every_pair_is_a_hit():
    pairs, one, _ = made(10)
    one[:] = 1.0
    found = interval_rates(pairs, one, RESAMPLING)
    assert set(found) == {"all pairs", *NAMES}
    assert found["Drugs"].value == found["Drugs"].high == 1.0
    assert 0.5 < found["Drugs"].low < found["all pairs"].low < 0.95


def test_pairs_without_a_value_have_no_rate():
    pairs, one, _ = made(2)
    assert interval_rates(pairs, np.full_like(one, np.nan), RESAMPLING) == {}
    one[pairs.members()["Drugs"]] = np.nan
    assert set(interval_rates(pairs, one, RESAMPLING)) == {"all pairs", "Violence"}


def test_difference_is_that_of_the_means():
    pairs, one, two = made()
    found = paired_differences(pairs, one, two, RESAMPLING)
    assert found.summary["all pairs"].value == pytest.approx(two.mean() - one.mean())
    for name, inside in pairs.members().items():
        assert found.categories[name].value == pytest.approx(two[inside].mean() - one[inside].mean())
    rates = [[v[inside].mean() for inside in pairs.members().values()] for v in (one, two)]
    gaps = [max(r) - min(r) for r in rates]
    assert found.summary["best-to-worst gap"].value == pytest.approx(gaps[1] - gaps[0])
    assert found.summary["worst category"].value == pytest.approx(min(rates[1]) - min(rates[0]))


def test_worst_category_is_the_highest_where_lower_is_better():
    pairs, one, two = made()
    found = paired_differences(pairs, one, two, RESAMPLING, higher_is_better=False)
    rates = [max(v[inside].mean() for inside in pairs.members().values()) for v in (one, two)]
    assert found.summary["worst category"].value == pytest.approx(rates[1] - rates[0])


def test_same_seed_gives_the_same_interval_and_order_of_pairs_does_not_matter():
    pairs, one, two = made()
    order = np.random.default_rng(5).permutation(len(one))
    shuffled = HeldoutPairs(NAMES, pairs.prompts[order], pairs.categories[order], pairs.reward_gap[order])
    found = paired_differences(pairs, one, two, RESAMPLING)
    assert found == paired_differences(pairs, one, two, RESAMPLING)
    assert found == paired_differences(shuffled, one[order], two[order], RESAMPLING)
    assert found != paired_differences(pairs, one, two, Resampling(num_resamples=500, seed=1))


def test_run_against_itself_differs_by_nothing():
    pairs, one, _ = made()
    found = paired_differences(pairs, one, one, RESAMPLING)
    for interval in (*found.summary.values(), *found.categories.values()):
        assert interval.value == 0.0
        assert interval.low < 0.0 < interval.high
    assert found.gap_shrank == pytest.approx(0.5, abs=0.1)


def test_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        pairs, one, two = made(60, seed)
        resampling = Resampling(num_resamples=200, seed=seed)
        interval = paired_differences(pairs, one, two, resampling).summary["all pairs"]
        covered += interval.low <= 0.25 <= interval.high
    assert 88 <= covered <= 99


def test_pairs_of_one_prompt_count_as_one():
    pairs, one, two = made(40)
    alone = HeldoutPairs(NAMES, np.arange(80), pairs.categories, pairs.reward_gap)
    one[1::2], two[1::2] = one[::2], two[::2]  # both pairs of a prompt are alike
    wide, narrow = (paired_differences(p, one, two, RESAMPLING).summary["all pairs"] for p in (pairs, alone))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(2), rel=0.15)


def test_pair_without_a_value_in_one_run_is_left_out_of_both():
    pairs, one, two = made()
    two[0] = np.nan
    found = paired_differences(pairs, one, two, RESAMPLING)
    assert found.num_pairs == len(one) - 1
    assert found.summary["all pairs"].value == pytest.approx(two[1:].mean() - one[1:].mean())


def test_category_of_one_prompt_has_a_wide_interval():
    pairs, one, two = made(3)
    found = paired_differences(pairs, one, two, RESAMPLING)
    assert found.categories["Drugs"].high - found.categories["Drugs"].low > 0.5  # of prompt 1 alone


def test_nothing_to_compare_is_an_error():
    pairs, one, two = made(2)
    with pytest.raises(HeldoutPairsError, match="no held-out pair has a finite value in both runs"):
        paired_differences(pairs, one, np.full_like(two, np.nan), RESAMPLING)


def test_pairs_without_categories_have_the_overall_difference_alone():
    pairs, one, two = made()
    plain = HeldoutPairs((), pairs.prompts, np.zeros((len(one), 0), bool), pairs.reward_gap)
    found = paired_differences(plain, one, two, RESAMPLING)
    assert (list(found.summary), found.categories, found.gap_shrank) == (["all pairs"], {}, None)
