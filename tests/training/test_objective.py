"""The objective: each loss through its table, the adaptive state that it reads and the signals that it gives."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxalign import adaptive, losses
from jaxalign.training.objective import (
    LOSSES,
    LossConfig,
    SafeDpoConfig,
    ViolationConfig,
    resolved_gap,
    reward_accuracy,
)
from tests.training import toy


@pytest.fixture(scope="module")
def batch():
    return toy.make_batch()


@pytest.fixture(scope="module")
def policy(batch):
    return jax.jit(toy.policy_logps)(toy.make_params(), toy.make_frozen(), batch)


@pytest.fixture(scope="module")
def adapted(batch, policy):
    """Margins and balance after one update, so that no value is an initial one."""
    objective = toy.make_objective()
    state = objective.init()
    return objective.update(
        objective.stats(objective.terms(policy, batch.reference_logps, batch, *state), batch), *state
    )


def expected_loss(name, policy, batch, margin_state, balance_state):
    """The loss function itself, called with what the rules say."""
    logps = (policy[:, 0], policy[:, 1], batch.reference_logps[:, 0], batch.reference_logps[:, 1])
    unsafe = (batch.chosen_unsafe, batch.rejected_unsafe)
    reduce = "max" if name == "cat_b_dpo" else "mean"
    margins = adaptive.margin_rule(toy.MARGIN).value(margin_state)
    margin = adaptive.pair_margins(margins, batch.categories, reduce=reduce)
    value = adaptive.balance_rule(toy.BALANCE).value(balance_state)
    weights = adaptive.balance_weights(toy.BALANCE, value, batch.mi[:, 0], batch.mi[:, 1])
    match name:
        case "dpo":
            return losses.dpo_loss(*logps, beta=0.1)
        case "safe_dpo":
            return losses.safe_dpo_loss(*logps, *unsafe, beta=0.1, delta=1.5)
        case "cat_dpo":
            return losses.cat_dpo_loss(*logps, *unsafe, margin, beta=0.1)
        case "b_dpo":
            return losses.b_dpo_loss(*logps, *weights, beta=0.1, scale=value.scale)
        case "cat_b_dpo":
            return losses.cat_b_dpo_loss(*logps, *unsafe, margin, *weights, beta=0.1, scale=value.scale)
    raise AssertionError(f"no expectation for {name}")


def terms_of(name, policy, batch, adapted, **changes):
    objective = toy.make_objective(name, **changes)
    spec = LOSSES[name]
    margin, balance = adapted
    return objective.terms(
        policy,
        batch.reference_logps,
        batch,
        margin if spec.uses_margin else None,
        balance if spec.uses_balance else None,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_the_function_called_with_the_old_state(name, policy, batch, adapted):
    got = terms_of(name, policy, batch, adapted).loss
    np.testing.assert_array_equal(got, expected_loss(name, policy, batch, *adapted))


def test_the_five_losses_differ_on_this_batch(policy, batch, adapted):
    values = [np.asarray(terms_of(name, policy, batch, adapted).loss) for name in LOSSES]
    assert len({value.tobytes() for value in values}) == len(LOSSES)


def test_table_covers_exactly_the_losses_of_the_configuration():
    options = typing.get_args(typing.get_args(LossConfig)[0])
    names = [typing.get_args(option.model_fields["name"].annotation)[0] for option in options]
    assert sorted(LOSSES) == sorted(names)
    assert {f"{name}_loss" for name in names} == {name for name in losses.__all__ if name.endswith("_loss")}


@pytest.mark.parametrize("name", LOSSES)
def test_state_exists_exactly_where_the_loss_reads_it(name):
    margin, balance = toy.make_objective(name).init()
    assert (margin is not None) == LOSSES[name].uses_margin
    assert (balance is not None) == LOSSES[name].uses_balance


@pytest.mark.parametrize("name", LOSSES)
def test_update_leaves_absent_state_absent(name, policy, batch, adapted):
    objective = toy.make_objective(name)
    state = objective.init()
    terms = objective.terms(policy, batch.reference_logps, batch, *state)
    new = objective.update(objective.stats(terms, batch), *state)
    assert [part is None for part in new] == [part is None for part in state]


def test_no_gradient_flows_into_margin_and_balance_state(policy, batch, adapted):
    def loss(adapted):
        return terms_of("cat_b_dpo", policy, batch, adapted).loss.sum()

    gradients = jax.grad(loss, allow_int=True)(adapted)
    floats = [g for g in jax.tree.leaves(gradients) if g.dtype == jnp.float32]
    assert len(floats) == 5
    assert not any(np.asarray(g).any() for g in floats)


def test_gradient_reaches_the_policy_and_no_signal(policy, batch, adapted):
    def total(policy, field):
        return getattr(terms_of("cat_b_dpo", policy, batch, adapted), field).sum()

    for field in dataclasses.fields(terms_of("cat_b_dpo", policy, batch, adapted)):
        gradient = jax.grad(total)(policy, field.name)
        assert np.asarray(gradient).any() == (field.name == "loss"), field.name


def test_rewards_are_beta_times_the_log_ratios(policy, batch, adapted):
    terms = terms_of("dpo", policy, batch, adapted)
    expected = 0.1 * (np.asarray(policy) - batch.reference_logps)
    np.testing.assert_allclose(terms.chosen_reward, expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(terms.rejected_reward, expected[:, 1], rtol=1e-6)
    np.testing.assert_allclose(terms.reward_gap, expected[:, 0] - expected[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("name", ["safe_dpo", "cat_dpo", "b_dpo", "cat_b_dpo"])
def test_violation_is_that_of_the_plain_gap_whatever_the_loss_weights(
    name, temperature, policy, batch, adapted
):
    violation = ViolationConfig(threshold=0.05, temperature=temperature)
    plain = terms_of("dpo", policy, batch, adapted, violation=violation)
    weighted = terms_of(name, policy, batch, adapted, violation=violation)
    np.testing.assert_array_equal(weighted.violation, plain.violation)
    np.testing.assert_array_equal(weighted.reward_gap, plain.reward_gap)
    assert 0 < float(plain.violation.sum()) < len(batch.weight)


def test_violation_reads_threshold_and_temperature(policy, batch, adapted):
    soft = terms_of("dpo", policy, batch, adapted, violation=ViolationConfig(threshold=0.2, temperature=0.5))
    gap = np.asarray(soft.reward_gap, np.float64)
    np.testing.assert_allclose(soft.violation, 1 / (1 + np.exp(-(0.2 - gap) / 0.5)), rtol=1e-5)


def test_unweighted_losses_report_zero_margin_and_unit_weights(policy, batch, adapted):
    terms = terms_of("dpo", policy, batch, adapted)
    assert not np.asarray(terms.margin).any()
    assert (np.asarray(terms.chosen_weight) == 1).all()
    assert (np.asarray(terms.rejected_weight) == 1).all()


def test_stats_are_plain_sums_over_real_pairs(policy, batch, adapted):
    terms = terms_of("cat_b_dpo", policy, batch, adapted)
    stats = toy.make_objective().stats(terms, batch)
    np.testing.assert_allclose(stats.category.pairs, batch.categories.sum(axis=0))
    np.testing.assert_allclose(stats.category.violations, np.asarray(terms.violation) @ batch.categories)
    np.testing.assert_allclose(stats.balance.chosen_mi, batch.mi[:, 0].sum(), rtol=1e-6)
    np.testing.assert_allclose(stats.balance.rejected_mi, batch.mi[:, 1].sum(), rtol=1e-6)
    np.testing.assert_allclose(stats.balance.gradient_weight, (1 - np.exp(-terms.loss)).sum(), rtol=1e-5)


def test_stats_of_two_halves_add_up_to_those_of_the_batch(policy, batch, adapted):
    def stats(index):
        part = toy.rows(batch, index)
        return toy.make_objective().stats(terms_of("cat_b_dpo", policy[index], part, adapted), part)

    halves = jax.tree.map(jnp.add, stats(np.arange(4)), stats(np.arange(4, 8)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), halves, stats(np.arange(8)))


def test_padding_changes_no_statistic_even_where_it_holds_garbage(policy, batch, adapted):
    weight = batch.weight.copy()
    weight[-2:] = 0
    garbage = np.where(weight > 0, np.float32(0), np.float32(np.nan))
    padded = dataclasses.replace(
        batch,
        weight=weight,
        reference_logps=batch.reference_logps + garbage[:, None],
        mi=batch.mi - np.where(weight > 0, np.float32(0), np.float32(np.inf))[:, None],
    )
    objective = toy.make_objective()
    got = objective.stats(terms_of("cat_b_dpo", policy, padded, adapted), padded)
    clean = toy.rows(batch, np.arange(6))
    expected = objective.stats(terms_of("cat_b_dpo", policy[:6], clean, adapted), clean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


@pytest.mark.parametrize("xp", [jnp, np], ids=["jax", "numpy"])
def test_gap_below_the_resolution_of_the_sums_is_a_tie(xp):
    reference = np.array([[-300.0, -200.0], [-300.0, -200.0], [-20.0, -24.0]], np.float32)
    policy = reference + np.array([[1e-3, 0.0], [-0.01, 0.0], [1.0, -1.5]], np.float32)
    gap = resolved_gap(xp.asarray(policy), xp.asarray(reference), xp)
    np.testing.assert_allclose(gap, [0.0, -0.01, 2.5], rtol=0.01)
    assert np.asarray(gap)[0] == 0.0


@pytest.mark.parametrize("xp", [jnp, np], ids=["jax", "numpy"])
def test_tie_counts_one_half(xp):
    accuracy = reward_accuracy(xp.asarray(np.array([0.3, 0.0, -0.2, np.nan], np.float32)), xp)
    np.testing.assert_array_equal(accuracy, [1.0, 0.5, 0.0, np.nan])


def test_unchanged_policy_is_right_half_of_the_time(batch, adapted):
    noise = np.random.default_rng(3).normal(0, 1e-6, batch.reference_logps.shape).astype(np.float32)
    terms = terms_of("dpo", batch.reference_logps + noise, batch, adapted)
    assert (np.asarray(terms.accuracy) == 0.5).all()
    assert not np.asarray(terms.violation).any()


def test_beta_must_be_positive():
    with pytest.raises(ValidationError, match="greater than 0"):
        SafeDpoConfig(name="safe_dpo", beta=0.0)


def test_temperature_must_be_positive():
    with pytest.raises(ValidationError, match="greater than 0"):
        ViolationConfig(temperature=0.0)
