"""Laws of the protocol that every adaptive rule obeys: shapes, dtypes and the transformations of jax."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import adaptive
from tests.adaptive.cases import (
    CASES,
    B,
    assert_close,
    assert_identical,
    compiled_step,
    law,
    random_batch,
    seen_state,
    signature,
    stack,
    unstack,
)


def test_every_public_rule_is_in_the_table():
    names = {name.removesuffix("_rule") for name in adaptive.__all__ if name.endswith("_rule")}
    assert {name for name in names if not any(case.startswith(name) for case in CASES)} == set()


@law
def test_init_is_abstract_under_eval_shape(case):
    abstract = jax.eval_shape(case.rule.init)
    assert signature(abstract) == signature(case.rule.init())


@law
def test_state_is_float32_and_int32_and_never_weakly_typed(case):
    for _, _, dtype, weak in signature(case.rule.init()):
        assert dtype in (jnp.float32, jnp.int32)
        assert not weak


@law
def test_update_keeps_structure_shapes_and_dtypes(case):
    state = case.rule.init()
    updated = case.step(random_batch(0), state)
    assert jax.tree.structure(updated) == jax.tree.structure(state)
    assert signature(updated) == signature(state)
    assert signature(jax.eval_shape(case.step, random_batch(0), state)) == signature(state)


@law
def test_value_has_one_signature_before_and_after_updates(case):
    assert signature(case.rule.value(case.rule.init())) == signature(case.rule.value(seen_state(case)))


@law
def test_float64_statistics_leave_state_and_value_in_their_dtypes(case):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), random_batch(0))
        stats = jax.eval_shape(case.stats, wide)
        assert {x.dtype for x in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float64)}
        updated, value = compiled_step(case, case.rule)(wide, case.rule.init())
        assert signature(updated) == signature(case.rule.init())
        assert all(x.dtype != jnp.float64 for x in jax.tree.leaves(value))
    assert_close(updated, case.step(random_batch(0), case.rule.init()))


@law
def test_half_precision_signals_are_summed_in_float32(case):
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_batch(0))
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
    assert_identical(case.stats(halves), case.stats(rounded))
    assert {x.dtype for x in jax.tree.leaves(case.stats(halves))} == {jnp.dtype(jnp.float32)}


@law
def test_eager_equals_jit(case):
    state = case.step(random_batch(7), seen_state(case))
    assert_close(case.compiled_step(random_batch(7), seen_state(case)), (state, case.rule.value(state)))


@law
def test_vmap_over_seeds_equals_loop(case):
    states = [seen_state(case, num_steps) for num_steps in range(3)]
    stats = [case.stats(random_batch(seed)) for seed in range(3)]

    def updated(stats, state):
        after = case.rule.update(stats, state)
        return after, case.rule.value(after)

    stacked = jax.jit(jax.vmap(updated))(stack(stats), stack(states))
    assert_close(unstack(stacked, 3), list(map(updated, stats, states)))


@law
def test_scan_over_steps_equals_loop(case):
    stats = [case.stats(random_batch(seed)) for seed in range(3)]

    def step(state, stats):
        return case.rule.update(stats, state), case.rule.value(state)

    final, values = jax.lax.scan(step, case.rule.init(), stack(stats))
    assert_close(final, seen_state(case))
    assert_identical(unstack(values, 3)[0], case.rule.value(case.rule.init()))


@law
def test_state_may_be_donated(case):
    stats, state = case.stats(random_batch(7)), seen_state(case)
    expected = case.rule.update(stats, state)
    donating = jax.jit(case.rule.update, donate_argnums=1)
    assert_close(donating(stats, state), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    donating(stats, case.rule.init())  # no buffer occurs twice in a fresh state


@law
def test_two_fresh_states_share_no_buffer(case):
    held = [case.rule.init(), case.rule.init()]
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(held)]
    assert len(set(buffers)) == len(buffers)


def float_total(tree):
    return sum(leaf.sum() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating))


@law
def test_no_gradient_into_state_or_signals(case):
    def total(batch, state):
        return float_total((case.rule.value(state), case.rule.value(case.step(batch, state))))

    gradient_of = jax.jit(jax.grad(total, argnums=(0, 1), allow_int=True))
    for gradient in jax.tree.leaves(gradient_of(random_batch(7), seen_state(case))):
        if gradient.dtype == jnp.float32:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@law
def test_no_gradient_into_statistics(case):
    gradients = jax.grad(lambda batch: float_total(case.stats(batch)))(random_batch(7))
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@law
def test_state_and_update_do_not_depend_on_the_number_of_pairs(case):
    for num_pairs in (1, 3, 4 * B):
        updated = jax.eval_shape(case.step, random_batch(0, num_pairs), case.rule.init())
        assert signature(updated) == signature(case.rule.init())
