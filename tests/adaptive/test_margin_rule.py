"""The margin rule: its values, its bounds, and how margins behave over many steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.adaptive import (
    AdaptiveRule,
    CategoryStats,
    MarginConfig,
    MarginState,
    category_stats,
    implicit_violation,
    margin_rule,
    pair_margins,
)
from tests.reference import adaptive as reference

K = 4
CONFIG = MarginConfig(
    num_categories=K, initial=1.0, minimum=0.5, maximum=3.0, step_size=0.4, ema_rate=0.25, target_rate=0.25
)
PER_CATEGORY = (0.0, 0.25, 0.5, 1.0)


def stats(violations, pairs) -> CategoryStats:
    return CategoryStats(jnp.asarray(violations, jnp.float32), jnp.asarray(pairs, jnp.float32))


def run(config: MarginConfig, rates: list, num_steps: int) -> np.ndarray:
    """`[num_steps + 1, K]` margins while the violation rates are held; rate None: category absent."""
    rule = margin_rule(config)
    pairs = np.array([0.0 if rate is None else 100.0 for rate in rates])
    violations = np.array([0.0 if rate is None else 100.0 * rate for rate in rates])
    update, state = jax.jit(rule.update), rule.init()
    margins = [rule.value(state)]
    for _ in range(num_steps):
        state = update(stats(violations, pairs), state)
        margins.append(rule.value(state))
    return np.stack(margins)


@pytest.mark.parametrize("target", [0.25, PER_CATEGORY], ids=["one_target", "target_per_category"])
@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_trajectory_equals_reference(update, target):
    config = dataclasses.replace(CONFIG, update=update, target_rate=target)
    rule = margin_rule(config)
    state, rng = rule.init(), np.random.default_rng(0)
    expected = np.full(K, 1.0), np.zeros(K), np.zeros(K)
    for _ in range(30):
        pairs = rng.integers(0, 4, K) * rng.integers(0, 2, K)
        violations = rng.binomial(pairs, 0.5)
        state = rule.update(stats(violations, pairs), state)
        expected = reference.margin_step(
            *expected, violations, pairs, step_size=0.4, ema_rate=0.25, target=target, low=0.5, high=3.0, update=update
        )  # fmt: skip
        for actual, wanted in zip(jax.tree.leaves(state), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_unseen_category_keeps_margin(transform):
    rule = margin_rule(CONFIG)
    state = MarginState(
        margin=jnp.array(
            [0.7, 1 / 3, 2.9, 0.1]
        ),  # 0.1 lies outside the bounds: not even clipping may touch it
        violation_rate=jnp.array([0.1, 2 / 3, 0.9, 0.0]),
        num_seen=jnp.array([3, 0, 2**24 + 1, 5]),
    )
    updated = transform(rule.update)(stats([0, 3, 0, 0], [0, 4, 0, 0]), state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(updated), strict=True):
        np.testing.assert_array_equal(np.asarray(after)[[0, 2, 3]], np.asarray(before)[[0, 2, 3]])
        assert after[1] != before[1]


def test_first_sighting_takes_the_rate_itself():
    rule = margin_rule(CONFIG)
    once = rule.update(stats([1, 0, 0, 0], [2, 0, 0, 0]), rule.init())
    np.testing.assert_array_equal(once.violation_rate, [0.5, 0, 0, 0])
    twice = rule.update(stats([2, 0, 3, 0], [2, 0, 4, 0]), once)
    np.testing.assert_allclose(twice.violation_rate, [0.625, 0, 0.75, 0])
    np.testing.assert_array_equal(twice.num_seen, [4, 0, 4, 0])


def test_counting_goes_on_beyond_two_to_the_24():
    rule = margin_rule(CONFIG)
    state = dataclasses.replace(rule.init(), num_seen=jnp.full(K, 2**24))
    np.testing.assert_array_equal(rule.update(stats([0] * K, [1] * K), state).num_seen, [2**24 + 1] * K)


@functools.cache
def jitted_rule(update: str) -> AdaptiveRule:
    config = dataclasses.replace(CONFIG, step_size=3.0, update=update, normalize_mean=1.5)
    return AdaptiveRule(*map(jax.jit, margin_rule(config)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=K, max_size=K), st.booleans())
def test_margins_stay_inside_the_bounds_and_rates_inside_0_1(counts, multiplicative):
    init, value, update = jitted_rule("multiplicative" if multiplicative else "additive")
    state = init()
    for _ in range(3):
        state = update(stats([min(v, n) for v, n in counts], [n for _, n in counts]), state)
        for margins in (state.margin, value(state)):
            assert (margins >= CONFIG.minimum).all()
            assert (margins <= CONFIG.maximum).all()
        assert ((state.violation_rate >= 0) & (state.violation_rate <= 1)).all()


@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_more_violations_never_give_a_smaller_margin(update):
    rule = margin_rule(dataclasses.replace(CONFIG, update=update))
    state = rule.update(stats([1, 0, 2, 0], [3, 1, 3, 0]), rule.init())
    margins = np.stack([rule.update(stats([n] * K, [8] * K), state).margin for n in range(9)])
    assert (np.diff(margins, axis=0) >= 0).all()
    assert (margins[-1] > margins[0]).all()


@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_held_above_target_reaches_maximum_held_below_reaches_minimum(update):
    config = dataclasses.replace(CONFIG, update=update)
    margins = run(config, [0.75, 0.05, 0.25, None], num_steps=60)
    assert (np.diff(margins[:, 0]) >= 0).all()
    assert (np.diff(margins[:, 1]) <= 0).all()
    np.testing.assert_array_equal(margins[-1], [config.maximum, config.minimum, 1.0, 1.0])


def test_categories_of_different_difficulty_separate():
    margins = run(CONFIG, [0.9, 0.6, 0.3, 0.1], num_steps=3)
    assert (np.diff(margins[1:], axis=1) < 0).all()


def test_margin_relaxes_once_the_model_caught_up():
    rule = margin_rule(CONFIG)
    state = rule.init()
    margins = []
    for step in range(80):
        rate = 1.0 if step < 20 else 0.0
        state = rule.update(stats([8 * rate] * K, [8] * K), state)
        margins.append(float(state.margin[0]))
    assert margins[19] == CONFIG.maximum
    assert margins[-1] == CONFIG.minimum


def learn(threshold_is_margin: bool) -> np.ndarray:
    """Margins while the reward gaps of four pairs grow by their gradient weight s(m - gap), as in training."""
    config = MarginConfig(
        num_categories=1, initial=1.0, minimum=0.0, maximum=8.0, step_size=0.4, ema_rate=0.5, target_rate=0.1
    )
    rule = margin_rule(config)
    update, state, gap = jax.jit(rule.update), rule.init(), jnp.array([-1.0, -0.5, 0.0, 0.5])
    categories, weight = jnp.ones((4, 1)), jnp.ones(4)
    margins = []
    for _ in range(200):
        margin = pair_margins(rule.value(state), categories)
        threshold = margin if threshold_is_margin else 0.0
        violation = implicit_violation(gap, threshold=threshold)
        state = update(category_stats(violation, categories, weight), state)
        gap = gap + 0.1 * jax.nn.sigmoid(margin - gap)
        margins.append(float(state.margin[0]))
    return np.array(margins)


def test_margin_as_threshold_runs_away_where_a_fixed_threshold_settles():
    fixed, self_feeding = learn(threshold_is_margin=False), learn(threshold_is_margin=True)
    assert fixed.max() < 8.0
    assert fixed[-1] == 0.0  # every gap is positive: nothing is violated any more
    assert self_feeding.max() == 8.0
    assert np.argmax(self_feeding == 8.0) < 50


def test_normalized_margins_have_the_mean_and_equal_the_reference():
    rng = np.random.default_rng(0)
    for mean in (0.5, 0.8, 1.5, 2.9, 3.0):
        rule = margin_rule(dataclasses.replace(CONFIG, normalize_mean=mean))
        margin = rng.uniform(0.5, 3.0, K)
        value = rule.value(dataclasses.replace(rule.init(), margin=jnp.asarray(margin, jnp.float32)))
        np.testing.assert_allclose(value.mean(), mean, rtol=1e-6)
        np.testing.assert_allclose(value, reference.projected_mean(margin, mean, 0.5, 3.0), atol=2e-6)


def test_normalizing_keeps_the_spread_where_no_bound_binds():
    rule = margin_rule(dataclasses.replace(CONFIG, normalize_mean=1.5))
    margin = jnp.array([1.0, 1.25, 1.5, 0.75])
    value = rule.value(dataclasses.replace(rule.init(), margin=margin))
    np.testing.assert_allclose(jnp.diff(value), jnp.diff(margin), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 2.0])
def test_equal_margins_are_all_normalized_to_the_mean(level):
    config = dataclasses.replace(CONFIG, minimum=0.0, maximum=2.0, normalize_mean=0.75)
    rule = margin_rule(config)
    value = rule.value(dataclasses.replace(rule.init(), margin=jnp.full(K, level)))
    np.testing.assert_allclose(value, [0.75] * K, rtol=1e-6)


def test_normalizing_leaves_the_state_of_an_absent_category_alone():
    rule = margin_rule(dataclasses.replace(CONFIG, normalize_mean=1.5))
    state = rule.update(stats([3, 0, 0, 0], [3, 0, 0, 0]), rule.init())
    np.testing.assert_array_equal(state.margin[1:], rule.init().margin[1:])


def test_statistics_of_another_number_of_categories_raise():
    rule = margin_rule(CONFIG)
    with pytest.raises(
        ValueError, match=r"stats.violations has shape \(3,\), expected \(4,\), num_categories"
    ):
        rule.update(stats([0] * 3, [0] * 3), rule.init())
    with pytest.raises(ValueError, match=r"stats.pairs has shape \(3,\), expected \(4,\)"):
        rule.update(stats([0] * 4, [0] * 3), rule.init())


def test_config_is_hashable_also_with_a_list_of_targets():
    per_category = dataclasses.replace(CONFIG, target_rate=list(PER_CATEGORY))
    assert per_category.target_rate == PER_CATEGORY
    assert len({CONFIG, dataclasses.replace(CONFIG), per_category}) == 2


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_config_takes_numbers_of_numpy_and_jax(array):
    options = {"target_rate": array(0.25), "initial": array(1.0), "normalize_mean": array(1.5)}
    assert dataclasses.replace(CONFIG, **options) == dataclasses.replace(CONFIG, normalize_mean=1.5)
    per_category = dataclasses.replace(CONFIG, target_rate=array(PER_CATEGORY))
    assert per_category.target_rate == PER_CATEGORY
    assert hash(per_category) == hash(dataclasses.replace(CONFIG, target_rate=PER_CATEGORY))
    scalars = [array(rate) for rate in PER_CATEGORY]
    assert dataclasses.replace(CONFIG, target_rate=scalars) == per_category


def test_broken_statistics_leave_their_category_bit_identical():
    rule = margin_rule(CONFIG)
    before = rule.update(stats([1, 1, 1, 1], [2, 2, 2, 2]), rule.init())
    after = rule.update(stats([np.nan, np.inf, 1, 2], [2, 2, np.nan, 2]), before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(new)[:3], np.asarray(old)[:3])
        assert new[3] > old[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_rate": "0.1"}, "target_rate='0.1' must be one number for all categories or one per category"),
        ({"target_rate": np.full((2, 4), 0.1)}, "target_rate=.* must be a number"),
        ({"target_rate": (0.1, "x", 0.1, 0.1)}, "target_rate='x' must be a number"),
        ({"step_size": jnp.ones(2)}, "step_size=.* must be a number"),
        ({"num_categories": 0}, "num_categories=0 must be at least 1"),
        (
            {"minimum": 1.0, "maximum": 1.0},
            "minimum=1.0 equals maximum: no update can move that margin; widen the bounds, or use the loss safe_dpo",
        ),
        ({"initial": 4.0}, "initial=4.0 is not between minimum=0.5 and maximum=3.0"),
        ({"maximum": float("inf")}, "both finite"),
        ({"initial": float("nan")}, "initial=nan is not between"),
        ({"step_size": 0.0}, "step_size=0.0 must be positive"),
        ({"ema_rate": 0.0}, "ema_rate=0.0 must be above 0 and at most 1"),
        ({"ema_rate": 1.5}, "ema_rate=1.5 must be above 0 and at most 1"),
        ({"target_rate": 1.5}, "target_rate=1.5 must lie between 0 and 1"),
        ({"target_rate": (0.1, 0.2)}, "target_rate has 2 values, expected one number for all or num_categories=4"),
        ({"target_rate": (0.1, 0.2, 0.3, -1.0)}, "must lie between 0 and 1"),
        ({"update": "dual"}, "update='dual' must be 'additive' or 'multiplicative'"),
        ({"update": "multiplicative", "minimum": 0.0}, "minimum=0.0 must be positive for update='multiplicative'"),
        ({"normalize_mean": 5.0}, "normalize_mean=5.0 is not between minimum=0.5 and maximum=3.0"),
    ],
)  # fmt: skip
def test_contradicting_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)
