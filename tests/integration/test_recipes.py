"""Losses, rules and samplers in a whole run: each trains, and a stopped and resumed run is exact."""

import json
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.data.loader import PairLoader
from jaxalign.data.sampling import SamplingState
from jaxalign.run.setup import prepare
from jaxalign.run.train import train
from tests import tiny
from tests.integration.runs import host, metrics, train_steps
from tests.integration.test_resume import final_state, train_until

ONE = jax.devices()[:1]
SCORES = {"chosen_score": 1.5, "rejected_score": -0.5}
RECIPES: dict[str, dict[str, Any]] = {
    "kl": {"loss": {"name": "kto", "desirable_weight": 1.5}},
    "reward_shift": {"loss": {"name": "bco"}},
    "group_dro": {"loss": {"name": "group_dro", "step_size": 0.5}},
    "random pairs of a batch": {"loss": {"name": "beta_dpo"}},
    "sampling by violation": {
        "loss": {"name": "cat_dpo"},
        "data": {"sampling": {"strategy": "margin"}},
        "rows": {"layout": "padded"},
        "adaptive": {"violation": {"threshold": 0.3}},
    },
    "sampling by category": {"loss": {"name": "dpo"}, "data": {"sampling": {"strategy": "uniform"}}},
    "policy's own mutual information": {"loss": {"name": "b_dpo"}, "adaptive": {"mi_source": "policy"}},
}


def settings_of(folder: Path, *, scores: bool = False, **sections: Any) -> dict[str, Any]:
    settings = tiny.run_settings(
        folder,
        **{
            "train": {"num_steps": 4},
            "checkpoint": {"every_steps": 1},
            "model": {"lora": {"rank": 2}},
            **sections,
        },
    )
    if scores:
        tiny.write_pairs(folder / "train.jsonl", [row | SCORES for row in tiny.pairs(22)])
    return settings


FAST = (
    "random pairs of a batch",
    "sampling by violation",
)  # what depends on more than the step and its batch


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_recipe_stopped_and_resumed_is_exact(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, **RECIPES[name])
    train(parse_config(settings, "test"), tmp_path / "whole", ONE)
    train_until(2, settings, tmp_path / "stopped", monkeypatch)
    train(parse_config(settings, "test"), tmp_path / "stopped", ONE)
    expected, actual = (final_state(settings, tmp_path / name)[0] for name in ("whole", "stopped"))
    chex.assert_trees_all_equal(actual, expected)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert expected.num_skipped == 0


def test_sampling_by_violation_follows_the_rates_of_the_state(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **RECIPES["sampling by violation"], train={"num_steps": 20})
    run = prepare(parse_config(settings, "test"), tmp_path, ONE)
    rates = np.array([0.0, 1.0, 0.0], np.float32)
    seen = np.array([9, 9, 9], np.int32)
    rows = np.concatenate([run.loader.indices(step, SamplingState(rates, seen)) for step in range(20)])
    drugs = run.data.train.categories[rows, 1].mean()
    assert drugs > 2 * run.data.train.categories[:, 1].mean()
    assert np.isfinite(run.data.train.reference_logps).all()  # every row may come


def test_sampler_is_given_the_rates_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def watched(self: PairLoader, step: int, state: SamplingState | None = None) -> Any:
        given.append((step, state))
        return batch(self, step, state)

    batch = PairLoader.batch
    monkeypatch.setattr(PairLoader, "batch", watched)
    settings = settings_of(tmp_path, **RECIPES["sampling by violation"])
    settings["data"]["heldout"] = []
    train(parse_config(settings, "test"), tmp_path / "run", ONE)
    logged = metrics(tmp_path / "run")
    last = [state for step, state in given if step == 3 and state is not None][-1]
    for k, name in enumerate(tiny.CATEGORIES):
        if last.num_seen[k]:
            assert logged[2][f"adaptive/violation/{name}"] == pytest.approx(float(last.violation_rates[k]))
    assert last.num_seen.any()


def test_run_without_reference_makes_no_pass_over_its_training_pairs(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, loss={"name": "simpo"}, reference={"mode": "none"})
    run = prepare(parse_config(settings, "test"), tmp_path / "run", ONE)
    assert run.data.train.reference_logps is None
    assert np.isfinite(run.data.splits["heldout"].reference_logps).all()
    train(parse_config(settings, "test"), tmp_path / "run", ONE)
    first = metrics(tmp_path / "run")[0]
    assert first["rewards/chosen"] == pytest.approx(0.1 * first["logps/chosen"], rel=1e-5)


@pytest.mark.parametrize("name", ["safe_dpo", "cat_dpo", "cat_b_dpo", "bfpo", "group_dro"])
def test_loss_refuses_data_without_the_labels_that_it_reads(name: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, loss={"name": name})
    rows = [row | {"categories": [], "rejected_unsafe": False} for row in tiny.pairs(22)]
    tiny.write_pairs(tmp_path / "train.jsonl", rows)
    with pytest.raises(ConfigError, match=f"loss {name} acts on pairs with .*, and no training pair is one"):
        prepare(parse_config(settings, "test"), tmp_path, ONE)


def test_sampling_by_category_refuses_data_without_categories(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **RECIPES["sampling by category"])
    rows = [row | {"categories": [], "rejected_unsafe": False} for row in tiny.pairs(22)]
    tiny.write_pairs(tmp_path / "train.jsonl", rows)
    with pytest.raises(ConfigError, match=r"data\.sampling draws by category, but no training pair has one"):
        prepare(parse_config(settings, "test"), tmp_path, ONE)


def test_reference_covers_all_rows_that_a_sampler_draws(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, **RECIPES["sampling by category"])
    run = prepare(parse_config(settings, "test"), tmp_path, ONE)
    drawn = np.concatenate([run.loader.indices(step) for step in range(run.num_steps)])
    assert np.isfinite(run.data.train.reference_logps[drawn]).all()


def test_policy_mi_of_the_first_step_is_that_of_the_reference(tmp_path: Path) -> None:
    states = []
    for source in ("reference", "policy"):
        settings = settings_of(tmp_path, loss={"name": "b_dpo"}, adaptive={"mi_source": source})
        run = prepare(parse_config(settings, "test"), tmp_path / source, ONE)
        states.append(host(train_steps(run, 1)[0].adaptive["balance"]))
        assert run.data.train.mi.any() == (source == "reference")
    chex.assert_trees_all_close(states[0], states[1], rtol=1e-4)
    assert states[0].chosen_mi != 0


@pytest.mark.parametrize("name", ["odpo", "madpo"])
def test_loss_of_scores_reads_those_of_the_data(name: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, scores=True, loss={"name": name})
    run = prepare(parse_config(settings, "test"), tmp_path, ONE)
    batch = run.loader.batch(0)
    assert np.unique(batch.scores[batch.weight > 0], axis=0).tolist() == [[1.5, -0.5]]
    _, sums = train_steps(run, 1)
    assert np.isfinite(sums[0].loss)


def test_loss_of_scores_refuses_data_without(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, loss={"name": "madpo"})
    with pytest.raises(ConfigError, match="loss madpo reads a score of both responses in every pair"):
        prepare(parse_config(settings, "test"), tmp_path, ONE)


def test_odpo_refuses_a_chosen_score_below_the_rejected_one_or_skips_the_pair(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, loss={"name": "odpo"})
    rows = [row | SCORES for row in tiny.pairs(22)]
    rows[3] |= {"chosen_score": -2.0}
    rows[7] |= {"chosen_score": -0.5}  # a tie would train nothing
    tiny.write_pairs(tmp_path / "train.jsonl", rows)
    with pytest.raises(ConfigError, match=r"2 of 22 pairs have no chosen score above .*:4: -2.0 and -0.5"):
        prepare(parse_config(settings, "test"), tmp_path, ONE)
    settings["data"]["on_error"] = "skip"
    assert len(prepare(parse_config(settings, "test"), tmp_path, ONE).data.train) == 20


@pytest.mark.parametrize("mode", ["precomputed", pytest.param("adapter_base", marks=pytest.mark.slow)])
def test_modpo_reads_the_rewards_of_its_margin_model(mode: str, tmp_path: Path) -> None:
    stage1 = settings_of(tmp_path, loss={"name": "dpo"}, optimizer={"learning_rate": 0.05})
    train(parse_config(stage1, "test"), tmp_path / "stage1", ONE)
    loss = {"name": "modpo", "margin_model": str(tmp_path / "stage1"), "margin_beta": 0.2}
    stage2 = settings_of(tmp_path, loss=loss, reference={"mode": mode})
    run = prepare(parse_config(stage2, "test"), tmp_path / "stage2", ONE)
    rewards = run.data.train.scores
    gap = (rewards[:, 0] - rewards[:, 1]).mean()
    after = json.loads((tmp_path / "stage1" / "evaluation" / "after.json").read_text())
    assert gap > 0.01
    assert after["overall"]["reward_gap"] > 0  # the margin model has learnt the same preference
    _, sums = train_steps(run, 1)
    # At the start both log-ratios are 0: the loss is that of the margins alone.
    batch = run.loader.batch(0)
    scores = batch.scores[batch.weight > 0]
    expected = np.logaddexp(0.0, scores[:, 0] - scores[:, 1])
    np.testing.assert_allclose(sums[0].loss / sums[0].pairs, expected.mean(), rtol=1e-3)
