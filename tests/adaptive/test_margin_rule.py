"""The margin rule: its values, its options, its bounds. Many steps: test_margin_behaviour.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    CategoryStats,
    MarginConfig,
    MarginState,
    margin_rule,
)
from tests.reference import adaptive as reference

K = 4
CONFIG = MarginConfig(
    num_categories=K, initial=1.0, minimum=0.5, maximum=3.0, step_size=0.4, ema_rate=0.25, target_rate=0.25
)
PER_CATEGORY = (0.0, 0.25, 0.5, 1.0)


def stats(violations, pairs) -> CategoryStats:
    return CategoryStats(jnp.asarray(violations, jnp.float32), jnp.asarray(pairs, jnp.float32))


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


@pytest.mark.parametrize("update", ["additive", "multiplicative"])
def test_more_violations_never_give_a_smaller_margin(update):
    rule = margin_rule(dataclasses.replace(CONFIG, update=update))
    state = rule.update(stats([1, 0, 2, 0], [3, 1, 3, 0]), rule.init())
    margins = np.stack([rule.update(stats([n] * K, [8] * K), state).margin for n in range(9)])
    assert (np.diff(margins, axis=0) >= 0).all()
    assert (margins[-1] > margins[0]).all()


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


def test_broken_statistics_leave_their_category_bit_identical():
    rule = margin_rule(CONFIG)
    before = rule.update(stats([1, 1, 1, 1], [2, 2, 2, 2]), rule.init())
    after = rule.update(stats([np.nan, np.inf, 1, 2], [2, 2, np.nan, 2]), before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(np.asarray(new)[:3], np.asarray(old)[:3])
        assert new[3] > old[3]


def test_margins_wait_for_the_warmup_and_rates_do_not():
    rule = margin_rule(dataclasses.replace(CONFIG, warmup_pairs=8.0))
    stats = CategoryStats(violations=jnp.full(4, 1.0), pairs=jnp.full(4, 1.0))
    first = rule.update(stats, rule.init())
    second = rule.update(stats, first)
    third = rule.update(stats, second)
    assert (first.margin == CONFIG.initial).all()
    assert (second.margin == CONFIG.initial).all()  # four pairs were seen before it, eight after
    assert (third.margin > CONFIG.initial).all()
    assert (first.violation_rate == 1.0).all()


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
        ({"warmup_pairs": -1.0}, "warmup_pairs=-1.0 must be finite and not negative"),
        ({"warmup_pairs": float("inf")}, "warmup_pairs=inf must be finite"),
        ({"normalize_mean": 5.0}, "normalize_mean=5.0 is not between minimum=0.5 and maximum=3.0"),
    ],
)  # fmt: skip
def test_contradicting_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **options)
