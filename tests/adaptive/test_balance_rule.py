"""The weight maps, the running means and the scale of B-DPO."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    BalanceConfig,
    BalanceStats,
    balance_rule,
    balance_stats,
    balance_weights,
    power_weights,
    ratio_weights,
    softmax_weights,
)
from tests.reference import adaptive as reference

RNG = np.random.default_rng(0)
CHOSEN, REJECTED = RNG.uniform(-0.2, 1.5, 64), RNG.uniform(-0.2, 1.5, 64)
MAPS = {
    "ratio": (lambda a, b: ratio_weights(a, b, floor=0.05), lambda a, b: reference.ratio_weights(a, b, 0.05)),
    "softmax": (
        lambda a, b: softmax_weights(a, b, temperature=0.3),
        lambda a, b: reference.softmax_weights(a, b, 0.3),
    ),
    "power": (
        lambda a, b: power_weights(a, b, jnp.float32(0.6), alpha=0.7, floor=0.05),
        lambda a, b: reference.power_weights(a, b, 0.6, 0.7, 0.05),
    ),
}
FOLLOWING = BalanceConfig(weights="none", scale_by_gradient_weight=True, maximum_scale=5.0, ema_rate=0.5)


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def maps(request):
    return request.param


def stats(chosen_mi=0.5, rejected_mi=0.5, gradient_weight=0.5, pairs=8) -> BalanceStats:
    one = jnp.ones(pairs)
    return balance_stats(chosen_mi * one, rejected_mi * one, gradient_weight * one, one)


def value_after(config: BalanceConfig, *batches: BalanceStats):
    rule = balance_rule(config)
    state = rule.init()
    for batch in batches:
        state = rule.update(batch, state)
    return rule.value(state)


def test_weights_equal_reference_and_sum_to_2(maps):
    weights, expected = maps
    chosen, rejected = weights(jnp.asarray(CHOSEN), jnp.asarray(REJECTED))
    np.testing.assert_allclose(chosen, expected(CHOSEN, REJECTED)[0], rtol=1e-5)
    np.testing.assert_allclose(rejected, expected(CHOSEN, REJECTED)[1], rtol=1e-5)
    np.testing.assert_allclose(chosen + rejected, 2.0, rtol=1e-6)


def test_float64_weights_equal_reference_to_1e_12(maps):
    weights, expected = maps
    with jax.enable_x64(True):
        computed = weights(jnp.asarray(CHOSEN), jnp.asarray(REJECTED))
        assert computed[0].dtype == jnp.float64
    if maps is not MAPS["power"]:  # its mean is given in float32
        np.testing.assert_allclose(computed, expected(CHOSEN, REJECTED), rtol=1e-12)


def test_higher_mutual_information_gets_the_lower_weight(maps):
    own = jnp.linspace(0.1, 2.0, 20)
    chosen, rejected = maps[0](own, jnp.full(20, 0.7))
    assert (jnp.diff(chosen) < 0).all()
    assert (jnp.diff(rejected) > 0).all()
    np.testing.assert_array_equal(chosen > 1, own < 0.7)


def test_swapping_the_branches_swaps_the_weights(maps):
    chosen, rejected = maps[0](jnp.asarray(CHOSEN), jnp.asarray(REJECTED))
    swapped = maps[0](jnp.asarray(REJECTED), jnp.asarray(CHOSEN))
    np.testing.assert_allclose(swapped, (rejected, chosen), rtol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_equal_mutual_information_gives_exactly_1(maps, transform):
    mi = jnp.asarray(CHOSEN, jnp.float32)
    np.testing.assert_array_equal(transform(maps[0])(mi, mi), np.ones((2, 64)))


def test_infinite_temperature_and_alpha_0_give_exactly_1():
    mi = jnp.asarray(CHOSEN), jnp.asarray(REJECTED)
    np.testing.assert_array_equal(softmax_weights(*mi, temperature=jnp.inf), np.ones((2, 64)))
    np.testing.assert_array_equal(power_weights(*mi, 0.5, alpha=0.0), np.ones((2, 64)))


def test_power_with_alpha_1_is_ratio_whatever_the_mean():
    mi = jnp.asarray(CHOSEN), jnp.asarray(REJECTED)
    for mean in (0.1, 1.0, 10.0):
        power = power_weights(*mi, mean, alpha=1.0, floor=0.05)
        np.testing.assert_allclose(power, ratio_weights(*mi, floor=0.05), rtol=2e-6)


def test_power_weights_are_1_before_the_mean_is_known():
    np.testing.assert_array_equal(
        power_weights(jnp.array([0.9]), jnp.array([0.1]), 0.0, alpha=1.0), [[1.0], [1.0]]
    )


def test_extreme_mutual_information_gives_finite_weights(maps):
    extreme = jnp.array([1e4, -1e4, 1e4, 0.0])
    for weight in maps[0](extreme, extreme[::-1]):
        assert np.isfinite(weight).all()
        assert ((weight >= 0) & (weight <= 2)).all()


def test_half_precision_gives_float32_weights(maps):
    assert maps[0](jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16))[0].dtype == jnp.float32


def test_no_gradient_into_mutual_information(maps):
    gradients = jax.grad(lambda a, b: maps[0](a, b)[0].sum(), argnums=(0, 1))(jnp.ones(3), 2 * jnp.ones(3))
    np.testing.assert_array_equal(gradients, np.zeros((2, 3)))


def test_mutual_information_of_two_shapes_raises(maps):
    with pytest.raises(ValueError, match=r"rejected_mi has shape \(2,\), expected \(3,\)"):
        maps[0](jnp.ones(3), jnp.ones(2))


def test_broken_mutual_information_is_not_hidden(maps):
    chosen, rejected = maps[0](jnp.array([jnp.nan]), jnp.array([0.5]))
    assert np.isnan(chosen).all()
    assert np.isnan(rejected).all()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (BalanceConfig(weights="ratio", floor=0.05), "ratio"),
        (BalanceConfig(weights="softmax", temperature=0.3), "softmax"),
        (BalanceConfig(weights="power", alpha=0.7, floor=0.05), "power"),
    ],
    ids=["ratio", "softmax", "power"],
)
def test_configured_weights_are_those_of_the_map(config, name):
    mi = jnp.asarray(CHOSEN, jnp.float32), jnp.asarray(REJECTED, jnp.float32)
    weights = balance_weights(config, value_after(config, stats()), *mi)
    np.testing.assert_array_equal(weights, MAPS[name][0](*mi))


def test_weights_none_are_exactly_1():
    config = BalanceConfig(weights="none")
    weights = balance_weights(config, value_after(config), jnp.asarray(CHOSEN), jnp.asarray(REJECTED))
    np.testing.assert_array_equal(weights, np.ones((2, 64)))


def test_weights_are_clipped_to_the_bounds():
    config = BalanceConfig(minimum_weight=0.8, maximum_weight=1.1)
    weights = balance_weights(config, value_after(config), jnp.array([0.9, 0.5]), jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(weights, [[0.8, 1.0], [1.1, 1.0]], rtol=1e-6)


def test_running_means_equal_the_exponential_average():
    config = BalanceConfig(ema_rate=0.25)
    rule = balance_rule(config)
    first = rule.update(stats(0.4, 0.8, 0.5), rule.init())
    np.testing.assert_allclose((first.chosen_mi, first.rejected_mi, first.gradient_weight), (0.4, 0.8, 0.5))
    second = rule.update(stats(0.8, 0.4, 0.1, pairs=3), first)
    np.testing.assert_allclose(
        (second.chosen_mi, second.rejected_mi, second.gradient_weight), (0.5, 0.7, 0.4), rtol=1e-6
    )
    assert second.num_seen == 11
    np.testing.assert_allclose(rule.value(second).mean_mi, 0.6, rtol=1e-6)


def test_before_anything_was_seen_scale_is_c_and_mean_is_0():
    value = value_after(dataclasses.replace(FOLLOWING, scale=1.5))
    assert value.scale == 1.5
    assert value.mean_mi == 0.0


def test_mean_of_negative_mutual_information_is_the_floor():
    np.testing.assert_allclose(
        value_after(BalanceConfig(floor=0.02), stats(-0.5, -0.3)).mean_mi, 0.02, rtol=1e-6
    )


def test_constant_scale_ignores_the_gradient_weight():
    assert value_after(BalanceConfig(scale=1.25), stats(gradient_weight=0.01)).scale == 1.25


def test_scale_is_c_over_the_mean_gradient_weight():
    config = dataclasses.replace(FOLLOWING, scale=0.5)
    np.testing.assert_allclose(value_after(config, stats(gradient_weight=0.25)).scale, 2.0)
    np.testing.assert_allclose(
        value_after(config, stats(gradient_weight=0.25), stats(gradient_weight=0.75)).scale, 1.0
    )


def test_scale_stops_at_its_maximum_without_any_gradient():
    assert value_after(FOLLOWING, stats(gradient_weight=0.0)).scale == 5.0


def test_scale_feeds_on_itself_and_is_held_by_its_maximum():
    rule = balance_rule(FOLLOWING)
    state, reward_gap = rule.init(), 1.0
    scales = []
    for _ in range(40):
        scale = rule.value(state).scale
        state = rule.update(stats(gradient_weight=jax.nn.sigmoid(-scale * reward_gap)), state)
        scales.append(float(scale))
    assert (np.diff(scales) >= 0).all()
    assert scales[-1] == FOLLOWING.maximum_scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "inverse"}, "weights='inverse' must be 'ratio', 'softmax', 'power' or 'none'"),
        ({"temperature": 0.5}, "temperature=0.5 with weights='ratio': leave it out or set weights='softmax'"),
        ({"alpha": 0.5}, "alpha=0.5 with weights='ratio': leave it out or set weights='power'"),
        ({"weights": "softmax"}, "temperature=None with weights='softmax': give it a value"),
        ({"weights": "power"}, "alpha=None with weights='power': give it a value"),
        ({"weights": "softmax", "temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"weights": "power", "alpha": -1.0}, "alpha=-1.0 must be finite and not negative"),
        ({"floor": 0.0}, "floor=0.0 must be positive"),
        ({"floor": 0.1, "weights": "none"}, "floor=0.1 has no effect with weights='none'; leave it out"),
        (
            {"floor": 0.1, "weights": "softmax", "temperature": 1.0},
            "floor=0.1 has no effect with weights='softmax'",
        ),
        ({"scale": float("nan")}, "scale=nan must be positive"),
        ({"ema_rate": 0.0}, "ema_rate=0.0 must be above 0"),
        ({"minimum_weight": 1.5}, "minimum_weight=1.5 and maximum_weight=2.0 must enclose 1"),
        ({"maximum_weight": 0.5}, "must enclose 1"),
        ({"weights": "none", "minimum_weight": 0.5}, "have no effect with weights='none'"),
        ({"scale_by_gradient_weight": True}, "maximum_scale=None with scale_by_gradient_weight=True"),
        ({"maximum_scale": 5.0}, "maximum_scale=5.0 has no effect on a constant scale"),
        (
            {"scale_by_gradient_weight": True, "scale": 2.0, "maximum_scale": 1.0},
            "maximum_scale=1.0 must be finite and at least scale=2.0",
        ),
    ],
)
def test_contradicting_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        BalanceConfig(**options)


def test_config_is_hashable():
    assert len({BalanceConfig(), BalanceConfig(), FOLLOWING}) == 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda mi: ratio_weights(mi, -mi, floor=0.0), "floor=0.0 must be positive"),
        (lambda mi: ratio_weights(mi, -mi, floor=-1.0), "floor=-1.0 must be positive"),
        (lambda mi: softmax_weights(mi, -mi, temperature=0), "temperature=0.0 must be positive"),
        (
            lambda mi: softmax_weights(mi, -mi, temperature=np.float32(-1)),
            "temperature=-1.0 must be positive",
        ),
        (lambda mi: power_weights(mi, -mi, 1.0, alpha=1.0, floor=float("nan")), "floor=nan must be positive"),
        (lambda mi: power_weights(mi, -mi, 1.0, alpha=-0.5), "alpha=-0.5 must be not negative"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_known_constants_that_invert_or_break_weights_raise(weights, message, transform):
    with pytest.raises(ValueError, match=message):
        transform(weights)(jnp.ones(2))


def test_traced_constants_of_the_weights_pass():
    mi = jnp.array([0.75]), jnp.array([0.25])
    traced = jax.jit(lambda floor: ratio_weights(*mi, floor=floor))(0.01)
    np.testing.assert_array_equal(traced, ratio_weights(*mi, floor=0.01))
