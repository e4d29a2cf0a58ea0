"""What is computed per pair or summed over pairs: pair margins, violations, gradient weights, statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.adaptive import (
    balance_stats,
    category_stats,
    gradient_weight,
    implicit_violation,
    pair_margins,
)
from jaxalign.losses import cat_dpo_loss, dpo_loss
from tests.reference import adaptive as reference

MARGINS = jnp.array([1.0, 3.0, 0.5])
CATEGORIES = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [("mean", [1.0, 2.0, 1.5, 0.0]), ("max", [1.0, 3.0, 3.0, 0.0]), ("sum", [1.0, 4.0, 4.5, 0.0])],
)
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_pair_margin_reduces_over_the_categories_of_the_pair(reduce, expected, dtype):
    categories = jnp.asarray(CATEGORIES.astype(dtype))
    np.testing.assert_array_equal(pair_margins(MARGINS, categories, reduce=reduce), expected)
    np.testing.assert_array_equal(
        jax.jit(pair_margins, static_argnums=2)(MARGINS, categories, reduce), expected
    )
    one_by_one = jax.vmap(lambda row: pair_margins(MARGINS, row[None], reduce)[0])(categories)
    np.testing.assert_array_equal(one_by_one, expected)


def test_largest_of_negative_margins_is_not_zero():
    np.testing.assert_array_equal(
        pair_margins(-MARGINS, jnp.asarray(CATEGORIES), reduce="max")[:3], [-1, -1, -0.5]
    )


def test_no_gradient_into_margins():
    gradient = jax.grad(lambda margins: pair_margins(margins, jnp.asarray(CATEGORIES)).sum())(MARGINS)
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_unknown_reduction_raises():
    with pytest.raises(ValueError, match="reduce='median' must be 'mean', 'max' or 'sum'"):
        pair_margins(MARGINS, jnp.asarray(CATEGORIES), reduce="median")


def test_categories_that_do_not_fit_the_margins_raise():
    with pytest.raises(ValueError, match=r"categories has shape \(4, 3\), expected \[B, K\] for margins"):
        pair_margins(jnp.ones(2), jnp.asarray(CATEGORIES))


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3)])
def test_categories_that_are_no_matrix_raise(shape):
    with pytest.raises(ValueError, match=r"categories has shape .* expected \[B, K\] for margins"):
        pair_margins(MARGINS, jnp.ones(shape))


def test_hard_violation_is_a_gap_below_the_threshold():
    gap = jnp.array([-1.0, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(implicit_violation(gap, threshold=0.0), [1, 0, 0, 0])
    np.testing.assert_array_equal(implicit_violation(gap, threshold=1.0), [1, 1, 1, 0])


def test_soft_violation_tends_to_the_hard_one():
    gap = jnp.array([-1.0, -0.1, 0.1, 2.0])
    soft = implicit_violation(gap, threshold=0.0, temperature=1e-3)
    np.testing.assert_allclose(soft, implicit_violation(gap, threshold=0.0), atol=1e-6)
    wide = implicit_violation(gap, threshold=0.5, temperature=2.0)
    np.testing.assert_allclose(wide, 1 / (1 + np.exp((np.asarray(gap) - 0.5) / 2)), rtol=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_violation_of_a_broken_gap_is_nan(temperature):
    violation = implicit_violation(jnp.array([jnp.nan, 1.0]), threshold=0.0, temperature=temperature)
    assert np.isnan(violation[0])
    assert np.isfinite(violation[1])


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_no_gradient_into_gap_or_threshold(temperature):
    def total(gap, threshold):
        return implicit_violation(gap, threshold=threshold, temperature=temperature).sum()

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.array([-1.0, 1.0]), jnp.array(0.3)):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="must be positive and finite; leave it out for the hard step"):
        implicit_violation(jnp.ones(2), threshold=0.0, temperature=temperature)


def test_threshold_of_wrong_shape_raises():
    with pytest.raises(ValueError, match=r"threshold has shape \(3,\), expected a scalar or \(2,\)"):
        implicit_violation(jnp.ones(2), threshold=jnp.ones(3))


def test_gradient_weight_is_the_derivative_of_the_loss():
    logps = [
        jnp.array([-20.0, -30.0]),
        jnp.array([-24.0, -5.0]),
        jnp.array([-21.0, -6.0]),
        jnp.array([-22.5, -6.0]),
    ]
    flags = jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])

    def loss(chosen):
        return cat_dpo_loss(chosen, *logps[1:], *flags, jnp.array([2.0, 2.0]), beta=0.1).sum()

    per_pair = cat_dpo_loss(*logps, *flags, jnp.array([2.0, 2.0]), beta=0.1)
    np.testing.assert_allclose(gradient_weight(per_pair), -jax.grad(loss)(logps[0]) / 0.1, rtol=1e-5)


def test_gradient_weight_keeps_its_precision_on_learnt_pairs():
    loss = dpo_loss(jnp.array([400.0]), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), beta=0.1)
    np.testing.assert_allclose(gradient_weight(loss), np.exp(-40.0), rtol=1e-5)


def test_category_sums_equal_reference():
    rng = np.random.default_rng(0)
    violation, categories, weight = rng.uniform(size=9), rng.integers(0, 2, (9, 4)), rng.integers(0, 2, 9)
    stats = category_stats(jnp.asarray(violation), jnp.asarray(categories), jnp.asarray(weight))
    violations, pairs = reference.category_sums(violation, categories, weight)
    np.testing.assert_allclose(stats.violations, violations, rtol=1e-6)
    np.testing.assert_array_equal(stats.pairs, pairs)


def test_broken_real_pair_shows_in_its_categories_alone():
    violation = jnp.array([jnp.nan, 1.0])
    stats = category_stats(violation, jnp.array([[1, 0], [0, 1]]), jnp.ones(2))
    np.testing.assert_array_equal(np.isnan(stats.violations), [True, False])


@pytest.mark.parametrize("shape", [(4,), (3, 2), (4, 2, 1)])
def test_categories_of_wrong_shape_raise(shape):
    with pytest.raises(ValueError, match=r"categories has shape .* expected \[B, K\]"):
        category_stats(jnp.ones(4), jnp.ones(shape), jnp.ones(4))


def test_statistics_name_the_argument_of_wrong_shape():
    with pytest.raises(ValueError, match=r"weight has shape \(3,\), expected \(4,\)"):
        category_stats(jnp.ones(4), jnp.ones((4, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"gradient_weight has shape \(3,\), expected \(4,\)"):
        balance_stats(jnp.ones(4), jnp.ones(4), jnp.ones(3), jnp.ones(4))
