"""Log-probabilities of given tokens without ever holding the logits of all of them. Needs jax alone.

Which tokens are asked about, and how rows and head lie on a mesh, is decided by the callers.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

DEFAULT_CHUNK_SIZE = 1024
"""Large enough that a chunk's matmuls, and not the traffic of the head's gradient, take the time."""


class _Options(NamedTuple):
    """What is static: the options of `token_logps`, and the dtype in which the head's gradient goes back."""

    chunk_size: int
    soft_cap: float | None
    train_head: bool
    gather_axis: str | None
    head_dtype: DTypeLike


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
    r"""Log-probability of each target token under the softmax of `hidden @ head`, in nats.

    .. math:: \log p(y \mid h) = z_y - \log \sum_v \exp z_v, \qquad z = h W

    The logits are made and dropped chunk by chunk, each with the whole vocabulary. The sums are float32 whatever the
    inputs are: in bf16 the log-probs of 1,000 tokens add up to an error of more than half a nat.

    Reverse-mode derivatives only. With a trained head the log-sum-exps are kept and the backward pass makes the logits
    again. With a frozen one the forward pass under differentiation also keeps the mean output embedding of each state,
    so that there is nothing to make again: two matmuls in all, against four.

    On a mesh, inside `shard_map`, `head` may be one device's part. All devices along `axis_name` must then get the
    same `hidden` and `targets`.

    Args:
      hidden: [N, L, D] states that predict the targets, after the final norm. The matmuls run in their dtype.
      head: [D, V] output embedding.
      targets: [N, L] integer token ids; an id outside of the vocabulary gets NaN.
      chunk_size: positions of each of the N sequences that are computed at a time, at most.
      soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.
      train_head: False for a frozen head, which gets no gradient.
      axis_name: mesh axis that splits the vocabulary: head is [D, V / devices]; targets remain ids of the whole.
      gather_axis: mesh axis that splits the rows of the head, [D / devices, V]: it is gathered in the dtype of
        `hidden`, and its gradient summed and split again in float32.

    Returns:
      [N, L] float32 log-probabilities.

    Raises:
      ValueError: if the shapes do not belong together, targets are no integers, or an option is out of range.

    Example:
      >>> logps = token_logps(jnp.zeros((1, 2, 4)), jnp.ones((4, 8)), jnp.zeros((1, 2), jnp.int32))
      >>> [f"{x:.4f}" for x in logps[0].tolist()]  # a uniform distribution over 8 tokens: -log 8
      ['-2.0794', '-2.0794']
    """
    _check_arrays(hidden, head, targets, 1 if gather_axis is None else lax.axis_size(gather_axis))
    _check_options(chunk_size, soft_cap)
    vocab_size = head.shape[1]
    targets = targets.astype(jnp.int32)
    hidden, head, columns = _varying_alike(hidden, head, targets)
    if axis_name is not None:
        columns -= lax.axis_index(axis_name) * vocab_size
        vocab_size *= lax.axis_size(axis_name)
    options = _Options(chunk_size, soft_cap, train_head, gather_axis, head.dtype)
    lse, target_logit = _lse_and_target_logit(hidden, head, columns, options)
    if axis_name is not None:
        peak = lax.pmax(lax.stop_gradient(lse), axis_name)
        total, target_logit = lax.psum((jnp.exp(lse - peak), target_logit), axis_name)
        lse = peak + jnp.log(total)
    return jnp.where(_inside(targets, vocab_size), target_logit - lse, jnp.nan)


def _check_arrays(hidden: jax.Array, head: jax.Array, targets: jax.Array, num_parts: int) -> None:
    if hidden.ndim != 3 or targets.shape != hidden.shape[:2]:
        raise ValueError(
            f"targets: got shape {targets.shape}, expected [N, L] of hidden {hidden.shape} = [N, L, D]"
        )
    if head.ndim != 2 or head.shape[0] * num_parts != hidden.shape[2]:
        part = "" if num_parts == 1 else f" / {num_parts}, the devices along gather_axis"
        raise ValueError(f"head: got shape {head.shape}, expected [D, V] with D = {hidden.shape[2]}{part}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets: got dtype {targets.dtype}, expected integer token ids")


def _check_options(chunk_size: int, soft_cap: float | None) -> None:
    if operator.index(chunk_size) < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1 position")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap: got {soft_cap}, expected a positive number, or None for no cap")


def _varying_alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, all typed as different on each device of every mesh axis along which one of them is.

    The transpose of this is where the gradients of what was alike on several devices are summed: once per call.
    Outside of `shard_map`, or with check_vma=False, where `shard_map` itself does that, nothing happens.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    every = frozenset[str]().union(*varying)
    return [lax.pcast(x, tuple(every - axes), to="varying") for x, axes in zip(arrays, varying, strict=True)]


def _inside(ids: jax.Array, size: int) -> jax.Array:
    return (ids >= 0) & (ids < size)


def _chunks(x: jax.Array, chunk_size: int) -> jax.Array:
    """[N, L, ...] to [chunks, N, L / chunks, ...], as few equal chunks as there can be; N keeps its sharding."""
    length = x.shape[1]
    num_chunks = max(-(-length // chunk_size), 1)
    pad = -length % num_chunks
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(x.shape[0], num_chunks, -(-length // num_chunks), *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :length]


def _product(equation: str, a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    # float32 inputs are multiplied as float32 everywhere, and the backward pass as the forward pass.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(equation, a, b, preferred_element_type=dtype, precision=precision)


def _embedding(head: jax.Array, dtype: DTypeLike, gather_axis: str | None) -> jax.Array:
    """[V, D], whole rows. Of a head that is tied to the input embedding this undoes a transpose and copies nothing."""
    head = head.astype(dtype)
    return (head if gather_axis is None else lax.all_gather(head, gather_axis, axis=0, tiled=True)).T


def _logits(hidden: jax.Array, embedding: jax.Array, soft_cap: float | None) -> jax.Array:
    logits = _product("ncd,vd->ncv", hidden, embedding, jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _cap_slope(logits: jax.Array, soft_cap: float | None) -> jax.Array | float:
    """Derivative of capped logits with respect to the uncapped ones."""
    return 1.0 if soft_cap is None else 1.0 - (logits / soft_cap) ** 2


def _is_target(columns: jax.Array, logits: jax.Array) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == columns[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _lse_and_target_logit(
    hidden: jax.Array, head: jax.Array, columns: jax.Array, options: _Options
) -> tuple[jax.Array, jax.Array]:
    """[N, L] log-sum-exps over the columns of `head`, and logits of `columns`, 0 where that is not one of them."""
    return _forward(hidden, head, columns, options, keep_means=False)[0]


def _forward(
    hidden: jax.Array, head: jax.Array, columns: jax.Array, options: _Options, keep_means: bool
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]:
    """Log-sum-exps and target logits; and the [V, D] embedding, with the mean embeddings [N, L, D] if they are kept."""
    embedding = _embedding(head, hidden.dtype, options.gather_axis)
    last = len(embedding) - 1

    def body(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array | None, ...]]:
        h, y = chunk
        logits = _logits(h, embedding, options.soft_cap)
        lse = jax.nn.logsumexp(logits, axis=-1)
        # A gather: comparing every column would cost a third pass over the logits.
        target = jnp.take_along_axis(logits, jnp.clip(y, 0, last)[..., None], axis=-1)[..., 0]
        mean = _mean_of_others(logits, lse, y, embedding, options.soft_cap) if keep_means else None
        return None, (lse, jnp.where(_inside(y, last + 1), target, 0.0), mean)

    chunks = _chunks(hidden, options.chunk_size), _chunks(columns, options.chunk_size)
    _, terms = lax.scan(body, None, chunks)
    lse, target, means = jax.tree.map(lambda x: _join(x, hidden.shape[1]), terms)
    return (lse, target), (embedding, means)


def _mean_of_others(
    logits: jax.Array, lse: jax.Array, columns: jax.Array, embedding: jax.Array, soft_cap: float | None
) -> jax.Array:
    """[N, C, D], the rows of the embedding weighted by their probabilities, without the target's.

    The target's own enters later, in float32: rounded to bf16, its probability would hide how far it is from 1.
    """
    others = jnp.where(_is_target(columns, logits), 0.0, jnp.exp(logits - lse[..., None]))
    others *= _cap_slope(logits, soft_cap)
    return _product("ncv,vd->ncd", others.astype(embedding.dtype), embedding, embedding.dtype)


def _keep(
    hidden: jax.Array, head: jax.Array, columns: jax.Array, options: _Options
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array | None, ...]]:
    terms, (embedding, means) = _forward(hidden, head, columns, options, keep_means=not options.train_head)
    return terms, (hidden if options.train_head else None, embedding, columns, *terms, means)


def _backward(
    options: _Options, kept: tuple[jax.Array, ...], grads: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array | None, None]:
    if options.train_head:
        d_hidden, d_head = _trained_backward(options, kept, *grads)
        return d_hidden, _like_head(d_head, options), None
    return _frozen_backward(options, kept, *grads), None, None


def _trained_backward(
    options: _Options, kept: tuple[jax.Array, ...], grad_lse: jax.Array, grad_target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of hidden, and of the whole head in float32."""
    hidden, embedding, columns, lse, _, _ = kept

    def body(d_head: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        h, y, z, g_lse, g_target = chunk
        logits = _logits(h, embedding, options.soft_cap)
        d_logits = g_lse[..., None] * jnp.exp(logits - z[..., None])
        d_logits += jnp.where(_is_target(y, logits), g_target[..., None], 0.0)
        d_logits = (d_logits * _cap_slope(logits, options.soft_cap)).astype(h.dtype)
        # Transposed for good, small as it is: a matmul that has to transpose on its way is slower on CPU.
        transposed = lax.optimization_barrier(jnp.moveaxis(h, 2, 0))
        d_head += _product("dnc,ncv->dv", transposed, d_logits, jnp.float32)
        return d_head, _product("ncv,vd->ncd", d_logits, embedding, h.dtype)

    arrays = hidden, columns, lse, grad_lse, grad_target
    chunks = tuple(_chunks(x, options.chunk_size) for x in arrays)
    d_head, d_hidden = lax.scan(body, jnp.zeros_like(embedding.T, dtype=jnp.float32), chunks)
    return _join(d_hidden, hidden.shape[1]), d_head


def _like_head(d_head: jax.Array, options: _Options) -> jax.Array:
    """This device's part of the gradient, in the dtype of the head."""
    if options.gather_axis is not None:
        d_head = lax.psum_scatter(d_head, options.gather_axis, scatter_dimension=0, tiled=True)
    return d_head.astype(options.head_dtype)


def _frozen_backward(
    options: _Options, kept: tuple[jax.Array, ...], grad_lse: jax.Array, grad_target: jax.Array
) -> jax.Array:
    """Gradient of hidden [N, L, D] from the mean embeddings that the forward pass kept."""
    _, embedding, columns, lse, target, means = kept
    weight = (grad_target + grad_lse * jnp.exp(target - lse)) * _cap_slope(target, options.soft_cap)
    weight = jnp.where(_inside(columns, len(embedding)), weight, 0.0)
    own = jnp.take(embedding, jnp.clip(columns, 0, len(embedding) - 1), axis=0)
    d_hidden = weight[..., None] * own.astype(jnp.float32)
    return (d_hidden + grad_lse[..., None] * means.astype(jnp.float32)).astype(own.dtype)


_lse_and_target_logit.defvjp(_keep, _backward)
