"""Values of a run in the tables that show them: mutual information, reward gaps, throughput, settings, versions."""

import json

import numpy as np
import pytest

from jaxalign.data.schema import PKU_CATEGORIES
from jaxalign.run.report import read_document
from tests.report import runs


@pytest.fixture(scope="module")
def tables(full_run):
    """Records of every table by key of the section and title of the figure."""
    (part,) = read_document([full_run]).parts
    return {(s.key, f.title): f.table.records() for s in part.sections for f in s.figures}


@pytest.fixture(scope="module")
def heldout_pairs(full_run):
    lines = (full_run / "evaluation" / "after_pairs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_mutual_information_of_pairs_and_the_weights_that_followed(full_run, tables):
    written = json.loads((full_run / "evaluation" / "mutual_information.json").read_text())
    overall = written["overall"]
    information, weight = tables["balance", "Chosen against rejected"]
    assert (information["chosen"], information["rejected"]) == (overall["chosen_mi"], overall["rejected_mi"])
    assert (weight["chosen"], weight["rejected"]) == (overall["chosen_weight"], overall["rejected_weight"])
    assert (
        weight["chosen"] < 1 < weight["rejected"]
    )  # the response that depends more on its prompt weighs less
    assert sum(row["pairs"] for row in tables["balance", "Weights of chosen responses"]) == 600
    rows = tables["balance", "By category"]
    assert {row["category"]: row["weight of rejected"] for row in rows} == {
        name: one["rejected_weight"] for name, one in written["categories"].items()
    }
    excess = [row["MI of chosen"] - row["MI of rejected"] for row in rows]
    assert excess == sorted(excess, reverse=True)


def test_mutual_information_and_weights_over_the_steps(tables):
    chosen, rejected = tables["balance", "Mutual information over steps"]
    assert (chosen["at first"], chosen["at last"]) == pytest.approx((0.8, 0.7), abs=1e-3)
    assert (rejected["at first"], rejected["at last"]) == (0.6, 0.6)
    weights = tables["balance", "Weights over steps"]
    assert [row["at last"] for row in weights] == pytest.approx([0.9, 1.1])


def test_reward_gaps_of_all_pairs_are_counted_on_their_side_of_the_threshold(tables, heldout_pairs):
    gaps = np.array([pair["reward_gap"] for pair in heldout_pairs])
    bins = tables["gaps", "All held-out pairs"]
    assert sum(row["pairs"] for row in bins) == len(gaps) == 8 * len(PKU_CATEGORIES)
    below = [row["pairs"] for row in bins if row["to"] <= runs.THRESHOLD + 1e-9]
    assert sum(below) == (gaps < runs.THRESHOLD).sum() > 0


def test_spread_of_reward_gaps_by_category(tables, heldout_pairs):
    rows = tables["gaps", "By category"]
    for row in rows:
        gaps = np.array([p["reward_gap"] for p in heldout_pairs if row["category"] in p["categories"]])
        quantiles = [row[name] for name in ("5 %", "25 %", "median", "75 %", "95 %")]
        assert quantiles == pytest.approx(np.quantile(gaps, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist())
        assert row["pairs"] == len(gaps)
        assert row["below threshold"] == pytest.approx((gaps < runs.THRESHOLD).mean())
    medians = [row["median"] for row in rows]
    assert len(medians) == len(PKU_CATEGORIES)
    assert medians == sorted(medians)


def test_throughput_and_totals_of_the_training(full_run, tables):
    lines = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["response_tokens_per_second"] for line in lines]
    (throughput,) = tables["course", "Throughput"]
    assert list(throughput.values()) == [rates[0], np.median(rates), rates[-1]]
    numbers = {row["what"]: row["how much"] for row in tables["course", "In numbers"]}
    assert (numbers["pairs"], numbers["response tokens"]) == (500 * 64, 500 * 6400)
    assert (numbers["seconds in steps"], numbers["skipped steps"]) == (250.0, 1)
    assert numbers["median tokens a second"] == np.median(rates)


def test_settings_fingerprints_versions_and_devices(tables):
    prints = {row["of"]: row["fingerprint"] for row in tables["settings", "Fingerprints"]}
    assert prints == {
        "model": "c" * 64,
        "data train": "d" * 64,
        "data heldout": runs.fingerprint_of(PKU_CATEGORIES),
    }
    versions = {row["what"]: row["version"] for row in tables["settings", "Versions and devices"]}
    assert versions == {
        "jaxalign": "0.1.0", "revision": "0123abcd", "python": "3.11", "jax": "0.10.2", "devices: count": "1",
        "devices: kind": "cpu", "devices: processes": "1", "resumed": "0 times",
    }  # fmt: skip
    main = {row["setting"]: row["value"] for row in tables["settings", "Main settings"]}
    assert (main["loss.name"], main["train.num_steps"]) == ("cat_b_dpo", "500")
