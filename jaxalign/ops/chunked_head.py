"""Log-sum-exps and target logits of an output head, chunk by chunk, with a gradient that keeps no logits.

Checks, and the sums over devices that split a vocabulary, are in token_logps.py. Needs jax alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class HeadOptions(NamedTuple):
    """What is static: the options of `token_logps`, and the dtype in which the head's gradient goes back."""

    chunk_size: int
    soft_cap: float | None
    train_head: bool
    gather_axis: str | None
    head_dtype: DTypeLike


class _Kept(NamedTuple):
    """What the backward pass gets.

    Of a trained head the states, and the logits if they are a single chunk: it is there in both passes anyway. Of a
    frozen head its mean rows for each state.
    """

    hidden: jax.Array | None
    embedding: jax.Array
    columns: jax.Array
    lse: jax.Array
    target: jax.Array
    logits: jax.Array | None
    means: jax.Array | None


def inside(ids: jax.Array, size: int) -> jax.Array:
    """Whether each id is one of the first `size`."""
    return (ids >= 0) & (ids < size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def lse_and_target_logit(
    hidden: jax.Array, head: jax.Array, columns: jax.Array, options: HeadOptions
) -> tuple[jax.Array, jax.Array]:
    """[N, L] log-sum-exps over the columns of head [D, V], and logits of `columns` [N, L], 0 where V has no such one.

    The gradients with respect to hidden [N, L, D] and the head are those of the device: what lies between devices,
    `gather_axis` aside, is left to the callers.
    """
    return _forward(hidden, head, columns, options)[0]


def _num_chunks(shape: tuple[int, ...], chunk_size: int) -> int:
    """As few as hold at most `chunk_size` tokens each of arrays [N, L, ...], or one position of all N sequences."""
    num_sequences, length = shape[:2]
    positions = max(chunk_size // max(num_sequences, 1), 1)
    return max(-(-length // positions), 1)


def _chunks(x: jax.Array, chunk_size: int) -> jax.Array:
    """[N, L, ...] to [chunks, N, L / chunks, ...], equal chunks; N keeps its sharding."""
    length, num_chunks = x.shape[1], _num_chunks(x.shape, chunk_size)
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


def _forward(
    hidden: jax.Array,
    head: jax.Array,
    columns: jax.Array,
    options: HeadOptions,
    *,
    keep_logits: bool = False,
    keep_means: bool = False,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None, jax.Array | None]]:
    """Log-sum-exps and target logits; and the [V, D] embedding, with logits and mean embeddings if they are kept."""
    embedding = _embedding(head, hidden.dtype, options.gather_axis)
    last = len(embedding) - 1

    def body(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array | None, ...]]:
        h, y = chunk
        logits = _logits(h, embedding, options.soft_cap)
        lse = jax.nn.logsumexp(logits, axis=-1)
        # A gather: comparing every column would cost a third pass over the logits.
        target = jnp.take_along_axis(logits, jnp.clip(y, 0, last)[..., None], axis=-1)[..., 0]
        mean = _mean_of_others(logits, lse, y, embedding, options.soft_cap) if keep_means else None
        return None, (lse, jnp.where(inside(y, last + 1), target, 0.0), logits if keep_logits else None, mean)

    chunks = _chunks(hidden, options.chunk_size), _chunks(columns, options.chunk_size)
    _, terms = lax.scan(body, None, chunks)
    lse, target, logits, means = jax.tree.map(lambda x: _join(x, hidden.shape[1]), terms)
    return (lse, target), (embedding, logits, means)


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
    hidden: jax.Array, head: jax.Array, columns: jax.Array, options: HeadOptions
) -> tuple[tuple[jax.Array, jax.Array], _Kept]:
    train = options.train_head
    one_chunk = _num_chunks(hidden.shape, options.chunk_size) == 1
    terms, (embedding, logits, means) = _forward(
        hidden, head, columns, options, keep_logits=train and one_chunk, keep_means=not train
    )
    return terms, _Kept(hidden if train else None, embedding, columns, *terms, logits, means)


def _backward(
    options: HeadOptions, kept: _Kept, grads: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array | None, None]:
    if options.train_head:
        d_hidden, d_head = _trained_backward(options, kept, *grads)
        return d_hidden, _like_head(d_head, options), None
    return _frozen_backward(options, kept, *grads), None, None


def _trained_backward(
    options: HeadOptions, kept: _Kept, grad_lse: jax.Array, grad_target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of hidden, and of the whole head in float32."""
    hidden, embedding = kept.hidden, kept.embedding
    assert hidden is not None  # kept for a trained head

    def body(d_head: jax.Array, chunk: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        h, y, z, g_lse, g_target, logits = chunk
        if logits is None:
            logits = _logits(h, embedding, options.soft_cap)
        d_logits = g_lse[..., None] * jnp.exp(logits - z[..., None])
        d_logits += jnp.where(_is_target(y, logits), g_target[..., None], 0.0)
        d_logits = (d_logits * _cap_slope(logits, options.soft_cap)).astype(h.dtype)
        # Transposed for good, small as it is: a matmul that has to transpose on its way is slower on CPU.
        transposed = lax.optimization_barrier(jnp.moveaxis(h, 2, 0))
        d_head += _product("dnc,ncv->dv", transposed, d_logits, jnp.float32)
        return d_head, _product("ncv,vd->ncd", d_logits, embedding, h.dtype)

    arrays = hidden, kept.columns, kept.lse, grad_lse, grad_target, kept.logits
    chunks = jax.tree.map(lambda x: _chunks(x, options.chunk_size), arrays)
    d_head, d_hidden = lax.scan(body, jnp.zeros_like(embedding.T, dtype=jnp.float32), chunks)
    return _join(d_hidden, hidden.shape[1]), d_head


def _like_head(d_head: jax.Array, options: HeadOptions) -> jax.Array:
    """This device's part of the gradient, in the dtype of the head."""
    if options.gather_axis is not None:
        d_head = lax.psum_scatter(d_head, options.gather_axis, scatter_dimension=0, tiled=True)
    return d_head.astype(options.head_dtype)


def _frozen_backward(
    options: HeadOptions, kept: _Kept, grad_lse: jax.Array, grad_target: jax.Array
) -> jax.Array:
    """Gradient of hidden [N, L, D] from the mean embeddings that the forward pass kept."""
    _, embedding, columns, lse, target, _, means = kept
    assert means is not None  # kept for a frozen head
    weight = (grad_target + grad_lse * jnp.exp(target - lse)) * _cap_slope(target, options.soft_cap)
    weight = jnp.where(inside(columns, len(embedding)), weight, 0.0)
    own = jnp.take(embedding, jnp.clip(columns, 0, len(embedding) - 1), axis=0)
    d_hidden = weight[..., None] * own.astype(jnp.float32)
    return (d_hidden + grad_lse[..., None] * means.astype(jnp.float32)).astype(own.dtype)


lse_and_target_logit.defvjp(_keep, _backward)
