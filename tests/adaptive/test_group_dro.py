"""Group weights: how weight moves, what the weights of pairs estimate, and what they do to a policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    GroupDroConfig,
    GroupDroState,
    GroupStats,
    group_dro_rule,
    group_stats,
    group_weights,
)
from tests.reference import adaptive as reference

RULE = group_dro_rule(GroupDroConfig(num_categories=3, step_size=0.5))


def held(losses: list, num_steps: int) -> np.ndarray:
    """`[num_steps + 1, 3]` weights while the mean losses are held; None: category absent."""
    pairs = jnp.array([0.0 if loss is None else 4.0 for loss in losses])
    stats = GroupStats(jnp.array([4.0 * (loss or 0.0) for loss in losses]), pairs, pairs.sum())
    update, state = jax.jit(RULE.update), RULE.init()
    weights = [state.weight]
    for _ in range(num_steps):
        state = update(stats, state)
        weights.append(state.weight)
    return np.stack(weights)


def test_mass_moves_to_the_worst_group_and_stays_on_the_simplex():
    weights = held([0.2, 0.5, 1.0], num_steps=100)
    assert (np.diff(weights[:, 2]) >= 0).all()
    assert (np.diff(weights[:, 0]) <= 0).all()
    assert weights[-1, 2] > 0.999
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)


def test_groups_of_equal_loss_keep_equal_weights():
    np.testing.assert_allclose(held([0.7, 0.7, 0.7], num_steps=50), 1 / 3, rtol=1e-6)


def test_absent_group_keeps_its_weight_bit_for_bit_and_the_others_share_theirs():
    weights = held([0.2, None, 1.0], num_steps=20)
    np.testing.assert_array_equal(weights[:, 1], weights[0, 1])
    assert weights[-1, 2] > 0.66
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)


def test_group_alone_in_a_batch_keeps_its_weight_whatever_its_loss():
    np.testing.assert_allclose(held([None, 9.0, None], num_steps=5), 1 / 3, rtol=1e-6)


def test_weight_that_vanished_rises_again():
    update, state = jax.jit(RULE.update), RULE.init()
    for loss in ([0.0, 0.0, 1e4], [400.0, 0.0, 0.0]):
        for _ in range(2):
            state = update(GroupStats(jnp.array(loss), jnp.ones(3), jnp.float32(3)), state)
        assert np.isfinite(state.weight).all()
    np.testing.assert_allclose(state.weight, [1.0, 0.0, 0.0], atol=1e-6)


def test_all_groups_present_give_the_formula_of_the_paper():
    q, losses = np.array([0.2, 0.3, 0.5]), np.array([1.0, 2.0, 0.5])
    state = dataclasses.replace(RULE.init(), weight=jnp.asarray(q, jnp.float32))
    updated = RULE.update(
        GroupStats(jnp.asarray(losses * 2, jnp.float32), jnp.full(3, 2.0), jnp.float32(6)), state
    )
    np.testing.assert_allclose(
        updated.weight, q * np.exp(0.5 * losses) / (q * np.exp(0.5 * losses)).sum(), rtol=1e-6
    )


def test_batch_mean_of_weighted_losses_is_the_robust_objective():
    rng = np.random.default_rng(0)
    group = rng.choice(3, 24, p=[0.6, 0.3, 0.1])
    loss, categories = jnp.asarray(rng.uniform(0, 2, 24), jnp.float32), jnp.asarray(np.eye(3)[group])
    state = RULE.update(group_stats(loss, categories, jnp.ones(24)), RULE.init())
    weights = group_weights(RULE.value(state), categories)
    robust = sum(float(state.weight[g]) * np.asarray(loss)[group == g].mean() for g in range(3))
    np.testing.assert_allclose((weights * loss).mean(), robust, rtol=1e-6)


def test_factors_ignore_groups_never_seen():
    state = GroupDroState(jnp.array([0.2, 0.3, 0.5]), jnp.array([30, 10, 0]), jnp.int32(50))
    np.testing.assert_allclose(RULE.value(state), [0.4 / 0.6, 0.6 / 0.2, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(RULE.value(RULE.init()), np.ones(3))


def state_after_one_rare_pair(maximum_factor: float) -> tuple:
    """Rule and state after 1,000 batches of 64 pairs; the second category occurred in one pair of them."""
    rule = group_dro_rule(GroupDroConfig(2, step_size=0.01, maximum_factor=maximum_factor))
    rare = jnp.zeros(1000).at[500].set(1.0)
    pairs = jnp.stack([64.0 - rare, rare], axis=1)
    stats = GroupStats(0.7 * pairs, pairs, jnp.full(1000, 64.0))
    state, _ = jax.lax.scan(lambda state, stats: (rule.update(stats, state), None), rule.init(), stats)
    return rule, state


def test_rare_category_never_becomes_the_whole_step():
    categories = jnp.eye(2)[jnp.zeros(64, jnp.int32).at[7].set(1)]
    shares = {}
    for bound in (10.0, 1e6):
        rule, state = state_after_one_rare_pair(bound)
        assert float(rule.value(state)[1]) == pytest.approx(min(bound, 32_000.0), rel=1e-3)
        weights = group_weights(rule.value(state), categories)
        shares[bound] = float(weights[7] / weights.sum())
    assert shares[10.0] < 0.25
    assert shares[1e6] > 0.99
    assert GroupDroConfig(2, step_size=0.01).maximum_factor == 10.0


def test_weights_of_pairs_equal_the_reference_and_are_1_without_a_category():
    factors, categories = np.array([0.5, 2.0, 1.25]), np.random.default_rng(0).integers(0, 2, (9, 3))
    categories[4] = 0
    weights = group_weights(jnp.asarray(factors), jnp.asarray(categories))
    np.testing.assert_allclose(weights, reference.group_weights(factors, categories), rtol=1e-6)
    assert weights[4] == 1.0
    np.testing.assert_array_equal(
        jax.jit(group_weights)(jnp.asarray(factors), jnp.asarray(categories)), weights
    )


def test_no_gradient_into_factors():
    gradient = jax.grad(lambda factors: group_weights(factors, jnp.eye(3)).sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1)])
def test_categories_that_do_not_fit_the_factors_raise(shape):
    with pytest.raises(ValueError, match=r"categories has shape .* expected \[B, K\] for factors \[K\]"):
        group_weights(jnp.ones(3), jnp.ones(shape))


def test_statistics_name_the_argument_of_wrong_shape():
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), expected \(4,\)"):
        group_stats(jnp.ones(4), jnp.ones((4, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"categories has shape \(4,\), expected \[B, K\]"):
        group_stats(jnp.ones(4), jnp.ones(4), jnp.ones(4))


def worst_loss_after_training(adaptive: bool) -> float:
    """A policy of one parameter that two groups pull apart; the second is three times as common."""
    target, categories = jnp.array([-1.0, 1.0, 1.0, 1.0]), jnp.eye(2)[jnp.array([0, 1, 1, 1])]
    rule = group_dro_rule(GroupDroConfig(num_categories=2, step_size=0.1))

    def losses(parameter):
        return (parameter - target) ** 2

    def step(carry, _):
        parameter, state = carry
        weight = group_weights(rule.value(state), categories) if adaptive else jnp.ones(4)
        gradient = jax.grad(lambda p: (weight * losses(p)).mean())(parameter)
        state = rule.update(group_stats(losses(parameter), categories, jnp.ones(4)), state)
        return (parameter - 0.05 * gradient, state), None

    (parameter, _), _ = jax.lax.scan(step, (jnp.float32(0.3), rule.init()), length=300)
    return float(losses(parameter).max())


def test_group_weights_lower_the_loss_of_the_worst_group():
    assert worst_loss_after_training(adaptive=True) < 1.2
    assert worst_loss_after_training(adaptive=False) > 2.0
