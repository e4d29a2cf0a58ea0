"""The reference points of KTO and BCO, and several rules as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    KlConfig,
    RewardShiftConfig,
    composite_rule,
    kl_rule,
    mean_stats,
    reward_shift_rule,
)
from tests.adaptive.cases import CASES, K, assert_identical, random_batch, seen_state


def mean_after(rule, *batches: list):
    state = rule.init()
    for batch in batches:
        state = rule.update(mean_stats(jnp.array(batch), jnp.ones(len(batch))), state)
    return state


@pytest.mark.parametrize("rule", [kl_rule(KlConfig(0.25)), reward_shift_rule(RewardShiftConfig(0.25))])
def test_first_sighting_takes_the_mean_itself_and_later_ones_average(rule):
    np.testing.assert_allclose(mean_after(rule, [1.0, 3.0]).mean, 2.0)
    state = mean_after(rule, [1.0, 3.0], [6.0])
    np.testing.assert_allclose(state.mean, 3.0)
    assert state.num_seen == 3


def test_rate_1_keeps_the_newest_mean_alone():
    assert mean_after(kl_rule(KlConfig(1.0)), [100.0], [0.5, 1.0]).mean == 0.75


def test_value_read_before_the_update_is_that_of_the_previous_batch_and_0_at_first():
    rule = kl_rule(KlConfig(1.0))
    state, before, after = rule.init(), [], []
    for batch in ([1.0, 3.0], [0.5, 1.0], [4.0, 4.0]):
        before.append(float(rule.value(state)))
        state = rule.update(mean_stats(jnp.array(batch), jnp.ones(2)), state)
        after.append(float(rule.value(state)))
    assert before == [0.0, 2.0, 0.75]
    assert after == [2.0, 0.75, 4.0]  # what KTO's own batch gives: update, then read


def test_divergence_is_never_negative_while_the_running_mean_may_be():
    rule = kl_rule(KlConfig(0.5))
    state = mean_after(rule, [1.0], [-4.0])
    assert state.mean == -1.5
    assert rule.value(state) == 0.0
    assert rule.value(mean_after(rule, [1.0])) == 1.0


def test_reward_shift_may_be_negative():
    rule = reward_shift_rule(RewardShiftConfig(0.5))
    assert rule.value(mean_after(rule, [-2.0, -4.0])) == -3.0


def test_values_and_weights_of_two_shapes_raise():
    with pytest.raises(ValueError, match=r"weight has shape \(2,\), expected \(3,\)"):
        mean_stats(jnp.ones(3), jnp.ones(2))


def test_composite_is_its_rules_side_by_side():
    parts = {name: CASES[name] for name in ("margin_additive", "group_dro", "kl")}
    rule = composite_rule(**{name: case.make(K) for name, case in parts.items()})
    stats = {name: case.stats(random_batch(7)) for name, case in parts.items()}
    state = {name: seen_state(case) for name, case in parts.items()}
    updated = rule.update(stats, state)
    assert_identical(updated, {name: case.step(random_batch(7), state[name]) for name, case in parts.items()})
    assert_identical(rule.value(updated), {n: case.rule.value(updated[n]) for n, case in parts.items()})


def test_composite_of_nothing_carries_nothing():
    rule = composite_rule()
    assert rule.update({}, rule.init()) == rule.value(rule.init()) == {}
    assert jax.tree.leaves(rule.init()) == []


def test_composite_refuses_other_names():
    rule = composite_rule(kl=kl_rule(KlConfig(1.0)))
    stats = mean_stats(jnp.ones(1), jnp.ones(1))
    with pytest.raises(
        ValueError, match=r"stats has the names \['k1'\], expected those of the rules, \['kl'\]"
    ):
        rule.update({"k1": stats}, rule.init())
    with pytest.raises(ValueError, match=r"stats has the names \['kl', 'shift'\], expected"):
        rule.update({"kl": stats, "shift": stats}, rule.init())
    with pytest.raises(ValueError, match=r"state has the names \[\], expected"):
        rule.value({})
    with pytest.raises(ValueError, match=r"state has the names \[\], expected"):
        rule.update({"kl": stats}, {})
