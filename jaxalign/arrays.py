"""Floating-point promotion and shape checks of the pure functions in losses and adaptive.

Needs jax alone. No mathematics of a method may live here.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """The array in the precision that it is computed in: float64 stays, everything else becomes float32."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def matching_floats(**arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The named arrays as floats of one dtype. Raises ValueError, naming the argument, if a shape differs."""
    first = next(iter(arrays))
    shape = jnp.shape(arrays[first])
    for name, array in arrays.items():
        _require_shape(name, array, shape, f"the shape of {first}")
    floats = [as_float(array) for array in arrays.values()]
    dtype = jnp.float64 if any(array.dtype == jnp.float64 for array in floats) else jnp.float32
    return tuple(array.astype(dtype) for array in floats)


def constants_like(like: jax.Array, **arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The named arrays in the dtype of `like`, cut off from the gradient.

    Raises ValueError, naming the argument, if a shape is not that of `like`.
    """
    for name, array in arrays.items():
        _require_shape(name, array, like.shape, "one value per pair")
    return tuple(jax.lax.stop_gradient(jnp.asarray(array).astype(like.dtype)) for array in arrays.values())


def scalar_like(like: jax.Array, **scalars: ArrayLike) -> jax.Array:
    """The one named scalar in the dtype of `like`.

    Raises ValueError, naming it, if it is not a scalar or not finite. A traced one passes unseen.
    """
    name, scalar, number = _one_scalar(scalars)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name}={number} must be finite")
    return jnp.asarray(scalar).astype(like.dtype)


def positive_like(
    like: jax.Array, *, allow_zero: bool = False, allow_infinite: bool = False, **scalars: ArrayLike
) -> jax.Array:
    """As `scalar_like`; raises ValueError also if the scalar is not positive."""
    name, scalar, number = _one_scalar(scalars)
    if number is not None:
        is_positive = number > 0 or (allow_zero and number == 0)
        if not is_positive or (math.isinf(number) and not allow_infinite):
            expected = "not negative" if allow_zero else "positive"
            raise ValueError(f"{name}={number} must be {expected}{'' if allow_infinite else ' and finite'}")
    return jnp.asarray(scalar).astype(like.dtype)


def between_like(
    like: jax.Array, low: float, high: float, *, allow_low: bool = False, **scalars: ArrayLike
) -> jax.Array:
    """As `scalar_like`, for a scalar between two bounds that it may not reach, or only the lower one."""
    name, scalar, number = _one_scalar(scalars)
    if number is not None and not (low < number < high or (allow_low and number == low)):
        raise ValueError(f"{name}={number} must be in {'[' if allow_low else '('}{low:g}, {high:g})")
    return jnp.asarray(scalar).astype(like.dtype)


def _one_scalar(scalars: dict[str, ArrayLike]) -> tuple[str, ArrayLike, float | None]:
    """Name, scalar and its number, which is None while it is traced."""
    ((name, scalar),) = scalars.items()
    _require_shape(name, scalar, (), "a scalar")
    if isinstance(scalar, jax.core.Tracer):
        return name, scalar, None
    # Only an array on a device is fetched, and once: it keeps its copy. A constant under jit is checked like any other.
    return name, scalar, float(jax.device_get(scalar))


def _require_shape(name: str, array: ArrayLike, expected: tuple[int, ...], meaning: str) -> None:
    if jnp.shape(array) != expected:
        raise ValueError(f"{name} has shape {jnp.shape(array)}, expected {expected} ({meaning})")
