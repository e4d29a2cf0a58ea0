"""What margins are for: how they behave over many steps, with held violation rates and with policies that learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    CategoryStats,
    MarginConfig,
    category_stats,
    implicit_violation,
    margin_rule,
    pair_margins,
    ratio_weights,
    restart_rates,
)
from jaxalign.losses import cat_b_dpo_loss, cat_dpo_loss

CONFIG = MarginConfig(
    num_categories=4, initial=1.0, minimum=0.5, maximum=3.0, step_size=0.4, ema_rate=0.25, target_rate=0.25
)


def held(config: MarginConfig, rates: list, num_steps: int) -> np.ndarray:
    """`[num_steps + 1, K]` margins while the violation rates are held; rate None: category absent."""
    rule = margin_rule(config)
    pairs = jnp.array([0.0 if rate is None else 100.0 for rate in rates])
    violations = jnp.array([0.0 if rate is None else 100.0 * rate for rate in rates])
    update, state = jax.jit(rule.update), rule.init()
    margins = [rule.value(state)]
    for _ in range(num_steps):
        state = update(CategoryStats(violations, pairs), state)
        margins.append(rule.value(state))
    return np.stack(margins)


@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_category_held_above_its_target_reaches_maximum_monotonically(update):
    margins = held(dataclasses.replace(CONFIG, update=update), [0.75, 0.3, 1.0, 0.5], num_steps=130)
    assert (np.diff(margins, axis=0) >= 0).all()
    assert (margins[1] > margins[0]).all()
    np.testing.assert_array_equal(margins[-1], [CONFIG.maximum] * 4)


@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_category_held_below_its_target_reaches_minimum_monotonically(update):
    margins = held(dataclasses.replace(CONFIG, update=update), [0.05, 0.2, 0.0, 0.1], num_steps=130)
    assert (np.diff(margins, axis=0) <= 0).all()
    assert (margins[1] < margins[0]).all()
    np.testing.assert_array_equal(margins[-1], [CONFIG.minimum] * 4)


def test_restarted_rates_are_those_of_the_better_statistics_and_steer_what_follows():
    rule = margin_rule(CONFIG)
    four = jnp.full(4, 100.0)
    drifted = rule.update(CategoryStats(90 * jnp.ones(4), four), rule.init())
    answers = CategoryStats(jnp.array([0.0, 5.0, jnp.nan, 50.0]), jnp.array([0.0, 100.0, 100.0, jnp.inf]))
    corrected = restart_rates(answers, drifted)
    # Only the second category has finite sums with pairs; rates alone change.
    np.testing.assert_array_equal(corrected.violation_rate, np.float32([0.9, 0.05, 0.9, 0.9]))
    np.testing.assert_array_equal(corrected.margin, drifted.margin)
    np.testing.assert_array_equal(corrected.num_seen, drifted.num_seen)
    after = rule.update(answers, corrected)
    np.testing.assert_allclose(after.violation_rate[1], 0.05, rtol=1e-6)
    np.testing.assert_allclose(after.margin[1], drifted.margin[1] + 0.4 * (0.05 - 0.25), rtol=1e-6)
    # Without the restart the drifted rate would still raise the margin.
    assert rule.update(answers, drifted).margin[1] > drifted.margin[1]


def test_restarted_rates_refuse_statistics_of_other_categories():
    with pytest.raises(ValueError, match=r"\[3\]|\(3,\)"):
        restart_rates(CategoryStats(jnp.zeros(3), jnp.zeros(3)), margin_rule(CONFIG).init())


@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_category_at_its_target_or_absent_keeps_its_margin(update):
    margins = held(dataclasses.replace(CONFIG, update=update), [0.25, None, 0.25, None], num_steps=20)
    np.testing.assert_array_equal(margins, np.ones((21, 4)))


def test_categories_of_different_violation_rates_separate_in_their_order():
    margins = held(CONFIG, [0.9, 0.6, 0.3, 0.1], num_steps=3)
    assert (np.diff(margins[1:], axis=1) < 0).all()


def test_margin_tightens_while_unsafe_and_relaxes_once_the_model_caught_up():
    rule = margin_rule(CONFIG)
    state, update, margins = rule.init(), jax.jit(rule.update), []
    for step in range(80):
        unsafe = jnp.full(4, 8.0 if step < 20 else 0.0)
        state = update(CategoryStats(unsafe, jnp.full(4, 8.0)), state)
        margins.append(float(state.margin[0]))
    assert margins[19] == CONFIG.maximum
    assert margins[-1] == CONFIG.minimum


EASY, HARD = 0, 1
PAIRS = jnp.tile(jnp.linspace(-1.0, 1.0, 16), 2)  # how far each pair lies from the skill in its category
CATEGORIES = jnp.repeat(jnp.eye(2), 16, axis=0)


def policy_of_two_categories(step_size: float, num_steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """`[num_steps, 2]` margins and violation rates of a small policy: one skill per category.

    A pair's gap grows with its gradient weight s(m - gap), while what else is learnt drags on it, four times
    harder in the hard category.
    """
    config = MarginConfig(
        num_categories=2,
        initial=0.0,
        minimum=0.0,
        maximum=4.0,
        step_size=step_size,
        ema_rate=0.5,
        target_rate=0.1,
    )
    rule, drag = margin_rule(config), jnp.array([0.1, 0.45])

    def step(carry, _):
        skill, state = carry
        gap = CATEGORIES @ skill + PAIRS
        margin = rule.value(state)
        stats = category_stats(implicit_violation(gap, threshold=0.0), CATEGORIES, jnp.ones(32))
        pull = jax.nn.sigmoid(pair_margins(margin, CATEGORIES) - gap)
        skill = skill + 0.2 * (CATEGORIES.T @ pull / 16 - drag)
        return (skill, rule.update(stats, state)), (margin, stats.violations / stats.pairs)

    _, (margins, rates) = jax.lax.scan(step, (jnp.zeros(2), rule.init()), length=num_steps)
    return np.asarray(margins), np.asarray(rates)


def test_easy_and_hard_category_separate_and_both_become_safe():
    margins, rates = policy_of_two_categories(step_size=0.1)
    settled = margins[-50:].mean(axis=0)
    assert settled[HARD] > settled[EASY] + 0.4
    assert (margins[:, HARD] >= margins[:, EASY]).all()
    assert (rates[-50:].mean(axis=0) <= 0.15).all()


def test_without_margins_the_hard_category_stays_unsafe():
    _, rates = policy_of_two_categories(step_size=1e-9)
    assert rates[-50:, EASY].mean() <= 0.15
    assert rates[-50:, HARD].mean() > 0.3


def learn(threshold_is_margin: bool) -> np.ndarray:
    """Margins while the reward gaps of four pairs grow by their gradient weight s(m - gap), as in training."""
    config = MarginConfig(
        num_categories=1, initial=1.0, minimum=0.0, maximum=8.0, step_size=0.4, ema_rate=0.5, target_rate=0.1
    )
    rule = margin_rule(config)
    categories, weight = jnp.ones((4, 1)), jnp.ones(4)

    def step(carry, _):
        gap, state = carry
        margin = pair_margins(rule.value(state), categories)
        violation = implicit_violation(gap, threshold=margin if threshold_is_margin else 0.0)
        state = rule.update(category_stats(violation, categories, weight), state)
        return (gap + 0.1 * jax.nn.sigmoid(margin - gap), state), state.margin[0]

    start = jnp.array([-1.0, -0.5, 0.0, 0.5]), rule.init()
    return np.asarray(jax.lax.scan(step, start, length=200)[1])


def test_margin_as_threshold_runs_away_where_a_fixed_threshold_settles():
    fixed, self_feeding = learn(threshold_is_margin=False), learn(threshold_is_margin=True)
    assert fixed.max() < 8.0
    assert fixed[-1] == 0.0  # every gap is positive: nothing is violated any more
    assert self_feeding.max() == 8.0
    assert np.argmax(self_feeding == 8.0) < 50


def step_of_both_losses(logps, mi, state, weights_on: bool):
    """Loss, its gradient, violations and new margins: Cat-DPO, or with weights of mutual information cat_b_dpo."""
    rule, beta = margin_rule(CONFIG), 0.1
    categories = jnp.asarray(np.random.default_rng(1).integers(0, 2, (12, 4)), jnp.float32)
    unsafe = jnp.zeros(12), jnp.ones(12)
    margin = pair_margins(rule.value(state), categories)
    gap = beta * ((logps[0] - logps[2]) - (logps[1] - logps[3]))  # plain, whatever the weights

    def loss(chosen):
        if weights_on:
            weights = ratio_weights(*mi, floor=0.01)
            return cat_b_dpo_loss(chosen, *logps[1:], *unsafe, margin, *weights, beta=beta, scale=1.5).sum()
        return cat_dpo_loss(chosen, *logps[1:], *unsafe, margin, beta=beta).sum()

    violation = implicit_violation(gap, threshold=0.0, temperature=0.5)
    state = rule.update(category_stats(violation, categories, jnp.ones(12)), state)
    return jax.value_and_grad(loss)(logps[0]), violation, state


def test_weights_of_mutual_information_leave_violations_and_margins_bit_identical():
    rng = np.random.default_rng(0)
    logps = [jnp.asarray(rng.normal(-40, 10, 12), jnp.float32) for _ in range(4)]
    mi = [jnp.asarray(rng.uniform(0.1, 1.0, 12), jnp.float32) for _ in range(2)]
    state = margin_rule(CONFIG).init()
    step = jax.jit(step_of_both_losses, static_argnums=3)
    off, on = step(logps, mi, state, False), step(logps, mi, state, True)
    assert (off[0][0] != on[0][0]).all()
    assert (off[0][1] != on[0][1]).all()
    np.testing.assert_array_equal(off[1], on[1])
    jax.tree.map(np.testing.assert_array_equal, off[2], on[2])
    assert (on[2].margin != state.margin).any()
