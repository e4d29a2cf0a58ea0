"""Laws that every adaptive rule obeys, over one table. A new rule is a new row."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign import adaptive

K, B = 5, 16
MARGIN = {
    "num_categories": K,
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

    violation: jax.Array
    categories: jax.Array
    chosen_mi: jax.Array
    rejected_mi: jax.Array
    gradient_weight: jax.Array
    weight: jax.Array


jax.tree_util.register_dataclass(Batch)


@dataclasses.dataclass(frozen=True)
class Case:
    """A rule and the statistics that it takes of a batch."""

    rule: adaptive.AdaptiveRule
    stats: Callable[[Batch], Any]


def category_stats(batch: Batch) -> adaptive.CategoryStats:
    return adaptive.category_stats(batch.violation, batch.categories, batch.weight)


def balance_stats(batch: Batch) -> adaptive.BalanceStats:
    return adaptive.balance_stats(batch.chosen_mi, batch.rejected_mi, batch.gradient_weight, batch.weight)


def margin_case(**options: Any) -> Case:
    return Case(adaptive.margin_rule(adaptive.MarginConfig(**(MARGIN | options))), category_stats)


def balance_case(**options: Any) -> Case:
    return Case(adaptive.balance_rule(adaptive.BalanceConfig(**options)), balance_stats)


CASES = {
    "margin_additive": margin_case(),
    "margin_multiplicative": margin_case(update="multiplicative"),
    "margin_normalized": margin_case(normalize_mean=1.5),
    "margin_target_per_category": margin_case(target_rate=[0.0, 0.1, 0.2, 0.5, 1.0]),
    "margin_newest_rate_alone": margin_case(ema_rate=1.0),
    "balance": balance_case(),
    "balance_scale_by_gradient_weight": balance_case(scale_by_gradient_weight=True, maximum_scale=10.0),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


def random_batch(seed: int, num_pairs: int = B) -> Batch:
    """Multi-label rows, rows without a category, padding; category 0 never occurs."""
    rng = np.random.default_rng(seed)
    categories = rng.integers(0, 2, (num_pairs, K))
    categories[:, 0] = 0
    categories[::4] = 0
    arrays = (
        rng.integers(0, 2, num_pairs),
        categories,
        rng.uniform(0.1, 1.0, num_pairs),
        rng.uniform(0.1, 1.0, num_pairs),
        rng.uniform(0.0, 1.0, num_pairs),
        np.arange(num_pairs) % 5 != 3,
    )
    return Batch(*(jnp.asarray(array, jnp.float32) for array in arrays))


def seen_state(case: Case, num_steps: int = 3) -> Any:
    state = case.rule.init()
    for seed in range(num_steps):
        state = case.rule.update(case.stats(random_batch(seed)), state)
    return state


def signature(tree: Any) -> list[tuple]:
    return [(path, x.shape, x.dtype, x.weak_type) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def assert_identical(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left: Any, right: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), left, right)


def test_init_is_abstract_under_eval_shape(case):
    abstract = jax.eval_shape(case.rule.init)
    assert signature(abstract) == signature(case.rule.init())


def test_update_keeps_structure_shapes_and_dtypes(case):
    state = case.rule.init()
    updated = case.rule.update(case.stats(random_batch(0)), state)
    assert jax.tree.structure(updated) == jax.tree.structure(state)
    assert signature(updated) == signature(state)


def test_update_keeps_dtypes_when_statistics_are_float64(case):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), random_batch(0))
        assert signature(case.rule.update(case.stats(wide), case.rule.init())) == signature(case.rule.init())


def test_batch_without_pairs_keeps_state_and_value(case):
    state = seen_state(case)
    empty = case.stats(jax.tree.map(jnp.zeros_like, random_batch(0)))
    for update in (case.rule.update, jax.jit(case.rule.update)):
        assert_identical(update(empty, state), state)
        assert_identical(update(empty, case.rule.init()), case.rule.init())


def test_two_half_batches_added_equal_one_batch(case):
    batch = random_batch(0)
    first, second = jax.tree.map(lambda x: x[:5], batch), jax.tree.map(lambda x: x[5:], batch)
    added = case.stats(first) + case.stats(second)
    assert_close(added, case.stats(batch))
    assert_close(
        case.rule.update(added, seen_state(case)), case.rule.update(case.stats(batch), seen_state(case))
    )


def test_adding_something_else_raises(case):
    with pytest.raises(TypeError, match="unsupported operand"):
        case.stats(random_batch(0)) + 1


def test_eager_equals_jit(case):
    stats, state = case.stats(random_batch(7)), seen_state(case)
    assert_close(jax.jit(case.stats)(random_batch(7)), stats)
    assert_close(jax.jit(case.rule.update)(stats, state), case.rule.update(stats, state))
    assert_close(jax.jit(case.rule.value)(state), case.rule.value(state))


def test_vmap_over_states_equals_loop(case):
    states = [seen_state(case, num_steps) for num_steps in range(4)]
    stats = [case.stats(random_batch(seed)) for seed in range(4)]
    stacked = jax.vmap(case.rule.update)(stack(stats), stack(states))
    assert_close(stacked, stack(list(map(case.rule.update, stats, states))))
    assert_close(jax.vmap(case.rule.value)(stacked), stack(list(map(case.rule.value, unstack(stacked, 4)))))


def stack(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, num: int) -> list:
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(num)]


def test_scan_over_steps_equals_loop(case):
    stats = [case.stats(random_batch(seed)) for seed in range(3)]

    def step(state, stats):
        return case.rule.update(stats, state), case.rule.value(state)

    final, values = jax.lax.scan(step, case.rule.init(), stack(stats))
    assert_close(final, seen_state(case))
    assert_identical(unstack(values, 3)[0], case.rule.value(case.rule.init()))


def test_state_may_be_donated(case):
    stats, state = case.stats(random_batch(7)), seen_state(case)
    expected = case.rule.update(stats, state)
    donating = jax.jit(case.rule.update, donate_argnums=1)
    assert_close(donating(stats, state), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    donating(stats, case.rule.init())  # no buffer occurs twice in a fresh state


def test_no_gradient_into_state_or_signals(case):
    batch, state = random_batch(7), seen_state(case)

    def total(batch, state):
        updated = case.rule.update(case.stats(batch), state)
        return sum(leaf.sum() for leaf in jax.tree.leaves((case.rule.value(state), case.rule.value(updated))))

    for gradient in jax.tree.leaves(jax.grad(total, argnums=(0, 1), allow_int=True)(batch, state)):
        if gradient.dtype == jnp.float32:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_no_gradient_into_statistics(case):
    def total(batch):
        return sum(leaf.sum() for leaf in jax.tree.leaves(case.stats(batch)))

    for gradient in jax.tree.leaves(jax.grad(total)(random_batch(7))):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_psum_inside_shard_map_equals_one_device(case, mesh):
    batch, state = random_batch(7), seen_state(case)

    def update(batch, state):
        return case.rule.update(jax.lax.psum(case.stats(batch), "data"), state)

    sharded = jax.shard_map(
        update, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec()
    )
    assert_close(jax.jit(sharded)(batch, state), case.rule.update(case.stats(batch), state))


def test_global_arrays_under_jit_equal_one_device_and_stay_replicated(case, mesh):
    batch, state = random_batch(7), seen_state(case)
    replicated = NamedSharding(mesh, PartitionSpec())
    global_batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    global_state = jax.device_put(state, replicated)
    updated = jax.jit(lambda b, s: case.rule.update(case.stats(b), s))(global_batch, global_state)
    assert_close(updated, case.rule.update(case.stats(batch), state))
    assert all(leaf.sharding.is_equivalent_to(replicated, leaf.ndim) for leaf in jax.tree.leaves(updated))


def test_padding_does_not_count_even_if_it_is_nan(case):
    batch = random_batch(0)
    padding = batch.weight == 0
    broken = jax.tree.map(lambda x: jnp.where(padding, jnp.nan, x) if x.ndim == 1 else x, batch)
    broken = dataclasses.replace(broken, weight=batch.weight)
    assert_identical(case.stats(broken), case.stats(batch))
