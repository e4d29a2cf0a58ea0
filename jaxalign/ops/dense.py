"""Attention over all pairs of tokens at once: short, plain, and the reference for the others. Needs jax alone."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.batch import Places
from jaxalign.ops.visibility import Attention, check_shapes, is_visible


@dataclasses.dataclass(frozen=True)
class DenseAttention(Attention):
    """Attention that holds all scores [N, H, L, L], the softmax in float32."""

    def prepare(self, places: Places) -> jax.Array:
        """Places [N, L] -> the mask [N, L, L]."""
        query = jax.tree.map(lambda x: x[:, :, None], places)
        key = jax.tree.map(lambda x: x[:, None, :], places)
        index = jnp.arange(places.segment.shape[1])
        return is_visible(
            query,
            key,
            query_index=index[None, :, None],
            key_index=index[None, None, :],
            sliding_window=self.sliding_window,
        )

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, prepared: jax.Array) -> jax.Array:
        """See `Attention`."""
        check_shapes(query, key, value)
        N, L, H, E = query.shape
        K = key.shape[2]
        # float32 inputs are multiplied as float32 on every platform.
        precision = jax.lax.Precision.HIGHEST if query.dtype == jnp.float32 else None
        # The groups become a dimension of the query, so that keys and values are never repeated in memory.
        grouped = query.reshape(N, L, K, H // K, E)
        scores = self.scale_for(E) * jnp.einsum(
            "nqkge,nske->nkgqs", grouped, key, preferred_element_type=jnp.float32, precision=precision
        )
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        scores = jnp.where(prepared[:, None, None], scores, -jnp.inf)  # a query always sees itself
        probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("nkgqs,nske->nqkge", probs, value, precision=precision)
        return mixed.reshape(N, L, H, E).astype(query.dtype)
