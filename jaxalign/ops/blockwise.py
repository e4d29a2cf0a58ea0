"""Attention block by block in plain JAX: memory linear in the length, and no work where nobody sees anybody.

What runs on CPUs, and anywhere else where no kernel of the platform fits. A block is too little to be split over cores:
a CPU is used fully with one device for each core, under `shard_map`. Needs jax alone.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxalign.batch import Places
from jaxalign.ops.visibility import ATTENTION_RESULTS, Attention, check_shapes, is_visible

DEFAULT_BLOCK_SIZE = 64
"""Measured on CPU: of larger blocks more is masked, and their scores leave the nearest caches."""

Tokens = tuple[Places, jax.Array]
"""Places and columns of the tokens of a block, [S] each."""

_LOWEST = -1e30
"""Stands for minus infinity as a starting maximum: exp(-inf - _LOWEST) is 0, where exp(-inf + inf) is not a number."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The B blocks of each row, S tokens each, and which of them must be computed.

    places       Places [N, B, S]   padded to whole blocks
    column       [N, B, S] int32    where each token stands in its row
    keys         [N, B, B] int32    for each query block the key blocks it sees, then those that it does not
    num_keys     [N, B]    int32    how many it sees
    queries      [N, B, B] int32    for each key block the query blocks that see it, then the others
    num_queries  [N, B]    int32    how many see it
    length       L, tokens of a row without padding
    """

    places: Places
    column: jax.Array
    keys: jax.Array
    num_keys: jax.Array
    queries: jax.Array
    num_queries: jax.Array
    length: int = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class BlockwiseAttention(Attention):
    """Attention with an online softmax over blocks; the backward pass recomputes from the log-sum-exp."""

    block_size: int = DEFAULT_BLOCK_SIZE

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"block_size: got {self.block_size}, expected at least 1")

    def prepare(self, places: Places) -> Blocks:
        """Places [N, L] -> which blocks see which."""
        N, L = places.segment.shape
        if N * L == 0:
            raise ValueError(f"places have shape {(N, L)}, expected at least one row of at least one token")
        S = min(self.block_size, L)
        B = -(-L // S)
        places = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, B * S - L))).reshape(N, B, S), places)
        column = jnp.broadcast_to(jnp.arange(B * S, dtype=jnp.int32).reshape(1, B, S), (N, B, S))
        sees = self._sees(places, column)
        keys, num_keys = _seen_first(sees)
        queries, num_queries = _seen_first(sees.transpose(0, 2, 1))
        return Blocks(places, column, keys, num_keys, queries, num_queries, L)

    def _sees(self, places: Places, column: jax.Array) -> jax.Array:
        """Whether any token of a query block sees any of a key block: [N, B, B]."""

        def of_query_block(block: tuple[Places, jax.Array]) -> jax.Array:
            query, index = jax.tree.map(lambda x: x[:, :, None, None], block)
            key, key_index = jax.tree.map(lambda x: x[:, None], (places, column))
            visible = is_visible(
                query, key, query_index=index, key_index=key_index, sliding_window=self.sliding_window
            )
            return (visible & (query.segment > 0)).any(axis=(1, 3))  # nobody reads what padding gets

        blocks = jax.tree.map(lambda x: x.swapaxes(0, 1), (places, column))
        return lax.map(of_query_block, blocks).swapaxes(0, 1)  # one block at a time: memory linear in L

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, prepared: Blocks) -> jax.Array:
        """See `Attention`."""
        check_shapes(query, key, value)
        N, L, H, E = query.shape
        K = key.shape[2]
        rows, B, S = prepared.column.shape
        if (rows, prepared.length) != (N, L):
            raise ValueError(
                f"query has rows [N, L] = {(N, L)}, but was given what was prepared for {(rows, prepared.length)}; "
                "prepare the places of these rows"
            )

        def to_blocks(x: jax.Array) -> jax.Array:
            """[N, L, K * G, E] -> [N * B, K, G * S, E], a block in one piece of memory."""
            x = jnp.pad(x, ((0, 0), (0, B * S - L), (0, 0), (0, 0)))
            x = x.reshape(N * B, S, K, -1, E).transpose(0, 2, 3, 1, 4)
            return x.reshape(N * B, K, -1, E)

        mixed = _attend(self, to_blocks(query), to_blocks(key), to_blocks(value), prepared)
        mixed = mixed.reshape(N, B, H, S, E).transpose(0, 1, 3, 2, 4)
        return mixed.reshape(N, B * S, H, E)[:, :L]

    def scores(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Of a query block [K, G * S, E] against a key block [K, S, E]: [K, G * S, S], capped, float32."""
        scores = self.scale_for(query.shape[-1]) * _product("kqe,kse->kqs", query, key)
        return scores if self.soft_cap is None else self.soft_cap * jnp.tanh(scores / self.soft_cap)

    def masked(self, scores: jax.Array, query: Tokens, key: Tokens) -> jax.Array:
        """The scores [K, G * S, S] with -inf where the query does not see the key."""
        q_places, q_column = jax.tree.map(lambda x: x[:, None], query)
        k_places, k_column = jax.tree.map(lambda x: x[None, :], key)
        visible = is_visible(
            q_places, k_places, query_index=q_column, key_index=k_column, sliding_window=self.sliding_window
        )
        K, _, S = scores.shape
        grouped = jnp.where(visible[None, None], scores.reshape(K, -1, S, S), -jnp.inf)
        return grouped.reshape(scores.shape)


def _seen_first(sees: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[N, B, B] bool -> the columns of each line, the true ones first and in order, and how many are true."""
    order = jnp.argsort(~sees, axis=2, stable=True)
    return order.astype(jnp.int32), sees.sum(axis=2, dtype=jnp.int32)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # float32 inputs are multiplied as float32 on every platform.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32, precision=precision)


def _at(tree: Any, index: jax.Array) -> Any:
    """The block of this index of every array."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), tree)


def _of_all_rows(blocks: Blocks) -> Blocks:
    """The blocks of all rows in one line, [N * B, ...], and indices into that line."""
    N, B, _ = blocks.column.shape
    start = B * jnp.arange(N, dtype=jnp.int32)[:, None, None]
    blocks = dataclasses.replace(blocks, keys=blocks.keys + start, queries=blocks.queries + start)
    return jax.tree.map(lambda x: x.reshape(N * B, *x.shape[2:]), blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    attention: BlockwiseAttention, query: jax.Array, key: jax.Array, value: jax.Array, blocks: Blocks
) -> jax.Array:
    """query [N * B, K, G * S, E], key and value [N * B, K, S, E] -> [N * B, K, G * S, E]."""
    return _forward(attention, query, key, value, blocks)[0]


def _forward(
    attention: BlockwiseAttention, query: jax.Array, key: jax.Array, value: jax.Array, blocks: Blocks
) -> tuple[jax.Array, tuple[Any, ...]]:
    rows = _of_all_rows(blocks)
    tokens = (rows.places, rows.column)

    def query_block(block: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        q, q_tokens, seen, num_seen = block

        def key_block(at: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            highest, total, mixed = state
            k, v, k_tokens = _at((key, value, tokens), seen[at])
            scores = attention.masked(attention.scores(q, k), q_tokens, k_tokens)
            new_highest = jnp.maximum(highest, scores.max(axis=-1))
            probs = jnp.exp(scores - new_highest[..., None])
            shrink = jnp.exp(highest - new_highest)
            total = total * shrink + probs.sum(axis=-1)
            mixed = mixed * shrink[..., None] + _product("kqs,kse->kqe", probs.astype(v.dtype), v)
            return new_highest, total, mixed

        empty = jnp.full(q.shape[:-1], _LOWEST), jnp.zeros(q.shape[:-1]), jnp.zeros(q.shape, jnp.float32)
        highest, total, mixed = lax.fori_loop(0, num_seen, key_block, empty)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # of padding, which may have seen nothing
        return (mixed / total[..., None]).astype(q.dtype), highest + jnp.log(total)

    results = lax.map(query_block, (query, tokens, rows.keys, rows.num_keys))
    mixed, lse = checkpoint_name(results, ATTENTION_RESULTS)
    return mixed, (query, key, value, blocks, mixed, lse)


def _backward(
    attention: BlockwiseAttention, saved: tuple[Any, ...], grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    query, key, value, blocks, mixed, lse = saved
    rows = _of_all_rows(blocks)
    tokens = (rows.places, rows.column)
    # sum_k p_k dp_k, which the softmax takes from every dp, is the product of the output and its gradient.
    delta = (mixed.astype(jnp.float32) * grad.astype(jnp.float32)).sum(axis=-1)
    scale, cap = attention.scale_for(query.shape[-1]), attention.soft_cap

    def key_block(
        d_query: jax.Array, block: tuple[Any, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        k, v, k_tokens, seen_by, num_seen_by = block

        def query_block(at: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            d_query, d_k, d_v = state
            index = seen_by[at]
            q, g, q_tokens, q_lse, q_delta = _at((query, grad, tokens, lse, delta), index)
            scores = attention.scores(q, k)
            probs = jnp.exp(attention.masked(scores, q_tokens, k_tokens) - q_lse[..., None])
            d_scores = scale * probs * (_product("kqe,kse->kqs", g, v) - q_delta[..., None])
            if cap is not None:
                d_scores *= 1 - jnp.square(scores / cap)
            d_scores = d_scores.astype(q.dtype)
            d_v += _product("kqs,kqe->kse", probs.astype(g.dtype), g)
            d_k += _product("kqs,kqe->kse", d_scores, q)
            d_q = _at(d_query, index) + _product("kqs,kse->kqe", d_scores, k)
            return lax.dynamic_update_index_in_dim(d_query, d_q, index, 0), d_k, d_v

        zeros = jnp.zeros(k.shape, jnp.float32)
        d_query, d_k, d_v = lax.fori_loop(0, num_seen_by, query_block, (d_query, zeros, zeros))
        return d_query, (d_k.astype(k.dtype), d_v.astype(v.dtype))

    start = jnp.zeros(query.shape, jnp.float32)
    of_keys = (key, value, tokens, rows.queries, rows.num_queries)
    d_query, (d_key, d_value) = lax.scan(key_block, start, of_keys)
    return d_query.astype(query.dtype), d_key, d_value, None


_attend.defvjp(_forward, _backward)
