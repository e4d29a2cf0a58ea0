"""The table of adaptive rules that the laws of test_rule_*.py run over. A new rule is a new row.

`load_laws()` gives the laws by name, and `deviation(case)` how far a rule strays from its float64 reference.
"""

import dataclasses
import functools
import importlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import adaptive
from jaxalign.adaptive import AdaptiveRule
from tests.reference import adaptive as reference

K, B = 5, 16
MARGIN = {
    "initial": 1.0,
    "minimum": 0.25,
    "maximum": 3.0,
    "step_size": 0.5,
    "ema_rate": 0.1,
    "target_rate": 0.2,
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a batch gives to any rule; the first axis of every leaf is the pair."""

    violation: Any
    categories: Any
    chosen_mi: Any
    rejected_mi: Any
    gradient_weight: Any
    loss: Any
    gap: Any
    weight: Any


jax.tree_util.register_dataclass(Batch)


@dataclasses.dataclass(frozen=True)
class Case:
    """A rule for K categories, its statistics of a batch, and its reference, whose update takes the batch.

    `is_valid(state, value)` says whether both lie inside the bounds that the rule promises.
    """

    make: Callable[[int], AdaptiveRule]
    stats: Callable[[Batch], Any]
    make_reference: Callable[[int], AdaptiveRule]
    is_valid: Callable[[Any, Any], bool]

    @functools.cached_property
    def rule(self) -> AdaptiveRule:
        return self.make(K)

    def step(self, batch: Batch, state: Any) -> Any:
        return self.rule.update(self.stats(batch), state)

    @functools.cached_property
    def compiled_step(self) -> Callable[[Batch, Any], tuple[Any, Any]]:
        """The state after a batch and its value, compiled once for all laws."""
        return compiled_step(self, self.rule)


def compiled_step(case: Case, rule: AdaptiveRule) -> Callable[[Batch, Any], tuple[Any, Any]]:
    def step(batch: Batch, state: Any) -> tuple[Any, Any]:
        updated = rule.update(case.stats(batch), state)
        return updated, rule.value(updated)

    return jax.jit(step)


def margin_case(**options: Any) -> Case:
    options = MARGIN | {"update": "additive", "normalize_mean": None, "warmup_pairs": 0.0} | options

    def of(num_categories: int) -> dict[str, Any]:
        per_category = options["target_rate"] == "per category"
        return options | ({"target_rate": np.linspace(0, 1, num_categories)} if per_category else {})

    def stats(batch: Batch) -> adaptive.CategoryStats:
        return adaptive.category_stats(batch.violation, batch.categories, batch.weight)

    def make_reference(num_categories: int) -> AdaptiveRule:
        o = of(num_categories)
        low, high, mean = o["minimum"], o["maximum"], o["normalize_mean"]
        fixed = {name: o[name] for name in ("step_size", "ema_rate", "update")}
        fixed |= {"low": low, "high": high, "target": o["target_rate"]}
        zeros = np.zeros(num_categories)

        def update(b: Batch, state: Any) -> Any:
            sums = reference.category_sums(b.violation, b.categories, b.weight)
            margin, *others = reference.margin_step(*state, *sums, **fixed)
            return (state[0] if state[2].sum() < o["warmup_pairs"] else margin, *others)

        return AdaptiveRule(
            lambda: (zeros + o["initial"], zeros, zeros),
            lambda state: state[0] if mean is None else reference.projected_mean(state[0], mean, low, high),
            update,
        )

    def make(num_categories: int) -> AdaptiveRule:
        return adaptive.margin_rule(
            adaptive.MarginConfig(num_categories=num_categories, **of(num_categories))
        )

    def is_valid(state: adaptive.MarginState, value: jax.Array) -> bool:
        low, high = options["minimum"], options["maximum"]
        return (
            inside(state.margin, low, high)
            and inside(value, low, high)
            and inside(state.violation_rate, 0, 1)
        )

    return Case(make, stats, make_reference, is_valid)


def balance_case(**options: Any) -> Case:
    config = adaptive.BalanceConfig(**options)
    fixed = {"floor": config.least_mi, "scale": config.scale, "maximum_scale": config.maximum_scale}

    def signals(batch: Batch) -> tuple:
        return batch.chosen_mi, batch.rejected_mi, batch.gradient_weight, batch.weight

    return Case(
        lambda _: adaptive.balance_rule(config),
        lambda batch: adaptive.balance_stats(*signals(batch)),
        lambda _: AdaptiveRule(
            lambda: (0.0, 0.0, 0.0, 0.0),
            lambda state: reference.balance_value(*state, **fixed),
            lambda b, state: reference.balance_step(*state, *signals(b), ema_rate=config.ema_rate),
        ),
        lambda _, value: inside(value.scale, config.scale, config.maximum_scale or config.scale),
    )


def group_dro_case(step_size: float, maximum_factor: float) -> Case:
    options = {"step_size": step_size, "maximum_factor": maximum_factor}
    return Case(
        lambda k: adaptive.group_dro_rule(adaptive.GroupDroConfig(num_categories=k, **options)),
        lambda batch: adaptive.group_stats(batch.loss, batch.categories, batch.weight),
        lambda k: AdaptiveRule(
            lambda: (np.full(k, 1 / k), np.zeros(k), 0.0),
            lambda state: reference.group_dro_value(*state, maximum_factor=maximum_factor),
            lambda b, state: reference.group_dro_step(
                *state, b.loss, b.categories, b.weight, step_size=step_size
            ),
        ),
        lambda state, value: (
            inside(state.weight, np.finfo(np.float32).tiny, 1)
            and inside(state.weight.sum(), 1, 1)
            and inside(value, 0, maximum_factor)
        ),
    )


def beta_dpo_case(**options: Any) -> Case:
    config = adaptive.BetaDpoConfig(beta=0.1, alpha=0.6, **options)
    return Case(
        lambda _: adaptive.beta_dpo_rule(config),
        lambda batch: adaptive.gap_stats(batch.gap, batch.weight),
        lambda _: AdaptiveRule(
            lambda: (0.0, 0.0, 0.0),
            lambda state: (state[0], state[1], state[2] > 0),
            lambda b, state: reference.beta_dpo_step(*state, b.gap, b.weight, ema_rate=config.ema_rate),
        ),
        lambda _, value: inside(value.std, 0, np.inf),
    )


def mean_case(rule: AdaptiveRule, ema_rate: float, least: float) -> Case:
    return Case(
        lambda _: rule,
        lambda batch: adaptive.mean_stats(batch.gap, batch.weight),
        lambda _: AdaptiveRule(
            lambda: (0.0, 0.0),
            lambda state: max(least, state[0]),
            lambda b, state: reference.running_mean_step(*state, b.gap, b.weight, ema_rate=ema_rate),
        ),
        lambda _, value: inside(value, least, np.inf),
    )


def composite_case(**cases: Case) -> Case:
    def make_reference(num_categories: int) -> AdaptiveRule:
        rules = {name: case.make_reference(num_categories) for name, case in cases.items()}
        return AdaptiveRule(
            lambda: {name: rule.init() for name, rule in rules.items()},
            lambda state: {name: rule.value(state[name]) for name, rule in rules.items()},
            lambda b, state: {name: rule.update(b, state[name]) for name, rule in rules.items()},
        )

    return Case(
        lambda k: adaptive.composite_rule(**{name: case.make(k) for name, case in cases.items()}),
        lambda batch: {name: case.stats(batch) for name, case in cases.items()},
        make_reference,
        lambda state, value: all(case.is_valid(state[name], value[name]) for name, case in cases.items()),
    )


CASES = {
    "margin_additive": margin_case(),
    "margin_multiplicative": margin_case(update="multiplicative"),
    "margin_normalized": margin_case(normalize_mean=1.5, step_size=3.0),  # steps over the bounds
    "margin_target_per_category": margin_case(target_rate="per category"),
    "margin_newest_rate_alone": margin_case(ema_rate=1.0),
    "margin_after_warmup": margin_case(warmup_pairs=20.0),
    "balance": balance_case(),
    "balance_scale_by_gradient_weight": balance_case(scale_by_gradient_weight=True, maximum_scale=10.0),
    "group_dro": group_dro_case(step_size=0.3, maximum_factor=1.25),  # often reached
    "beta_dpo": beta_dpo_case(),
    "beta_dpo_newest_alone": beta_dpo_case(ema_rate=1.0),
    "kl": mean_case(adaptive.kl_rule(adaptive.KlConfig(ema_rate=0.3)), 0.3, least=0.0),
    "reward_shift": mean_case(
        adaptive.reward_shift_rule(adaptive.RewardShiftConfig(ema_rate=0.1)), 0.1, least=-np.inf
    ),
    "composite": composite_case(
        margin=margin_case(), balance=balance_case(), group_dro=group_dro_case(0.1, 10.0)
    ),
}

LAWS: dict[str, Callable[..., None]] = {}


def law(test: Callable[..., None]) -> Any:
    """Register a test as a law and run it over every rule of the table, as its argument `case`."""
    LAWS[test.__name__] = test
    return pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())(test)


def load_laws() -> dict[str, Callable[..., None]]:
    """All laws by name, from the modules test_rule_*.py beside this one."""
    for path in sorted(Path(__file__).parent.glob("test_rule_*.py")):
        importlib.import_module(f"{__package__}.{path.stem}")
    return LAWS


def random_batch(seed: int, num_pairs: int = B, num_categories: int = K) -> Batch:
    """Multi-label rows, rows without a category, padding; of several categories the first never occurs."""
    rng = np.random.default_rng(seed)
    categories = rng.integers(0, 2, (num_pairs, num_categories))
    if num_categories > 1:
        categories[:, 0] = 0
    categories[::4] = 0
    arrays = (
        rng.integers(0, 2, num_pairs),
        categories,
        rng.uniform(0.1, 1.0, num_pairs),
        rng.uniform(0.1, 1.0, num_pairs),
        rng.uniform(0.0, 1.0, num_pairs),
        rng.uniform(0.0, 2.0, num_pairs),
        # spread out: the deviation of any few of them is well above rounding
        rng.permutation(np.linspace(-2.0, 3.0, num_pairs)),
        np.arange(num_pairs) % 5 != 3,
    )
    return Batch(*(jnp.asarray(array, jnp.float32) for array in arrays))


@functools.cache
def _seen(case: Case, num_steps: int) -> Any:
    state = case.rule.init()
    for seed in range(num_steps):
        state = case.step(random_batch(seed), state)
    return jax.tree.map(np.array, state)


def seen_state(case: Case, num_steps: int = 3) -> Any:
    """The state after so many steps, in buffers of its own."""
    return jax.tree.map(jnp.array, _seen(case, num_steps))


def deviation(case: Case, num_steps: int = 50) -> float:
    """Largest deviation of state and value from the float64 reference, relative above 1, over so many steps."""
    wanted = case.make_reference(K)
    state, expected, largest = case.rule.init(), wanted.init(), 0.0
    for seed in range(num_steps):
        batch = random_batch(seed)
        state, value = case.compiled_step(batch, state)
        expected = wanted.update(jax.tree.map(np.float64, batch), expected)
        pairs = zip(leaves((state, value)), leaves((expected, wanted.value(expected))), strict=True)
        for a, e in pairs:
            largest = max(largest, float(np.max(np.abs(a - e) / np.maximum(np.abs(e), 1.0))))
    return largest


def leaves(tree: Any) -> list[np.ndarray]:
    """The leaves as float64; references hold plain tuples in the order of the fields."""
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def inside(values: Any, least: float, most: float) -> bool:
    """Whether all values lie between the bounds, to rounding, and none is NaN."""
    slack = 1e-5 * np.nan_to_num(np.abs([least, most]), posinf=0.0, neginf=0.0)
    wide = np.asarray(values, np.float64)
    return bool(np.all((wide >= least - slack[0]) & (wide <= most + slack[1])))


def added(left: Any, right: Any) -> Any:
    """Statistics of two parts of the data, summed."""
    return jax.tree.map(jnp.add, left, right)


def stack(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, num: int) -> list:
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(num)]


def signature(tree: Any) -> list[tuple]:
    return [(path, x.shape, x.dtype, x.weak_type) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def assert_identical(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left: Any, right: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), left, right)
