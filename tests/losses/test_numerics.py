"""Exact forms at the ends of the number range, and checks of concrete and traced scalars."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.arrays import between_like, positive_like, scalar_like
from jaxalign.losses.numerics import CEILING, CERTAIN, expm1_ratio, length_average, log1mexp, log_odds

LIKE = jnp.zeros(2)


def test_log1mexp_is_exact_near_zero_and_far_below():
    x = np.array([-1e-30, -1e-7, -1e-3, -0.3, -0.69, -0.7, -2.0, -15.0, -80.0], np.float32)
    exact = [math.log(-math.expm1(v)) if v > -0.5 else math.log1p(-math.exp(v)) for v in x.tolist()]
    np.testing.assert_allclose(log1mexp(jnp.asarray(x)), exact, rtol=3e-7)


def test_log1mexp_has_a_finite_gradient_in_both_branches():
    x = jnp.array([-1e-9, -1e-7, -1e-3, -0.69, -0.7, -80.0, -1e4])
    slope = jax.jit(jax.grad(lambda x: log1mexp(x).sum()))(x)
    np.testing.assert_allclose(slope, -1.0 / np.expm1(-np.float64(x).clip(-700)), rtol=1e-6, atol=1e-30)


def test_log_odds_of_certainty_are_finite_and_flat():
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_odds)))(jnp.array([0.0, CERTAIN / 2, -1e-3]))
    np.testing.assert_allclose(value, [16.118096, 16.118096, 6.907255], rtol=1e-6)
    np.testing.assert_allclose(slope, [0.0, 0.0, 1000.5], rtol=1e-6)


def test_expm1_ratio_is_one_at_zero_and_smooth_around():
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(expm1_ratio)))(jnp.array([-1e-3, 0.0, 1e-3, 2.0]))
    np.testing.assert_allclose(value, [0.99950017, 1.0, 1.00050017, np.expm1(2.0) / 2.0], rtol=1e-6)
    np.testing.assert_allclose(slope[:3], [0.49966679, 0.5, 0.50033346], rtol=1e-6)


def test_expm1_ratio_and_its_slope_are_exact_across_the_change_of_form():
    with jax.enable_x64(True):
        z = jnp.array([1e-300, -1e-30, 1e-20, -1e-8, 9.99e-3, -9.99e-3, 1.001e-2, -1.001e-2, 0.5])
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(expm1_ratio)))(z)
    terms = [(k, 1 / math.factorial(k + 1)) for k in range(20)]
    np.testing.assert_allclose(value, sum(c * np.float64(z) ** k for k, c in terms), rtol=1e-14)
    np.testing.assert_allclose(slope, sum(k * c * np.float64(z) ** (k - 1) for k, c in terms[1:]), rtol=1e-12)


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
    with pytest.raises(ValueError, match=r"^alpha=-1.0 must be not negative and finite$"):
        positive_like(LIKE, allow_zero=True, alpha=-1.0)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [float, np.float64, jnp.float32])
def test_known_scalar_that_is_not_finite_raises_eager_and_under_jit(number, kind):
    scalar = kind(number)
    for run in (lambda f: f(LIKE), lambda f: jax.jit(f)(LIKE)):
        with pytest.raises(ValueError, match=rf"^gamma={number} must be finite"):
            run(lambda like: scalar_like(like, gamma=scalar))
        with pytest.raises(ValueError, match=rf"^beta={number} must be positive and finite"):
            run(lambda like: positive_like(like, beta=scalar))


def test_infinity_passes_where_it_has_a_meaning_and_nan_does_not():
    assert positive_like(LIKE, allow_infinite=True, temperature=jnp.float32(math.inf)) == math.inf
    for number in (math.nan, -math.inf):
        with pytest.raises(ValueError, match=rf"^temperature={number} must be positive$"):
            positive_like(LIKE, allow_infinite=True, temperature=number)


def test_constant_of_jax_passes_under_jit():
    beta = jnp.float32(0.5)
    doubled = jax.jit(lambda like: like + positive_like(like, beta=beta) + scalar_like(like, gamma=beta))(
        LIKE
    )
    np.testing.assert_array_equal(doubled, 1.0)


def test_traced_scalar_passes_unseen():
    np.testing.assert_array_equal(jax.vmap(lambda x: between_like(LIKE, 0.0, 1.0, lam=x))(jnp.ones(3)), 1.0)
    np.testing.assert_array_equal(jax.jit(lambda x: positive_like(LIKE, beta=x))(-1.0), -1.0)
