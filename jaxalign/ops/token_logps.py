"""Log-probabilities of given tokens without ever holding the logits of the whole sequence. Needs jax alone."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def token_logps(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    chunk_size: int = 128,
    soft_cap: float | None = None,
    train_head: bool = True,
) -> jax.Array:
    """Log-probability of each target token under `log_softmax(hidden @ head)`.

    Works through the sequence in chunks with the whole vocabulary per chunk; only the log-sum-exp is kept for the
    backward pass, which recomputes the logits. The log-sum-exp is float32 whatever the inputs are: in bf16 a sum over
    1,000 tokens errs by more than half a nat.

    Args:
      hidden: [N, L, D] states that predict the targets, after the final norm.
      head: [D, V] output embedding.
      targets: [N, L] int32 token ids.
      chunk_size: positions of every sequence that are computed at a time.
      soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.
      train_head: False skips the gradient of the head (it comes back as zeros).

    Returns:
      [N, L] float32 log-probabilities in nats.

    Example:
      >>> logps = token_logps(jnp.zeros((1, 2, 4)), jnp.ones((4, 8)), jnp.zeros((1, 2), jnp.int32))
      >>> [f"{x:.4f}" for x in logps[0].tolist()]  # a uniform distribution over 8 tokens: -log 8
      ['-2.0794', '-2.0794']
    """
    return _forward(hidden, head, targets, chunk_size, soft_cap, train_head)[0]


def _chunks(x: jax.Array, chunk_size: int) -> jax.Array:
    """[N, L, ...] to [L / chunk_size, N, chunk_size, ...]; the batch dimension keeps its sharding."""
    pad = -x.shape[1] % chunk_size
    x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
    x = x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_chunks`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _product(equation: str, a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    # float32 inputs are multiplied as float32 everywhere, and the backward pass as the forward pass.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(equation, a, b, preferred_element_type=dtype, precision=precision)


def _logits(hidden: jax.Array, head: jax.Array, soft_cap: float | None) -> jax.Array:
    logits = _product("ncd,dv->ncv", hidden, head, jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _is_target(targets: jax.Array, vocab_size: int) -> jax.Array:
    # A comparison and not a gather: it stays local when the vocabulary is split over devices.
    ids = jax.lax.broadcasted_iota(jnp.int32, (*targets.shape, vocab_size), targets.ndim)
    return ids == targets[..., None]


def _forward(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    chunk_size: int,
    soft_cap: float | None,
    train_head: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    if hidden.ndim != 3 or targets.shape != hidden.shape[:2]:
        raise ValueError(
            f"targets: got shape {targets.shape}, expected [N, L] of hidden {hidden.shape} = [N, L, D]"
        )
    if head.ndim != 2 or head.shape[0] != hidden.shape[2]:
        raise ValueError(f"head: got shape {head.shape}, expected [D, V] with D = {hidden.shape[2]}")
    chunk_size = min(chunk_size, targets.shape[1])
    kernel = head.astype(hidden.dtype)

    def body(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        h, t = chunk
        logits = _logits(h, kernel, soft_cap)
        lse = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.where(_is_target(t, head.shape[1]), logits, 0.0).sum(-1)
        return None, (target - lse, lse)

    _, (logps, lse) = jax.lax.scan(body, None, (_chunks(hidden, chunk_size), _chunks(targets, chunk_size)))
    return _join(logps, targets.shape[1]), (hidden, head, targets, lse)


def _backward(
    chunk_size: int, soft_cap: float | None, train_head: bool, saved: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    hidden, head, targets, lse = saved
    chunk_size = min(chunk_size, targets.shape[1])
    kernel = head.astype(hidden.dtype)

    def body(d_head: jax.Array | None, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array | None, jax.Array]:
        h, t, z, g = chunk
        logits = _logits(h, kernel, soft_cap)
        one_hot = _is_target(t, head.shape[1]).astype(jnp.float32)
        d_logits = g[..., None] * (one_hot - jnp.exp(logits - z[..., None]))
        if soft_cap is not None:
            d_logits *= 1.0 - (logits / soft_cap) ** 2
        d_logits = d_logits.astype(h.dtype)
        if d_head is not None:
            d_head += _product("ncd,ncv->dv", h, d_logits, jnp.float32)
        return d_head, _product("ncv,dv->ncd", d_logits, kernel, h.dtype)

    start = jnp.zeros(head.shape, jnp.float32) if train_head else None
    chunks = (_chunks(hidden, chunk_size), _chunks(targets, chunk_size), lse, _chunks(grad, chunk_size))
    d_head, d_hidden = jax.lax.scan(body, start, chunks)
    d_head = jnp.zeros_like(head) if d_head is None else d_head.astype(head.dtype)
    return _join(d_hidden, targets.shape[1]), d_head, None


token_logps.defvjp(_forward, _backward)
