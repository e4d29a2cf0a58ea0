"""The choice among the implementations of attention. They all mean the same: see visibility.py for what.

Projections, rotary embedding and caches do not live here.
"""

from typing import Literal, get_args

from jax.typing import DTypeLike

from jaxalign.ops.blockwise import DEFAULT_BLOCK_SIZE, BlockwiseAttention
from jaxalign.ops.dense import DenseAttention
from jaxalign.ops.visibility import Attention, is_visible, plain_places

__all__ = [
    "Attention",
    "Implementation",
    "default_implementation",
    "is_visible",
    "make_attention",
    "plain_places",
    "supported",
]

Implementation = Literal["dense", "blockwise", "splash", "cudnn"]


def make_attention(
    implementation: Implementation,
    *,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    block_size: int | None = None,
) -> Attention:
    """One of the implementations of attention.

    Args:
        implementation: "dense" (the reference) or "blockwise" (plain JAX).
        sliding_window: number of latest positions that a query sees, its own included; None for all.
        soft_cap: the scores become `soft_cap * tanh(scores / soft_cap)`.
        scale: factor on q k^T; E**-0.5 by default.
        block_size: tokens that "blockwise" computes at a time.

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
    if implementation == "blockwise":
        return BlockwiseAttention(sliding_window, soft_cap, scale, block_size or DEFAULT_BLOCK_SIZE)
    raise ValueError(f"implementation: got {implementation!r}, expected one of {get_args(Implementation)}")


def default_implementation(platform: str) -> Implementation:
    """What runs on "cpu", "gpu" or "tpu" unless something else is asked for; see `supported` for its limits."""
    kernels: dict[str, Implementation] = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
    return kernels.get(platform, "blockwise")


def supported(
    implementation: Implementation,
    platform: str,
    *,
    head_dim: int,
    dtype: DTypeLike,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
) -> str | None:
    """Why an implementation cannot run on a platform ("cpu", "gpu", "tpu") with such heads; None if it can."""
    if implementation in ("splash", "cudnn"):
        return f"{implementation} is not there yet"
    return None
