"""Numbers of a configuration: plain, of numpy or jax, or traced, so that many settings run at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    BalanceConfig,
    BetaDpoConfig,
    GroupDroConfig,
    KlConfig,
    MarginConfig,
    RewardShiftConfig,
    balance_rule,
    balance_weights,
    beta_dpo_rule,
    beta_dpo_selection,
    group_dro_rule,
    implicit_violation,
    kl_rule,
    margin_rule,
)
from tests.adaptive.cases import CASES, assert_close, random_batch, unstack

K = 5
MARGIN = {
    "initial": 1.0,
    "minimum": 0.25,
    "maximum": 3.0,
    "step_size": 0.5,
    "ema_rate": 0.1,
    "target_rate": 0.2,
}
CONFIGS = {
    "margin": functools.partial(MarginConfig, num_categories=K),
    "balance": functools.partial(BalanceConfig, scale_by_gradient_weight=True),
    "group_dro": functools.partial(GroupDroConfig, num_categories=K),
    "beta_dpo": BetaDpoConfig,
    "kl": KlConfig,
    "reward_shift": RewardShiftConfig,
}
NUMBERS = {
    "margin": MARGIN | {"normalize_mean": 1.5, "warmup_pairs": 30.0},
    "balance": {
        "floor": 0.05,
        "minimum_weight": 0.5,
        "maximum_weight": 1.5,
        "scale": 1.25,
        "maximum_scale": 8.0,
        "ema_rate": 0.5,
    },
    "group_dro": {"step_size": 0.3, "maximum_factor": 1.5},
    "beta_dpo": {"beta": 0.1, "alpha": 0.5, "ema_rate": 0.25, "keep_fraction": 0.5, "minimum": 1e-3},
    "kl": {"ema_rate": 0.5},
    "reward_shift": {"ema_rate": 0.5},
}


def margins_of(step_size, target):
    """`[3, K]` margins over three steps with these settings."""
    rule = margin_rule(
        MarginConfig(num_categories=K, **(MARGIN | {"step_size": step_size, "target_rate": target}))
    )
    state, margins = rule.init(), []
    for seed in range(3):
        state = rule.update(CASES["margin_additive"].stats(random_batch(seed)), state)
        margins.append(rule.value(state))
    return jnp.stack(margins)


@pytest.mark.parametrize("targets", [(16,), (16, K)], ids=["one_target", "target_per_category"])
def test_vmap_over_16_settings_of_the_margin_rule_equals_the_loop(targets):
    step_sizes = jnp.linspace(0.05, 1.0, 16)
    target_rates = jnp.linspace(0.0, 0.9, np.prod(targets)).reshape(targets)
    at_once = jax.jit(jax.vmap(margins_of))(step_sizes, target_rates)
    one_by_one = [margins_of(float(s), np.asarray(t)) for s, t in zip(step_sizes, target_rates, strict=True)]
    assert len({margins.tobytes() for margins in map(np.asarray, one_by_one)}) == 16
    np.testing.assert_allclose(at_once, np.stack(one_by_one), rtol=2e-6)


def test_vmap_over_a_grid_of_settings_nests():
    grid = jax.vmap(jax.vmap(margins_of, (None, 0)), (0, None))(
        jnp.array([0.1, 0.2]), jnp.array([0.1, 0.3, 0.5])
    )
    assert grid.shape == (2, 3, 3, K)
    np.testing.assert_allclose(grid[1, 2], margins_of(0.2, 0.5), rtol=2e-6)


def test_every_number_of_the_margin_rule_may_be_traced():
    stats = CASES["margin_additive"].stats(random_batch(0))

    def margins(numbers):
        rule = margin_rule(CONFIGS["margin"](update="multiplicative", **numbers))
        return rule.value(rule.update(stats, rule.init()))

    numbers = NUMBERS["margin"]
    np.testing.assert_allclose(jax.jit(margins)(numbers), margins(numbers), rtol=2e-6)
    per_category = numbers | {"target_rate": tuple(np.linspace(0, 1, K))}
    np.testing.assert_allclose(jax.jit(margins)(per_category), margins(per_category), rtol=2e-6)


def test_every_number_of_the_balance_rule_may_be_traced():
    batch = random_batch(0)
    stats = CASES["balance"].stats(batch)

    def balance(numbers, **options):
        config = CONFIGS["balance"](**numbers, **options)
        rule = balance_rule(config)
        value = rule.value(rule.update(stats, rule.update(stats, rule.init())))
        return value, balance_weights(config, value, batch.chosen_mi, batch.rejected_mi)

    def without_floor(**more):
        return {name: number for name, number in NUMBERS["balance"].items() if name != "floor"} | more

    for weights, numbers in [
        ("ratio", NUMBERS["balance"]),
        ("softmax", without_floor(temperature=0.3)),
        ("power", NUMBERS["balance"] | {"alpha": 0.7}),
    ]:
        traced = jax.jit(functools.partial(balance, weights=weights))(numbers)
        assert_close(traced, balance(numbers, weights=weights))


def test_every_number_of_the_other_rules_may_be_traced():
    batch = random_batch(0)

    def group_factors(numbers):
        rule = group_dro_rule(
            CONFIGS["group_dro"](**numbers | {"maximum_factor": 2 * numbers["maximum_factor"]})
        )
        state = rule.update(CASES["group_dro"].stats(batch), rule.init())
        return state.weight, rule.value(state)

    def selection(numbers):
        config = BetaDpoConfig(**numbers)
        rule = beta_dpo_rule(config)
        value = rule.value(rule.update(CASES["beta_dpo"].stats(batch), rule.init()))
        return beta_dpo_selection(config, value, batch.gap + 1, batch.weight, jax.random.key(0))

    def kl(numbers):
        rule = kl_rule(KlConfig(**numbers))
        return rule.update(CASES["kl"].stats(batch), rule.init()).mean

    for name, function in [("group_dro", group_factors), ("beta_dpo", selection), ("kl", kl)]:
        settings = jax.tree.map(lambda x: x * jnp.array([0.5, 1.0]), NUMBERS[name])
        one_by_one = [function(setting) for setting in unstack(settings, 2)]
        assert_close(unstack(jax.jit(jax.vmap(function))(settings), 2), one_by_one)


def test_temperature_of_a_violation_may_be_traced():
    gap = jnp.linspace(-1, 1, 5)
    soft = jax.vmap(lambda t: implicit_violation(gap, threshold=0.0, temperature=t))(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(soft[0], implicit_violation(gap, threshold=0.0, temperature=0.5), rtol=1e-6)


def test_traced_float64_numbers_leave_values_in_float32():
    with jax.enable_x64(True):
        margins = jax.jit(jax.vmap(margins_of))(jnp.full(2, 0.5, jnp.float64), jnp.full(2, 0.2, jnp.float64))
    assert margins.dtype == jnp.float32
    np.testing.assert_allclose(margins[0], margins_of(0.5, 0.2), rtol=2e-6)


def test_no_gradient_flows_through_a_traced_number_into_the_value():
    def scale(c):
        rule = balance_rule(BalanceConfig(scale=c))
        return rule.value(rule.init()).scale

    assert jax.grad(scale)(1.5) == 0.0
    assert jax.grad(lambda step_size: margins_of(step_size, 0.2).sum())(0.5) == 0.0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("array", [np.asarray, np.float32, jnp.asarray])
def test_numbers_of_numpy_and_jax_are_kept_as_floats(name, array):
    numbers = {key: float(np.float32(number)) for key, number in NUMBERS[name].items()}
    plain = CONFIGS[name](**numbers)
    given = CONFIGS[name](**{key: array(number) for key, number in numbers.items()})
    for key in numbers:
        assert type(getattr(given, key)) is float
    assert given.__dict__.keys() == plain.__dict__.keys()
    np.testing.assert_allclose(
        [getattr(given, key) for key in numbers], [getattr(plain, key) for key in numbers], rtol=1e-7
    )
    assert given == plain
    assert hash(given) == hash(plain)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray, list])
def test_targets_per_category_are_kept_as_a_tuple(array):
    rates = (0.0, 0.25, 0.5, 0.75, 1.0)
    config = MarginConfig(num_categories=K, **(MARGIN | {"target_rate": array(rates)}))
    assert config.target_rate == rates
    assert len({config, dataclasses.replace(config)}) == 1


def test_number_of_categories_may_be_an_integer_of_numpy():
    assert MarginConfig(num_categories=np.int64(3), **MARGIN) == MarginConfig(num_categories=3, **MARGIN)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: MarginConfig(3, **(MARGIN | {"step_size": jnp.stack([x, x])})), "step_size=.* must be a number"),
        (
            lambda x: MarginConfig(3, **(MARGIN | {"target_rate": jnp.stack([x, x])})),
            "target_rate has 2 values, expected one number for all or num_categories=3",
        ),
        (
            lambda x: MarginConfig(1, **(MARGIN | {"target_rate": jnp.full((1, 1), x)})),
            "target_rate=.* must be one number for all categories or one per category",
        ),
        (lambda x: MarginConfig(3, **(MARGIN | {"initial": x, "maximum": 0.1})), "is not between minimum=0.25"),
        (lambda x: MarginConfig(x, **MARGIN), "num_categories=.* must be an integer, known before any tracing"),
        (lambda x: BalanceConfig(temperature=x), "temperature=.* with weights='ratio': leave it out"),
        (lambda x: BalanceConfig(maximum_scale=x), "maximum_scale=.* has no effect on a constant scale"),
        (lambda x: BalanceConfig(weights="none", minimum_weight=x), "have no effect with weights='none'"),
        (lambda x: BetaDpoConfig(beta=0.1, alpha=x, minimum=0.2), "beta=0.1 must be finite and at least minimum=0.2"),
    ],
)  # fmt: skip
def test_structure_and_known_numbers_are_checked_while_others_are_traced(build, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: build(x) and x, jnp.float32(0.5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupDroConfig(0, 0.1), "num_categories=0 must be at least 1"),
        (lambda: GroupDroConfig(2.5, 0.1), "num_categories=2.5 must be an integer"),
        (lambda: GroupDroConfig(2, 0.0), "step_size=0.0 must be positive and finite"),
        (lambda: GroupDroConfig(2, None), "step_size=None must be a number"),
        (lambda: GroupDroConfig(2, 0.1, None), "maximum_factor=None must be a number"),
        (lambda: GroupDroConfig(2, 0.1, np.inf), "maximum_factor=inf must be finite and at least 1"),
        (lambda: GroupDroConfig(2, 0.1, 0.9), "maximum_factor=0.9 must be finite and at least 1"),
        (lambda: GroupDroConfig(2, "0.1"), "step_size='0.1' must be a number"),
        (lambda: KlConfig(0.0), "ema_rate=0.0 must be above 0 and at most 1"),
        (lambda: RewardShiftConfig(1.5), "ema_rate=1.5 must be above 0 and at most 1"),
        (lambda: BetaDpoConfig(beta=0.0, alpha=0.5), "beta=0.0 must be finite and at least minimum=0.001"),
        (lambda: BetaDpoConfig(beta=np.inf, alpha=0.5), "beta=inf must be finite"),
        (lambda: BetaDpoConfig(beta=0.1, alpha=-0.5), "alpha=-0.5 must be finite and not negative"),
        (lambda: BetaDpoConfig(beta=0.1, alpha=np.nan), "alpha=nan must be finite and not negative"),
        (lambda: BetaDpoConfig(beta=0.1, alpha=0.5, ema_rate=0.0), "ema_rate=0.0 must be above 0"),
        (lambda: BetaDpoConfig(beta=0.1, alpha=0.5, minimum=0.0), "minimum=0.0 must be positive and finite"),
        (lambda: BetaDpoConfig(beta=0.1, alpha=0.5, keep_fraction=0.0), "keep_fraction=0.0 must be above 0"),
        (lambda: BetaDpoConfig(beta=0.1, alpha=0.5, keep_fraction=1.1), "keep_fraction=1.1 must be .* at most 1"),
    ],
)  # fmt: skip
def test_impossible_options_raise(build, message):
    with pytest.raises(ValueError, match=message):
        build()
