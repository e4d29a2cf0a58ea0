"""Summed response log-probs of a batch of pairs under any model that maps rows of tokens to hidden states."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxalign.batch import PairBatch, Rows
from jaxalign.ops.token_logps import token_logps

PairLogpsFn = Callable[[Any, Any, PairBatch], jax.Array]
"""(trainable params, frozen params, batch) -> [B, 2] float32, what the train step needs of a model."""

HeadFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(hidden [G, S, D], head [D, V], targets [G, S]) -> [G, S] float32 log-probs, as `jaxalign.ops.token_logps` does."""


def predicting_states(hidden: jax.Array, rows: Rows) -> jax.Array:
    """[G, S, D], the states of hidden [N, L, D] that predict the response tokens."""
    num_rows, length, width = hidden.shape
    num_groups = rows.predictor.shape[0]
    groups = hidden.reshape(num_groups, num_rows // num_groups * length, width)
    return jnp.take_along_axis(groups, rows.predictor[..., None], axis=1)


def sum_by_response(logps: jax.Array, response: jax.Array, num_pairs: int) -> jax.Array:
    """[B, 2] sums of token log-probs [G, S] over the tokens of each response; -1 belongs to none."""
    # Comparing and not scattering: the order of the additions, and so the result, is the same on every run.
    number = jnp.arange(2 * num_pairs, dtype=response.dtype)
    member = response[..., None] == number[None, None, :]
    return jnp.where(member, logps[..., None], 0.0).sum(axis=(0, 1)).reshape(num_pairs, 2)


def rows_logps(
    hidden: jax.Array, head: jax.Array, rows: Rows, num_pairs: int, head_fn: HeadFn = token_logps
) -> jax.Array:
    """[B, 2] float32 summed log-probs (nats) of both responses of each pair, from hidden [N, L, D], head [D, V].

    Only the states that predict response tokens go through the head. A response without tokens has 0.
    Raises AssertionError naming the shapes where the arrays do not belong together.
    """
    chex.assert_equal_shape([rows.predictor, rows.target, rows.response])
    chex.assert_shape(hidden, (*rows.tokens.shape, None))
    chex.assert_is_divisible(rows.tokens.shape[0], rows.predictor.shape[0])
    logps = head_fn(predicting_states(hidden, rows), head, rows.target)
    return sum_by_response(logps, rows.response, num_pairs)


def pair_logps(
    hidden_fn: Callable[[Rows], jax.Array],
    head: jax.Array,
    batch: PairBatch,
    *,
    head_fn: HeadFn = token_logps,
) -> jax.Array:
    """[B, 2] float32 summed log-probs (nats) of both responses; `hidden_fn(rows)` gives [N, L, D].

    Raises AssertionError naming the shapes where the arrays of the batch do not belong together.
    """
    of_pairs = {name: x for name, x in vars(batch).items() if name not in ("rows", "alone")}
    chex.assert_tree_shape_prefix(of_pairs, batch.weight.shape)
    return rows_logps(hidden_fn(batch.rows), head, batch.rows, len(batch.weight), head_fn)


def without_prompts(batch: PairBatch) -> PairBatch:
    """The same responses after the empty prompt. Raises ValueError for a batch that was made without them."""
    if batch.alone is None:
        raise ValueError(
            "the batch has no rows of responses alone (batch.alone is None); make the loader with alone=True"
        )
    return dataclasses.replace(batch, rows=batch.alone, alone=None)


def with_policy_mi(policy: jax.Array, alone: jax.Array, batch: PairBatch) -> PairBatch:
    """The batch with I(x; y) = [log p(y|x) - log p(y)] / |y| of the policy itself, nats per token; all [B, 2]."""
    lengths = jnp.maximum(batch.lengths, 1).astype(policy.dtype)
    return dataclasses.replace(batch, mi=jax.lax.stop_gradient((policy - alone) / lengths))
