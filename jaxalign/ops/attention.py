"""Attention over padded rows: one definition of who sees whom, and the dense form that is the reference.

Pure functions of arrays, jax alone. Projections, rotary embedding and caches do not live here.
"""

import jax
import jax.numpy as jnp


def is_visible(query_index: jax.Array, key_index: jax.Array, *, sliding_window: int | None) -> jax.Array:
    """Whether a query sees a key; the indices broadcast, and a sliding window counts the query itself."""
    visible = key_index <= query_index
    if sliding_window is not None:
        visible &= key_index > query_index - sliding_window
    return visible


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    sliding_window: int | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Causal softmax attention with grouped key/value heads.

    softmax(scale * q k^T + mask) v, the softmax in float32. Rows are padded on the right: no real token
    sees padding, and what padded queries compute is meaningless.

    Args:
        query: [N, L, H, E].
        key: [N, L, K, E], where K divides H; key head k serves query heads k*H/K to (k+1)*H/K - 1.
        value: [N, L, K, E].
        sliding_window: number of latest keys that a query sees, itself included; None for all.
        scale: factor on the scores; E**-0.5 by default.

    Returns:
        [N, L, H, E] in the dtype of `query`.

    Raises:
        ValueError: if the shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((1, 3, 2, 4))
        >>> causal_attention(x, x[:, :, :1], x[:, :, :1]).shape
        (1, 3, 2, 4)
    """
    N, L, H, E = query.shape
    K = key.shape[2]
    if key.shape != (N, L, K, E) or value.shape != key.shape or H % K:
        raise ValueError(
            f"query {query.shape}, key {key.shape}, value {value.shape}: expected [N, L, H, E], [N, L, K, E] "
            "and [N, L, K, E] with K dividing H"
        )
    if scale is None:
        scale = E**-0.5
    # The groups become a dimension of the query, so that keys and values are never repeated in memory.
    grouped = query.reshape(N, L, K, H // K, E)
    scores = jnp.einsum("nqkge,nske->nkgqs", grouped, key, preferred_element_type=jnp.float32)
    index = jnp.arange(L)
    mask = is_visible(index[:, None], index[None, :], sliding_window=sliding_window)
    scores = jnp.where(mask[None, None, None], scores * scale, -jnp.inf)  # a query always sees itself
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nkgqs,nske->nqkge", probs, value).reshape(N, L, H, E)
