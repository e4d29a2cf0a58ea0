"""Attention by cuDNN's fused kernel, for NVIDIA GPUs, in half precision. Needs jax alone."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxalign.batch import Places
from jaxalign.ops.dense import DenseAttention
from jaxalign.ops.visibility import Attention, check_shapes


def why_cudnn_cannot(*, head_dim: int, dtype: DTypeLike, soft_cap: float | None) -> str | None:
    """What of such heads cuDNN cannot compute on the GPUs at hand; None if it can."""
    if soft_cap is not None:
        return f"cuDNN's attention has no soft cap of scores, and the model has one of {soft_cap}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN's attention computes in bfloat16 or float16, and the heads are {jnp.dtype(dtype)}"
    if head_dim % 8 or head_dim > _widest_head():
        return f"cuDNN's attention takes heads of a multiple of 8, at most {_widest_head()}, and these have {head_dim}"
    return None


def _widest_head() -> int:
    """As of compute capability 9.0 heads may be twice as wide; where there is no GPU to ask, the narrow limit."""
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return 256 if float(capability) >= 9.0 else 128


@dataclasses.dataclass(frozen=True)
class CudnnAttention(Attention):
    """Attention without scores in memory, though with its mask: [N, 1, L, L], shared by all heads and layers."""

    implementation: Literal["cudnn", "xla"] = "cudnn"  # the same call means the same without a GPU

    def prepare(self, places: Places) -> jax.Array:
        """Places [N, L] -> the mask [N, 1, L, L]."""
        return DenseAttention(sliding_window=self.sliding_window).prepare(places)[:, None]

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, prepared: jax.Array) -> jax.Array:
        """See `Attention`. Raises ValueError for what cuDNN cannot compute, too."""
        check_shapes(query, key, value)
        L, E = query.shape[1], query.shape[3]
        reason = why_cudnn_cannot(head_dim=E, dtype=query.dtype, soft_cap=self.soft_cap)
        if reason is None and L % 2:
            reason = f"cuDNN's attention takes rows of an even length, and these have {L} tokens"
        if reason is not None:
            raise ValueError(f"{reason}; use blockwise attention")
        return jax.nn.dot_product_attention(
            query, key, value, mask=prepared, scale=self.scale_for(E), implementation=self.implementation
        )
