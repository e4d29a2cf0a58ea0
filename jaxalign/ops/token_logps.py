"""Log-probabilities of given tokens, holding the logits of no more than a chunk of them. Needs jax alone.

The loop over chunks and its gradient are in chunked_head.py. Which tokens are asked about, and how rows and head lie
on a mesh, is decided by the callers.
"""

import math
from numbers import Integral

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.ops.chunked_head import HeadOptions, inside, lse_and_target_logit

DEFAULT_CHUNK_SIZE = 1024
"""Large enough that a chunk's matmuls, and not the traffic of the head's gradient, take the time."""


def token_logps(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    soft_cap: float | None = None,
    train_head: bool = True,
    axis_name: str | None = None,
    gather_axis: str | None = None,
) -> jax.Array:
    """Log-probability of each target token under the softmax of `hidden @ head`, in nats.

    `log p(y | h) = z_y - log sum_v exp(z_v)`, where `z = h W` are the logits of a state h under the head W.

    The logits are made and dropped chunk by chunk, each with the whole vocabulary. The sums are float32 whatever the
    inputs are: in bf16 the log-probs of 1,000 tokens add up to an error of more than half a nat.

    Reverse-mode derivatives only. With a trained head the log-sum-exps are kept, and the backward pass makes the logits
    again, chunk by chunk; those of a single chunk, which is there in both passes anyway, are made once. With a frozen
    head the forward pass under differentiation also keeps the mean output embedding of each state, so that there is
    nothing to make again: two matmuls in all, against four, or three with a single chunk.

    On a mesh, inside `shard_map`, `head` may be one device's part. All devices along `axis_name` must then get the
    same `hidden` and `targets`. Outside of `shard_map` the compiler splits the work, which takes a mesh with
    `AxisType.Auto` axes; on one with explicit axes use `shard_map`.

    Args:
      hidden: [N, L, D] states that predict the targets, after the final norm. The matmuls run in their dtype.
      head: [D, V] output embedding.
      targets: [N, L] integer token ids; an id outside of the vocabulary gets NaN.
      chunk_size: tokens that are computed at a time, at most: `chunk_size // N` positions of each of the N
        sequences, or one. Outside of `shard_map` these are tokens of all devices together.
      soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.
      train_head: False for a frozen head, which gets no gradient.
      axis_name: mesh axis that splits the vocabulary: head is [D, V / devices]; targets remain ids of the whole.
      gather_axis: mesh axis that splits the rows of the head, [D / devices, V]: it is gathered in the dtype of
        `hidden`, and its gradient summed and split again in float32.

    Returns:
      [N, L] float32 log-probabilities.

    Raises:
      ValueError: if the shapes do not belong together, a dtype is of the wrong kind, or an option is out of range.

    Example:
      >>> logps = token_logps(jnp.zeros((1, 2, 4)), jnp.ones((4, 8)), jnp.zeros((1, 2), jnp.int32))
      >>> [f"{x:.4f}" for x in logps[0].tolist()]  # a uniform distribution over 8 tokens: -log 8
      ['-2.0794', '-2.0794']
    """
    _check_arrays(hidden, head, targets, 1 if gather_axis is None else lax.axis_size(gather_axis))
    _check_options(chunk_size, soft_cap)
    known = _in_vocabulary(targets, head.shape[1] * (1 if axis_name is None else lax.axis_size(axis_name)))
    hidden, head, columns = _varying_alike(hidden, head, targets.astype(jnp.int32))
    if axis_name is not None:
        columns -= lax.axis_index(axis_name) * head.shape[1]
    options = HeadOptions(int(chunk_size), soft_cap, train_head, gather_axis, head.dtype)
    lse, target_logit = lse_and_target_logit(hidden, head, columns, options)
    if axis_name is not None:
        peak = lax.pmax(lax.stop_gradient(lse), axis_name)
        total, target_logit = lax.psum((jnp.exp(lse - peak), target_logit), axis_name)
        lse = peak + jnp.log(total)
    return jnp.where(known, target_logit - lse, jnp.nan)


def _in_vocabulary(targets: jax.Array, vocab_size: int) -> jax.Array:
    """Whether each id is one, told before int32 cuts it; narrower integers may not hold the size."""
    return inside(targets if targets.dtype.itemsize >= 4 else targets.astype(jnp.int32), vocab_size)


def _check_arrays(hidden: jax.Array, head: jax.Array, targets: jax.Array, num_parts: int) -> None:
    if hidden.ndim != 3 or targets.shape != hidden.shape[:2]:
        raise ValueError(
            f"targets: got shape {targets.shape}, expected [N, L] of hidden {hidden.shape} = [N, L, D]"
        )
    if head.ndim != 2 or head.shape[0] * num_parts != hidden.shape[2] or head.shape[1] == 0:
        part = "" if num_parts == 1 else f" / {num_parts}, the devices along gather_axis"
        raise ValueError(
            f"head: got shape {head.shape}, expected [D, V] with D = {hidden.shape[2]}{part} and V of at least 1"
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets: got dtype {targets.dtype}, expected integer token ids")
    for name, array in (("hidden", hidden), ("head", head)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: got dtype {array.dtype}, expected floating-point numbers")


def _check_options(chunk_size: int, soft_cap: float | None) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, Integral) or chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size!r}, expected an integer of at least 1 token")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"soft_cap: got {soft_cap}, expected a positive, finite number, or None for no cap")


def _varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, all typed as different on each device of every mesh axis along which one of them is.

    The transpose of this is where the gradients of what was alike on several devices are summed: once per call.
    Outside of `shard_map`, or with check_vma=False, where `shard_map` itself does that, nothing happens.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    every = frozenset[str]().union(*varying)
    return [lax.pcast(x, tuple(every - axes), to="varying") for x, axes in zip(arrays, varying, strict=True)]
