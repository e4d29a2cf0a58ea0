"""Exact relations between the losses: turning a part off gives the simpler loss bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import adaptive
from jaxalign.losses import b_dpo_loss, cat_b_dpo_loss, cat_dpo_loss, dpo_loss, log_ratios, safe_dpo_loss

B = 16  # the size of the laws: a new shape compiles every operation anew
RNG = np.random.default_rng(0)
PAIR_LOGPS = [jnp.asarray(RNG.normal(-40.0, 15.0, B), jnp.float32) for _ in range(4)]
FLAGS = [jnp.asarray(RNG.integers(0, 2, B)) for _ in range(2)]
MARGIN, CHOSEN_WEIGHT, REJECTED_WEIGHT = (
    jnp.asarray(RNG.uniform(0.0, 2.0, B), jnp.float32) for _ in range(3)
)
ONES, ZEROS = jnp.ones(B), jnp.zeros(B)


@pytest.fixture(params=[lambda f: f, jax.jit], ids=["eager", "jit"])
def transform(request):
    return request.param


def assert_same(transform, left, right):
    value, gradient = transform(jax.vmap(jax.value_and_grad(left)))(*PAIR_LOGPS)
    expected, expected_gradient = transform(jax.vmap(jax.value_and_grad(right)))(*PAIR_LOGPS)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, expected_gradient)
    np.testing.assert_array_equal(
        transform(lambda *x: left(*x))(*PAIR_LOGPS), transform(lambda *x: right(*x))(*PAIR_LOGPS)
    )


def plain(*logps):
    return dpo_loss(*logps, beta=0.1)


def test_margin_zero_is_dpo(transform):
    def cat(*logps):
        zero = jnp.zeros_like(logps[0])
        return cat_dpo_loss(*logps, zero, zero + 1, zero, beta=0.1)

    assert_same(transform, cat, plain)


def test_weights_one_and_scale_one_is_dpo(transform):
    def balanced(*logps):
        one = jnp.ones_like(logps[0])
        return b_dpo_loss(*logps, one, one, beta=0.1, scale=1.0)

    assert_same(transform, balanced, plain)


@pytest.mark.parametrize(
    "config",
    [
        adaptive.BalanceConfig(weights="ratio"),
        adaptive.BalanceConfig(weights="softmax", temperature=0.3),
        adaptive.BalanceConfig(weights="power", alpha=0.7),
        adaptive.BalanceConfig(weights="none"),
    ],
    ids=lambda config: config.weights,
)
def test_equal_mutual_information_is_dpo(transform, config):
    mi = jnp.asarray(np.random.default_rng(1).normal(0.5, 0.5, B), jnp.float32)
    rule = adaptive.balance_rule(config)
    state = rule.update(adaptive.balance_stats(mi, mi, ONES / 2, ONES), rule.init())

    def balanced(*logps):
        weights = adaptive.balance_weights(config, rule.value(state), mi, mi)
        return b_dpo_loss(*logps, *weights, beta=0.1, scale=rule.value(state).scale)

    np.testing.assert_array_equal(transform(balanced)(*PAIR_LOGPS), transform(plain)(*PAIR_LOGPS))


def test_pair_without_category_is_dpo(transform):
    categories = jnp.zeros((B, 3), jnp.int32).at[::2, 1].set(1)
    margin = adaptive.pair_margins(jnp.array([1.0, 2.0, 3.0]), categories)

    def cat(*logps):
        return cat_dpo_loss(*logps, ZEROS, ONES, margin, beta=0.1)

    loss, expected = transform(cat)(*PAIR_LOGPS), transform(plain)(*PAIR_LOGPS)
    np.testing.assert_array_equal(loss[1::2], expected[1::2])
    assert (loss[::2] > expected[::2]).all()


def test_one_constant_margin_is_safe_dpo():
    safe = safe_dpo_loss(*PAIR_LOGPS, *FLAGS, beta=0.1, delta=2.5)
    np.testing.assert_array_equal(cat_dpo_loss(*PAIR_LOGPS, *FLAGS, 2.5 * ONES, beta=0.1), safe)


def test_combination_without_weights_is_cat_dpo():
    combined = cat_b_dpo_loss(*PAIR_LOGPS, *FLAGS, MARGIN, ONES, ONES, beta=0.1)
    np.testing.assert_array_equal(combined, cat_dpo_loss(*PAIR_LOGPS, *FLAGS, MARGIN, beta=0.1))


def test_combination_without_margin_is_b_dpo():
    weights = CHOSEN_WEIGHT, REJECTED_WEIGHT
    combined = cat_b_dpo_loss(*PAIR_LOGPS, *FLAGS, ZEROS, *weights, beta=0.1, scale=1.5)
    np.testing.assert_array_equal(combined, b_dpo_loss(*PAIR_LOGPS, *weights, beta=0.1, scale=1.5))


def test_margin_counts_only_where_one_response_is_unsafe():
    flags = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
    logps = [x[:4] for x in PAIR_LOGPS]
    loss = cat_dpo_loss(*logps, *flags, jnp.ones(4), beta=0.1)
    expected = dpo_loss(*logps, beta=0.1)
    np.testing.assert_array_equal(np.sign(loss - expected), [0, 1, -1, 0])


def test_scale_may_be_one_per_pair():
    weights = CHOSEN_WEIGHT, REJECTED_WEIGHT
    per_pair = b_dpo_loss(*PAIR_LOGPS, *weights, beta=0.1, scale=1.5 * ONES)
    np.testing.assert_array_equal(per_pair, b_dpo_loss(*PAIR_LOGPS, *weights, beta=0.1, scale=1.5))


def test_unchanged_policy_costs_ln_2():
    loss = dpo_loss(PAIR_LOGPS[0], PAIR_LOGPS[1], PAIR_LOGPS[0], PAIR_LOGPS[1], beta=0.1)
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)


def test_log_ratios_subtract_the_reference_of_the_same_branch():
    chosen, rejected = log_ratios(*PAIR_LOGPS)
    np.testing.assert_array_equal(chosen, PAIR_LOGPS[0] - PAIR_LOGPS[2])
    np.testing.assert_array_equal(rejected, PAIR_LOGPS[1] - PAIR_LOGPS[3])
