"""Summed response log-probs of a batch of pairs under any model that maps tokens to hidden states."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.batch import PairBatch
from jaxalign.ops.token_logps import token_logps

PairLogpsFn = Callable[[Any, Any, PairBatch], jax.Array]
"""(trainable params, frozen params, batch) -> [B, 2] float32, what the train step needs of a model."""


def sum_response_logps(
    hidden: jax.Array,
    head: jax.Array,
    tokens: jax.Array,
    response_mask: jax.Array,
    *,
    response_length: int,
    chunk_size: int,
    train_head: bool,
) -> jax.Array:
    """[N] float32 sums over the response tokens of hidden [N, L, D], tokens [N, L], response_mask [N, L].

    A response is one run of tokens. Only `response_length` positions of a row go through the head: at least the
    longest response of the data, or its end would be left out.
    """
    length = tokens.shape[1]
    first = jnp.argmax(response_mask, axis=1, keepdims=True)
    target = first + jnp.arange(response_length, dtype=first.dtype)[None, :]
    inside = (target < length) & (target > 0)
    target = jnp.clip(target, 1, length - 1)
    mask = jnp.take_along_axis(response_mask, target, axis=1) & inside
    states = jnp.take_along_axis(hidden, target[..., None] - 1, axis=1)
    targets = jnp.take_along_axis(tokens, target, axis=1)
    logps = token_logps(states, head, targets, chunk_size, None, train_head)
    return jnp.where(mask, logps, 0.0).sum(axis=1)


def pair_logps(
    hidden_fn: Callable[[jax.Array, jax.Array], jax.Array],
    head: jax.Array,
    batch: PairBatch,
    *,
    response_length: int,
    chunk_size: int = 128,
    train_head: bool = True,
) -> jax.Array:
    """[B, 2] float32 summed log-probs (nats) of both responses; `hidden_fn(tokens, positions)` gives [N, L, D].

    Raises AssertionError naming the shapes where the arrays of the batch do not belong together.
    """
    chex.assert_shape(batch.tokens, (None, 2, None))
    chex.assert_tree_shape_prefix(batch, batch.tokens.shape[:1])
    chex.assert_equal_shape([batch.tokens, batch.response_mask])
    num_pairs, _, length = batch.tokens.shape
    tokens = batch.tokens.reshape(2 * num_pairs, length)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], tokens.shape)
    sums = sum_response_logps(
        hidden_fn(tokens, positions),
        head,
        tokens,
        batch.response_mask.reshape(tokens.shape),
        response_length=response_length,
        chunk_size=chunk_size,
        train_head=train_head,
    )
    return sums.reshape(num_pairs, 2)


def without_prompts(batch: PairBatch, empty_prompt: ArrayLike) -> PairBatch:
    """The same responses after `empty_prompt` [E] instead of their prompts, in rows of the same length.

    Rows must have room for the empty prompt and the longest response: what does not fit is lost.
    """
    start = jnp.asarray(empty_prompt, batch.tokens.dtype)
    length, shift = batch.tokens.shape[2], len(start)
    position = jnp.arange(length)
    first = jnp.argmax(batch.response_mask, axis=2, keepdims=True)
    source = first + position[None, None, :] - shift
    inside = (position >= shift)[None, None, :] & (source < length)
    source = jnp.clip(source, 0, length - 1)
    mask = jnp.take_along_axis(batch.response_mask, source, axis=2) & inside
    tokens = jnp.take_along_axis(batch.tokens, source, axis=2)
    if shift:
        opening = start[jnp.minimum(position, shift - 1)]
        tokens = jnp.where((position < shift)[None, None, :], opening[None, None, :], tokens)
    return dataclasses.replace(batch, tokens=tokens, response_mask=mask)


def with_policy_mi(policy: jax.Array, alone: jax.Array, batch: PairBatch) -> PairBatch:
    """The batch with I(x; y) = [log p(y|x) - log p(y)] / |y| of the policy itself, nats per token; all [B, 2]."""
    lengths = jnp.maximum(batch.response_mask.sum(axis=2), 1).astype(policy.dtype)
    return dataclasses.replace(batch, mi=jax.lax.stop_gradient((policy - alone) / lengths))
