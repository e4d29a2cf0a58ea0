"""Exact forms at the ends of the number range, and checks of concrete and traced scalars."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.arrays import between_like, positive_like
from jaxalign.losses.numerics import CEILING, CERTAIN, expm1_ratio, length_average, log1mexp, log_odds

LIKE = jnp.zeros(2)


def test_log1mexp_is_exact_near_zero_and_far_below():
    x = np.array([-1e-30, -1e-7, -1e-3, -0.3, -0.69, -0.7, -2.0, -15.0, -80.0], np.float32)
    exact = [math.log(-math.expm1(v)) if v > -0.5 else math.log1p(-math.exp(v)) for v in x.tolist()]
    np.testing.assert_allclose(log1mexp(jnp.asarray(x)), exact, rtol=3e-7)


def test_log1mexp_has_a_finite_gradient_in_both_branches():
    x = jnp.array([-1e-9, -1e-7, -1e-3, -0.69, -0.7, -80.0, -1e4])
    slope = jax.grad(lambda x: log1mexp(x).sum())(x)
    np.testing.assert_allclose(slope, -1.0 / np.expm1(-np.float64(x).clip(-700)), rtol=1e-6, atol=1e-30)


def test_log_odds_of_certainty_are_finite_and_flat():
    value, slope = jax.vmap(jax.value_and_grad(log_odds))(jnp.array([0.0, CERTAIN / 2, -1e-3]))
    np.testing.assert_allclose(value, [16.118096, 16.118096, 6.907255], rtol=1e-6)
    np.testing.assert_allclose(slope, [0.0, 0.0, 1000.5], rtol=1e-6)


def test_expm1_ratio_is_one_at_zero_and_smooth_around():
    value, slope = jax.vmap(jax.value_and_grad(expm1_ratio))(jnp.array([-1e-3, 0.0, 1e-3, 2.0]))
    np.testing.assert_allclose(value, [0.99950017, 1.0, 1.00050017, np.expm1(2.0) / 2.0], rtol=1e-6)
    assert np.isfinite(slope).all()


def test_expm1_ratio_goes_on_along_its_tangent_above_the_ceiling():
    z = jnp.array([CEILING + 1.0, CEILING + 2.0, 1e4])
    exponential = z * expm1_ratio(z)
    np.testing.assert_allclose(exponential, np.exp(CEILING) * (1.0 + np.float64(z) - CEILING), rtol=1e-6)


def test_length_average_of_no_tokens_is_zero_and_wrong_shape_names_the_length():
    np.testing.assert_array_equal(
        length_average(jnp.array([0.0, -6.0]), length=jnp.array([0, 3])), [0.0, -2.0]
    )
    with pytest.raises(ValueError, match=r"^chosen_length has shape \(1,\), expected \(2,\)"):
        length_average(LIKE, chosen_length=jnp.ones(1))


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, float("nan")])
def test_scalar_outside_its_range_raises_with_name_value_and_range(value):
    with pytest.raises(ValueError, match=rf"^lam={value} must be in \(0, 1\)$"):
        between_like(LIKE, 0.0, 1.0, lam=value)


def test_range_may_include_its_lower_end():
    assert between_like(LIKE, 0.0, 0.5, allow_low=True, lam=0.0) == 0.0
    with pytest.raises(ValueError, match=r"^lam=0.5 must be in \[0, 0.5\)$"):
        between_like(LIKE, 0.0, 0.5, allow_low=True, lam=0.5)


def test_negative_scalar_raises_where_zero_is_allowed():
    assert positive_like(LIKE, allow_zero=True, alpha=0.0) == 0.0
    with pytest.raises(ValueError, match=r"^alpha=-1.0 must be not negative$"):
        positive_like(LIKE, allow_zero=True, alpha=-1.0)


def test_traced_scalar_passes_unseen():
    np.testing.assert_array_equal(jax.vmap(lambda x: between_like(LIKE, 0.0, 1.0, lam=x))(jnp.ones(3)), 1.0)
    np.testing.assert_array_equal(jax.jit(lambda x: positive_like(LIKE, beta=x))(-1.0), -1.0)
