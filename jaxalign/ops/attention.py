"""The choice among the implementations of attention. They all mean the same: see visibility.py for what.

Projections, rotary embedding and caches do not live here.
"""

import dataclasses
from typing import Any, Literal, get_args

from jax.typing import DTypeLike

from jaxalign.ops.blockwise import BlockwiseAttention
from jaxalign.ops.cudnn import CudnnAttention, why_cudnn_cannot
from jaxalign.ops.dense import DenseAttention
from jaxalign.ops.visibility import ATTENTION_RESULTS, Attention, is_visible, plain_places

__all__ = [
    "ATTENTION_RESULTS",
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
    interpret: bool = False,
) -> Attention:
    """One of the implementations of attention.

    Args:
        implementation: "dense" (the reference), "blockwise" (plain JAX), "splash" (TPU) or "cudnn" (GPU).
        sliding_window: number of latest positions that a query sees, its own included; None for all.
        soft_cap: the scores become `soft_cap * tanh(scores / soft_cap)`.
        scale: factor on q k^T; E**-0.5 by default.
        block_size: tokens that "blockwise" and "splash" compute at a time; their own choice by default.
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
    kinds: dict[str, type[Attention]] = {
        "dense": DenseAttention,
        "blockwise": BlockwiseAttention,
        "cudnn": CudnnAttention,
    }
    if implementation == "splash":
        from jaxalign.ops.splash import SplashAttention  # here, as importing Pallas takes a while

        kinds["splash"] = SplashAttention
    if implementation not in kinds:
        raise ValueError(
            f"implementation: got {implementation!r}, expected one of {get_args(Implementation)}"
        )
    given = {"block_size": block_size, "interpret": interpret or None}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    kind = kinds[implementation]
    if unknown := options.keys() - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"{implementation} attention has no {', '.join(sorted(unknown))}; leave it out")
    return kind(sliding_window, soft_cap, scale, **options)


def default_implementation(platform: str) -> Implementation:
    """What runs on "cpu", "gpu" or "tpu" unless something else is asked for; see `supported` for its limits."""
    kernels: dict[str, Implementation] = {"tpu": "splash", "gpu": "cudnn"}
    return kernels.get(platform, "blockwise")


def supported(
    implementation: Implementation,
    platform: str,
    *,
    head_dim: int,
    dtype: DTypeLike,
    soft_cap: float | None = None,
) -> str | None:
    """Why an implementation cannot run on a platform ("cpu", "gpu", "tpu") with such heads; None if it can."""
    runs_on = {"splash": "tpu", "cudnn": "gpu"}.get(implementation, platform)
    if runs_on != platform:
        return f"{implementation} attention runs on {runs_on} alone, not on {platform}"
    if implementation == "cudnn":
        return why_cudnn_cannot(head_dim=head_dim, dtype=dtype, soft_cap=soft_cap)
    return None
