"""Numbers in the configuration of a rule: plain and hashable where known, kept as they are where traced.

The checks of what an option may be live with each configuration.
"""

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp


def keep_numbers(config: Any, *names: str) -> None:
    """Replace fields of a frozen dataclass, given as scalars of numpy or jax, by floats.

    A traced scalar becomes a traced float32, and None stays where it is the default. Raises ValueError, naming
    the field, for what is no number.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        given = getattr(config, name)
        if given is not None or defaults[name] is not None:
            object.__setattr__(config, name, _number(name, given, "a number"))


def keep_numbers_per_category(config: Any, name: str) -> None:
    """As `keep_numbers`, for a field of one number or one per category: kept as a tuple, or as a traced [K]."""
    given = getattr(config, name)
    if is_known(given) and getattr(given, "ndim", 0) > 0:
        given = given.tolist()
    if isinstance(given, list | tuple):
        kept: Any = tuple(_number(name, number, "a number") for number in given)
    elif not is_known(given) and given.ndim == 1:
        kept = given.astype(jnp.float32)
    else:
        kept = _number(name, given, "one number for all categories or one per category")
    object.__setattr__(config, name, kept)


def keep_count(config: Any, name: str) -> None:
    """Replace a field by a plain integer of at least 1. Raises ValueError, naming it, for anything else."""
    given = getattr(config, name)
    try:
        count = operator.index(given)
    except TypeError as error:
        raise ValueError(f"{name}={given!r} must be an integer, known before any tracing") from error
    if count < 1:
        raise ValueError(f"{name}={count} must be at least 1")
    object.__setattr__(config, name, count)


def is_known(*options: Any) -> bool:
    """Whether no option is traced, so that its value may be checked."""
    return not any(isinstance(option, jax.core.Tracer) for option in options)


def in_order(*numbers: Any) -> bool:
    """Whether the known ones of the numbers are finite and never fall from one to the next."""
    known = [number for number in numbers if is_known(number)]
    return all(math.isfinite(number) for number in known) and known == sorted(known)


def check_ema_rate(ema_rate: Any) -> None:
    """Raise ValueError for a known rate outside of (0, 1]."""
    if is_known(ema_rate) and not 0 < ema_rate <= 1:
        raise ValueError(f"ema_rate={ema_rate} must be above 0 and at most 1")


def check_positive(name: str, number: Any) -> None:
    """Raise ValueError for a known number that is not positive and finite."""
    if is_known(number) and not 0 < number < math.inf:
        raise ValueError(f"{name}={number} must be positive and finite")


def _number(name: str, given: Any, expected: str) -> Any:
    if isinstance(given, jax.core.Tracer) and given.shape == ():
        return given.astype(jnp.float32)
    try:
        plain = given.tolist() if hasattr(given, "tolist") and is_known(given) else given
        if not isinstance(plain, str):
            return float(plain)
    except TypeError:  # neither a number nor a scalar array of one
        pass
    raise ValueError(f"{name}={given!r} must be {expected}")
