"""Floating-point promotion and shape checks of the pure functions in losses and adaptive.

Needs jax alone. No mathematics of a method may live here.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """The array in the precision that it is computed in: float64 stays, everything else becomes float32."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def matching_floats(**arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The named arrays as floats of one dtype. Raises ValueError, naming the argument, if a shape differs."""
    given = {name: _array(name, array) for name, array in arrays.items()}
    first = next(iter(given))
    for name, array in given.items():
        _require_shape(name, array, given[first].shape, f"the shape of {first}")
    floats = [as_float(array) for array in given.values()]
    dtype = jnp.float64 if any(array.dtype == jnp.float64 for array in floats) else jnp.float32
    return tuple(array.astype(dtype) for array in floats)


def constants_like(like: jax.Array, **arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """The named arrays in the dtype of `like`, cut off from the gradient.

    Raises ValueError, naming the argument, if a shape is not that of `like`.
    """
    given = {name: _array(name, array) for name, array in arrays.items()}
    for name, array in given.items():
        _require_shape(name, array, like.shape, "one value per pair")
    return tuple(jax.lax.stop_gradient(array.astype(like.dtype)) for array in given.values())


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


def membership(categories: ArrayLike) -> jax.Array:
    """True where a pair belongs to a category: where the entry is above 0, or is True."""
    given = _array("categories", categories)
    return given if given.dtype == bool else given > jnp.zeros((), given.dtype)


def replicated(x: jax.Array) -> jax.Array:
    """The array whole on every device where its sharding is part of its type (explicit mesh axes), else as it is."""
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def _array(name: str, given: ArrayLike) -> jax.Array:
    try:
        array = jnp.asarray(given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}={given!r} is neither a number nor an array of numbers") from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} is {array.dtype}, expected real numbers")
    return array


def _one_scalar(scalars: dict[str, ArrayLike]) -> tuple[str, ArrayLike, float | None]:
    """Name, scalar and its number, which is None while it is traced."""
    ((name, scalar),) = scalars.items()
    _require_shape(name, _array(name, scalar), (), "a scalar")
    if isinstance(scalar, jax.core.Tracer):
        return name, scalar, None
    # Only an array on a device is fetched, and once: it keeps its copy. A constant under jit is checked like any other.
    return name, scalar, float(jax.device_get(scalar))


def _require_shape(name: str, array: jax.Array, expected: tuple[int, ...], meaning: str) -> None:
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, expected {expected} ({meaning})")
