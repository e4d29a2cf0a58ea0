"""The choice of the next token: greedy, or drawn with temperature, top-k and top-p. No model is run here.

A draw is the largest of logit / temperature + Gumbel noise, and the noise of a token depends on the row's key and the
token's id alone. So neither the order of candidates nor the last bits of other logits change it.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.errors import JaxalignError


class GenerationError(JaxalignError, ValueError):
    """Text cannot be generated as asked; says what was got, what was expected, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen: greedy at temperature 0; of the top_k likeliest; of the fewest that reach top_p.

    Both given: top_p counts within the top_k. Of tokens that are equally likely at the edge of top_p all stay.
    Raises GenerationError for values out of range, and for options that would have no effect.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 <= self.temperature < math.inf:
            raise GenerationError(
                f"temperature={self.temperature}: expected a number from 0 (greedy) on; 1 leaves the model as it is"
            )
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(f"top_k={self.top_k}: expected at least 1; leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p < 1:
            raise GenerationError(
                f"top_p={self.top_p}: expected above 0 and below 1; leave it out to keep all"
            )
        given = [name for name in ("top_k", "top_p") if getattr(self, name) is not None]
        if self.greedy and given:
            raise GenerationError(
                f"{' and '.join(given)} with temperature 0, which takes the likeliest token anyway; leave "
                f"{'it' if len(given) == 1 else 'them'} out, or give a temperature"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without any chance."""
        return self.temperature == 0


GREEDY = Sampling()


def choose(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """The next token of each row, [N] int32, from logits [N, V] float32 and a PRNG key for each row, [N].

    -1 stands for a row without a finite largest logit. Raises GenerationError for a top_k beyond the vocabulary.
    """
    largest = logits.max(axis=1)
    if sampling.greedy:
        chosen = _argmax(logits)
    else:  # from the largest down, or a low temperature would make several of them infinite
        chosen = _drawn((logits - largest[:, None]) / sampling.temperature, keys, sampling)
    return jnp.where(jnp.isfinite(largest), chosen, -1)


def _argmax(x: jax.Array) -> jax.Array:
    """The first of the largest columns of each row [N, C], int32; C for NaN. On a CPU jnp.argmax takes 4 x as long."""
    C = x.shape[1]
    return jnp.where(x == x.max(axis=1, keepdims=True), jnp.arange(C, dtype=jnp.int32)[None], C).min(axis=1)


def _drawn(scores: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    N, V = scores.shape
    if sampling.top_k is None:
        ids = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), (N, V))
    elif sampling.top_k < V:
        scores, ids = lax.top_k(scores, sampling.top_k)
    else:
        raise GenerationError(f"top_k={sampling.top_k} keeps all {V} tokens of the vocabulary; leave it out")
    if sampling.top_p is not None:
        scores = jnp.where(_nucleus(jax.nn.softmax(scores, axis=1), sampling.top_p), scores, -jnp.inf)
    best = _argmax(scores + _noise(keys, ids))
    return jnp.take_along_axis(ids, best[:, None], axis=1)[:, 0]


def _noise(keys: jax.Array, ids: jax.Array) -> jax.Array:
    """Gumbel noise [N, C] of token ids [N, C] under keys [N]."""

    def of_token(key: jax.Array, token: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, token), dtype=jnp.float32)

    return jax.vmap(jax.vmap(of_token, in_axes=(None, 0)))(keys, ids)


def _nucleus(probs: jax.Array, top_p: float) -> jax.Array:
    """Which of probs [N, C] belong to the fewest whose sum reaches `top_p`, bool [N, C].

    Found without sorting: the least probability that is kept, by bisection over all float32 numbers up to 1, which have
    the order of their bits.
    """
    bits = lax.bitcast_convert_type(probs, jnp.int32)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # what is at least `low` reaches top_p, what is at least `high` does not
        middle = (low + high) // 2
        reached = jnp.where(bits >= middle[:, None], probs, 0.0).sum(axis=1) >= top_p
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    beyond_one = int(np.float32(1.5).view(np.int32))  # rounding may make more than 1 of a probability
    low = jnp.zeros(len(probs), jnp.int32)
    low, _ = lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, beyond_one)))
    return bits >= low[:, None]
