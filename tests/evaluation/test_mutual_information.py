"""The summary of mutual information and weights."""

import json

import numpy as np
import pytest

from jaxalign.evaluation.mutual_information import NUM_BINS, mutual_information_summary

NAMES = ("Violence", "Drugs", "Absent")


def summary(num_pairs: int = 200, **changes):
    rng = np.random.default_rng(0)
    values = {
        "mi": np.abs(rng.normal([0.8, 0.4], 0.2, (num_pairs, 2))).astype(np.float32),
        "weights": rng.uniform(0.5, 1.5, (num_pairs, 2)),
        "categories": np.eye(3)[np.arange(num_pairs) % 2],
    } | changes
    return values, mutual_information_summary(**values, category_names=NAMES)


def test_every_pair_is_counted_once():
    _, found = summary()
    assert (
        np.sum(found["counts"]) == sum(found["chosen_weight"]["counts"]) == found["overall"]["pairs"] == 200
    )
    assert len(found["edges"]) == len(found["counts"]) + 1 == NUM_BINS + 1


def test_counts_are_by_chosen_first():
    mi = np.array([[0.9, 0.1]] * 50)
    _, found = summary(50, mi=mi + np.linspace(0, 0.05, 50)[:, None])
    chosen = np.sum(found["counts"], axis=1)
    assert chosen[: NUM_BINS // 2].sum() == 0


def test_means_are_by_category_and_of_those_with_pairs():
    values, found = summary()
    assert set(found["categories"]) == {"Violence", "Drugs"}
    drugs = found["categories"]["Drugs"]
    assert drugs["pairs"] == 100
    assert drugs["rejected_mi"] == pytest.approx(values["mi"][1::2, 1].mean())
    assert drugs["chosen_weight"] == pytest.approx(values["weights"][1::2, 0].mean())
    assert drugs["chosen_higher"] == pytest.approx((values["mi"][1::2, 0] > values["mi"][1::2, 1]).mean())


def test_pairs_that_were_not_visited_are_left_out():
    mi = np.full((10, 2), np.nan)
    mi[3] = (0.5, 0.25)
    _, found = summary(10, mi=mi)
    assert found["overall"] | {"chosen_weight": 0, "rejected_weight": 0} == {
        "pairs": 1, "chosen_mi": 0.5, "rejected_mi": 0.25, "chosen_weight": 0, "rejected_weight": 0,
        "chosen_higher": 1.0,
    }  # fmt: skip


def test_equal_values_have_axes_of_some_width():
    _, found = summary(4, mi=np.full((4, 2), 0.3), weights=np.ones((4, 2)))
    assert found["edges"][0] < 0.3 < found["edges"][-1]
    assert np.sum(found["counts"]) == 4


def test_no_pair_at_all_is_an_error():
    with pytest.raises(ValueError, match="no pair has a finite mutual information"):
        summary(3, mi=np.full((3, 2), np.nan))


def test_summary_is_plain_json():
    _, found = summary()
    assert json.loads(json.dumps(found)) == found
