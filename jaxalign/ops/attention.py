"""The choice among the implementations of attention. They all mean the same: see visibility.py for what.

Projections, rotary embedding and caches do not live here.
"""

from typing import Literal

from jaxalign.ops.dense import DenseAttention
from jaxalign.ops.visibility import Attention, is_visible, plain_places

__all__ = ["Attention", "Implementation", "causal_attention", "is_visible", "make_attention", "plain_places"]

Implementation = Literal["dense", "blockwise", "splash", "cudnn"]


def make_attention(
    implementation: Implementation,
    *,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    unfolded_length: int | None = None,
    block_size: int | None = None,
    interpret: bool = False,
) -> Attention:
    """One of the implementations of attention.

    Args:
        implementation: "dense" (the reference).
        sliding_window: number of latest positions that a query sees, its own included; None for all.
        soft_cap: the scores become `soft_cap * tanh(scores / soft_cap)`.
        scale: factor on q k^T; E**-0.5 by default.
        unfolded_length: tokens of a row once every prompt is repeated for its rejected response; for "splash".
        block_size: tokens that are computed at a time, by "blockwise" and "splash".
        interpret: run the kernel of "splash" without a TPU, slowly.

    Raises:
        ValueError: for an unknown implementation, or an option that it does not have.

    Example:
        >>> import jax.numpy as jnp
        >>> attention = make_attention("dense")
        >>> prepared = attention.prepare(plain_places(num_rows=1, length=3))
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> attention(x, x[:, :, :1], x[:, :, :1], prepared).shape
        (1, 3, 2, 4)
    """
    if implementation == "dense":
        return DenseAttention(sliding_window, soft_cap, scale)
    raise ValueError(f"implementation: got {implementation!r}, expected 'dense'")


def causal_attention(query, key, value, *, sliding_window=None, scale=None):  # type: ignore[no-untyped-def]
    """Plain causal attention; goes as soon as the decoder passes places."""
    attention = make_attention("dense", sliding_window=sliding_window, scale=scale)
    return attention(query, key, value, attention.prepare(plain_places(*query.shape[:2])))
