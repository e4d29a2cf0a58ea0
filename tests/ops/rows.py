"""Random rows of the four layouts, heads to attend with, and what attention makes of them."""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.batch import CHOSEN, PROMPT, REJECTED, Places
from jaxalign.ops.attention import Attention

Layout = Literal["padded", "padded shared", "packed", "packed shared"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def _item(rng: np.random.Generator, room: int, shared: bool) -> np.ndarray:
    """(branch, position) of each token of a sequence or of a pair of at most `room` tokens."""
    branches = [CHOSEN, REJECTED] if shared else [int(rng.choice([CHOSEN, REJECTED]))]
    prompt, *responses = rng.integers(1, max(2, room // (1 + len(branches)) + 1), 1 + len(branches))
    parts = [np.stack([np.full(prompt, PROMPT), np.arange(prompt)], axis=1)]
    for branch, length in zip(branches, responses, strict=True):
        parts.append(np.stack([np.full(length, branch), prompt + np.arange(length)], axis=1))
    return np.concatenate(parts)[:room]


def random_places(layout: Layout, *, num_rows: int, length: int, seed: int = 0) -> Places:
    """Places [num_rows, length] with some padding: one item a row where padded, several where packed."""
    rng = np.random.default_rng(seed)
    places = np.zeros((3, num_rows, length), np.int32)
    for row in range(num_rows):
        filled, segment, end = 0, 1, length - int(rng.integers(0, length // 4 + 1))
        while filled < end:
            room = end - filled
            if layout.startswith("packed"):
                room = min(room, int(rng.integers(length // 4, length // 2 + 2)))
            branch, position = _item(rng, room, "shared" in layout).T
            stop = filled + len(branch)
            places[:, row, filled:stop] = np.full(len(branch), segment), branch, position
            filled, segment = stop, segment + 1
            if layout.startswith("padded"):
                break
    return Places(*jnp.asarray(places))


def random_heads(
    seed: int, N: int = 2, L: int = 7, H: int = 4, K: int = 2, E: int = 6, dtype: jnp.dtype = jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """query [N, L, H, E], key and value [N, L, K, E]."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = (N, L, H, E), (N, L, K, E), (N, L, K, E)
    query, key, value = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True))
    return query, key, value


@functools.partial(jax.jit, static_argnums=0)
def _run(
    attention: Attention, prepared: Any, real: jax.Array, heads: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    mixed, pull = jax.vjp(lambda *x: jnp.where(real, attention(*x, prepared), 0), *heads)
    return mixed, *pull(jnp.cos(mixed))


def value_and_gradients(
    attention: Attention, places: Places, heads: tuple[jax.Array, ...]
) -> list[np.ndarray]:
    """The output of real tokens, and the gradients of query, key and value through it."""
    real = (places.segment > 0)[:, :, None, None]
    prepared = jax.jit(attention.prepare)(places)
    return [np.asarray(x, np.float32) for x in _run(attention, prepared, real, heads)]
