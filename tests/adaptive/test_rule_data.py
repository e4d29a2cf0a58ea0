"""Laws of every adaptive rule about the data: the float64 references, padding, absent categories, broken values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.adaptive.cases import (
    CASES,
    B,
    Batch,
    Case,
    K,
    assert_close,
    assert_identical,
    compiled_step,
    deviation,
    law,
    leaves,
    random_batch,
    seen_state,
)


@law
def test_fifty_steps_equal_the_float64_reference(case):
    assert deviation(case) < 5e-6


@functools.cache
def jitted(case: Case, num_categories: int) -> tuple:
    if num_categories == K:
        return case.compiled_step, case.rule.init()
    rule = case.make(num_categories)
    return compiled_step(case, rule), rule.init()


@st.composite
def batches(draw, num_categories: int) -> list[Batch]:
    """Two batches of any categories: rows of none and of several, absent categories, padding, nothing at all."""
    absent = draw(arrays(bool, num_categories))
    drawn = []
    for seed in range(2):
        categories = draw(arrays(bool, (B, num_categories))) & ~absent
        weight = draw(arrays(bool, B))
        batch = random_batch(seed, B, num_categories)
        drawn.append(
            dataclasses.replace(
                batch,
                categories=jnp.asarray(categories, jnp.float32),
                weight=jnp.asarray(weight, jnp.float32),
            )
        )
    return drawn


@law
@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_categories_equal_the_float64_reference_inside_the_bounds(case, data):
    num_categories = data.draw(st.sampled_from([1, K]))
    step, state = jitted(case, num_categories)
    wanted = case.make_reference(num_categories)
    expected = wanted.init()
    for batch in data.draw(batches(num_categories)):
        state, value = step(batch, state)
        expected = wanted.update(jax.tree.map(np.float64, batch), expected)
        pairs = zip(leaves((state, value)), leaves((expected, wanted.value(expected))), strict=True)
        for computed, correct in pairs:
            np.testing.assert_allclose(computed, correct, rtol=1e-5, atol=1e-5)
        assert case.is_valid(state, value)


@law
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_signals_leave_state_and_value_finite_and_inside_the_bounds(case, size):
    batch = random_batch(0)
    extreme = dataclasses.replace(
        batch,
        violation=jnp.ones(16),
        loss=abs(size) * batch.loss,
        gap=size * batch.gap,
        chosen_mi=size * batch.chosen_mi,
        gradient_weight=jnp.zeros(16),
    )
    state = case.rule.init()
    for _ in range(5):
        state, value = case.compiled_step(extreme, state)
        assert all(np.isfinite(leaf).all() for leaf in leaves((state, value)))
        assert case.is_valid(state, value)


@law
def test_batch_without_pairs_keeps_state_and_value(case):
    state = seen_state(case)
    empty = case.stats(jax.tree.map(jnp.zeros_like, random_batch(0)))
    for update in (case.rule.update, jax.jit(case.rule.update)):
        assert_identical(update(empty, state), state)
        assert_identical(update(empty, case.rule.init()), case.rule.init())
    assert_identical(case.rule.value(case.rule.update(empty, state)), case.rule.value(state))


@law
def test_batch_of_no_rows_keeps_the_state(case):
    state = seen_state(case)
    assert_identical(case.step(jax.tree.map(lambda x: x[:0], random_batch(0)), state), state)


@law
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_padding_does_not_count_even_if_it_is_not_finite(case, broken):
    batch = random_batch(0)
    padding = batch.weight == 0
    filled = jax.tree.map(lambda x: jnp.where(padding, broken, x) if x.ndim == 1 else x, batch)
    filled = dataclasses.replace(filled, weight=batch.weight)
    assert_identical(case.stats(filled), case.stats(batch))
    assert_identical(jax.jit(case.stats)(filled), jax.jit(case.stats)(batch))


@law
def test_more_padding_changes_nothing(case):
    batch = random_batch(0)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x[:3])]), batch)
    assert_close(case.step(padded, seen_state(case)), case.step(batch, seen_state(case)))


@law
def test_order_of_the_pairs_does_not_matter(case):
    order = np.random.default_rng(0).permutation(16)
    shuffled = jax.tree.map(lambda x: x[order], random_batch(0))
    assert_close(case.step(shuffled, seen_state(case)), case.step(random_batch(0), seen_state(case)))


@law
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_sums_that_are_not_finite_leave_the_state_as_it_is(case, broken):
    stats, state = case.stats(random_batch(7)), seen_state(case)
    all_broken = jax.tree.map(lambda x: jnp.full_like(x, broken), stats)
    for update in (case.rule.update, jax.jit(case.rule.update)):
        assert_identical(update(all_broken, state), state)


@law
def test_one_broken_real_pair_never_enters_the_state(case):
    batch = random_batch(7)
    first = (jnp.arange(16) == 1) & (batch.weight > 0)  # row 1 is real
    broken = jax.tree.map(lambda x: jnp.where(first, jnp.nan, x) if x.ndim == 1 else x, batch)
    broken = dataclasses.replace(broken, weight=batch.weight)
    assert any(np.isnan(leaf).any() for leaf in leaves(case.stats(broken)))  # shown, not hidden
    for state in (case.rule.init(), seen_state(case)):
        assert all(np.isfinite(leaf).all() for leaf in leaves(case.step(broken, state)))


@law
def test_counts_stop_at_their_largest_value_instead_of_wrapping(case):
    largest = np.iinfo(np.int32).max

    def nearly_full(leaf):
        return jnp.full_like(leaf, largest - 1) if leaf.dtype == jnp.int32 else leaf

    updated = case.step(random_batch(0), jax.tree.map(nearly_full, seen_state(case)))
    counts = [leaf for leaf in jax.tree.leaves(updated) if leaf.dtype == jnp.int32]
    assert counts
    for count in counts:
        assert ((count == largest) | (count == largest - 1)).all()


@law
def test_statistics_of_a_wrong_shape_are_refused_by_name(case):
    def doubled(stats):
        return jax.tree.map(lambda x: jnp.stack([x, x]), stats)

    with pytest.raises(ValueError, match=r"stats\.\w+ has shape \(2.*\), expected \("):
        case.rule.update(doubled(case.stats(random_batch(0))), case.rule.init())


@pytest.mark.parametrize("name", [name for name in CASES if name != "composite"])  # its statistics are a dict
def test_statistics_add_up_to_their_like_alone(name):
    case = CASES[name]
    stats = case.stats(random_batch(0))
    assert_identical(stats + stats, jax.tree.map(lambda x: x + x, stats))
    other = CASES["kl" if name not in ("kl", "reward_shift") else "balance"].stats(random_batch(0))
    for stranger in (1, other):
        with pytest.raises(TypeError, match="unsupported operand"):
            stats + stranger
