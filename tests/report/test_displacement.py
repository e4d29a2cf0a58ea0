"""The alarm for chosen responses that lose likelihood."""

import json

import numpy as np
import pytest

from jaxalign.report.displacement import PATIENCE_STEPS, THRESHOLD, displacement
from jaxalign.report.record import read_run
from jaxalign.report.verdict import verdict
from tests.report import runs


def record(workdir, **changes):
    manifest = json.loads((workdir / "manifest.json").read_text())
    manifest["config"] |= changes
    return read_run(workdir, manifest, "run", lambda folder, threshold: None)


def with_log_ratios(workdir, values):
    """A run whose chosen responses have these log-ratios per token; two responses of 10 tokens a pair."""
    runs.write(workdir / "manifest.json", runs.manifest("dpo", len(values), "f" * 64, None))
    lines = [
        {"step": k, "rewards/chosen": runs.BETA * 10 * value, "rewards/rejected": 0.0, "pairs": 2.0,
         "response_tokens": 40.0}
        for k, value in enumerate(values, start=1)
    ]  # fmt: skip
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return record(workdir)


def test_likelihood_that_stays_raises_no_alarm(tmp_path):
    found = displacement(with_log_ratios(tmp_path, [0.0] * 50))
    assert found.raised is None
    assert found.unknown == ""


def test_long_loss_raises_the_alarm_with_its_steps(tmp_path):
    found = displacement(with_log_ratios(tmp_path, [0.0] * 20 + [-0.5] * 30))
    assert found.raised is not None
    first, last = found.raised
    assert 20 < first < 25  # the running mean follows within a few steps
    assert last == 50


def test_short_dip_raises_no_alarm(tmp_path):
    values = [0.0] * 20 + [-0.5] * (PATIENCE_STEPS - 5) + [0.5] * 30
    assert displacement(with_log_ratios(tmp_path, values)).raised is None


def test_loss_above_the_threshold_raises_no_alarm(tmp_path):
    assert displacement(with_log_ratios(tmp_path, [THRESHOLD * 0.99] * 200)).raised is None
    assert displacement(with_log_ratios(tmp_path, [THRESHOLD * 1.01] * 200)).raised == (1, 200)


def test_longer_run_has_more_patience(tmp_path):
    values = [0.0] * 900 + [-0.5] * 40 + [0.5] * 60
    found = displacement(with_log_ratios(tmp_path, values))
    assert found.patience == 50
    assert found.raised is None


def test_values_are_log_ratios_per_token(tmp_path):
    assert displacement(with_log_ratios(tmp_path, [-0.25] * 5)).chosen == pytest.approx(np.full(5, -0.25))


def test_rewards_without_a_reference_give_no_alarm_and_say_why(tmp_path):
    with_log_ratios(tmp_path, [-9.0] * 50)
    found = displacement(record(tmp_path, reference={"mode": "none"}))
    assert found.raised is None
    assert "reference.mode none are not measured against a reference" in found.unknown


def test_alarm_is_in_the_verdict(tmp_path):
    facts = {fact.label: fact for fact in verdict(with_log_ratios(tmp_path, [-0.5] * 30)).facts}
    assert (facts["Chosen responses"].value, facts["Chosen responses"].state) == ("alarm", "warn")
    assert "from step 1 to 30" in facts["Chosen responses"].note


def test_run_without_steps_says_that_nothing_is_known(bare_run):
    assert displacement(record(bare_run)).unknown == "the run has logged no rewards"
