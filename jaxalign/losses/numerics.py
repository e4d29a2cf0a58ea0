"""Length averages and exact forms of log(1 - e^x) and (e^z - 1) / z. No loss lives here."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import constants_like

CERTAIN = -1e-7  # nats per token; about the float32 next to a probability of 1
SMALL = 1e-2  # below it seven terms of (e^z - 1) / z and of its slope are exact in float64
CEILING = 40.0  # e^40 squared is still a float32, so that the norm of a gradient stays finite


def length_average(logps: jax.Array, **length: ArrayLike) -> jax.Array:
    """Log-probability per token, `logps / max(length, 1)`: a response without tokens gives 0, never NaN.

    `logps` is `[B]`, the one named length too. Raises ValueError, naming the length, if its shape differs.
    """
    (num_tokens,) = constants_like(logps, **length)
    return logps / jnp.maximum(num_tokens, 1.0)


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - e^x) of x < 0, to the last digits for x near 0 and far below, with a finite gradient."""
    near_zero = x > -math.log(2.0)
    # The second form must not see an x near 0: its slope is infinite there, and 0 times that is NaN.
    far = jnp.where(near_zero, -1.0, x)
    return jnp.where(near_zero, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(far)))


def log_odds(average_logps: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of p = e^x, where x <= 0. Above `CERTAIN` it is constant, so value and slope are finite."""
    uncertain = jnp.minimum(average_logps, CERTAIN)
    return uncertain - log1mexp(uncertain)


def expm1_ratio(z: jax.Array) -> jax.Array:
    """(e^z - 1) / z, which is 1 at 0. Above `CEILING` e^z goes on along its tangent instead of overflowing."""
    is_small = jnp.abs(z) < SMALL
    # The slope of the quotient has z squared below, which underflows: each form sees only what it is made for.
    small, large = jnp.where(is_small, z, 0.0), jnp.where(is_small, 1.0, z)
    terms = [1.0 / math.factorial(k + 1) for k in reversed(range(7))]
    series = functools.reduce(lambda total, term: total * small + term, terms, jnp.zeros_like(z))
    tangent = math.exp(CEILING) * jnp.maximum(large - CEILING, 0.0)
    return jnp.where(is_small, series, (jnp.expm1(jnp.minimum(large, CEILING)) + tangent) / large)
