"""Who sees whom in a row of tokens, and what every implementation of attention offers.

The one definition that all implementations are tested against. No computation of attention lives here.
"""

import abc
import dataclasses
import math
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.batch import PROMPT, Places

ATTENTION_RESULTS = "attention_results"
"""The `checkpoint_name` of what the backward pass of a kernel needs and could make again only at the kernel's cost."""


def is_visible(
    query: Places, key: Places, *, query_index: jax.Array, key_index: jax.Array, sliding_window: int | None
) -> jax.Array:
    """Whether a query sees a key: bool, of the shape to which all arrays broadcast.

    It does if both are of the same segment, the key is not later in the row, and the key belongs to the prompt or to
    the branch of the query. A sliding window of W keeps the keys whose position is among the W latest up to the
    query's own: it counts along the sequence, not along the row, where another branch may lie between.

    Args:
        query: the places of the queries.
        key: the places of the keys.
        query_index: columns of the queries in the row.
        key_index: columns of the keys in the row.
        sliding_window: number of latest positions that a query sees, its own included; None for all.
    """
    visible = (query.segment == key.segment) & (key_index <= query_index)
    visible &= (key.branch == PROMPT) | (key.branch == query.branch)
    if sliding_window is not None:
        visible &= key.position > query.position - sliding_window
    return visible


def plain_places(num_rows: int, length: int) -> Places:
    """Places [num_rows, length] of one plain causal sequence in each row."""
    shape = (num_rows, length)
    position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape)
    return Places(jnp.ones(shape, jnp.int32), jnp.full(shape, PROMPT, jnp.int32), position, length)


@dataclasses.dataclass(frozen=True)
class Attention(abc.ABC):
    """softmax(mask(soft_cap * tanh(scale * q k^T / soft_cap))) v: static, hashable, without arrays of its own.

    sliding_window: number of latest positions that a query sees, its own included; None for all.
    soft_cap: bound of the scores; None for none.
    scale: factor on q k^T; E**-0.5 by default.
    """

    sliding_window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("sliding_window", "soft_cap", "scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}, expected a finite number above 0, or None")
        if self.sliding_window is not None and not isinstance(self.sliding_window, Integral):
            raise ValueError(
                f"sliding_window: got {self.sliding_window}, expected a whole number of positions"
            )

    @abc.abstractmethod
    def prepare(self, places: Places) -> Any:
        """What `__call__` needs to know of the places [N, L]: arrays with N in front, once for all layers."""

    @abc.abstractmethod
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, prepared: Any) -> jax.Array:
        """Attention of every query, in the dtype of `query`.

        Args:
            query: [N, L, H, E].
            key: [N, L, K, E], where K divides H; key head k serves query heads k*H/K to (k+1)*H/K - 1.
            value: [N, L, K, E].
            prepared: what `prepare` gave for the places of these rows.

        Returns:
            [N, L, H, E]. What padding (segment 0) gets is meaningless but finite.

        Raises:
            ValueError: if the shapes do not fit together.
        """

    def scale_for(self, head_dim: int) -> float:
        """The factor on q k^T for heads of this width."""
        return head_dim**-0.5 if self.scale is None else self.scale


def check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    """Raise ValueError unless the shapes are [N, L, H, E], [N, L, K, E] twice, with K dividing H."""
    fits = query.ndim == 4 and key.ndim == 4 and key.shape == value.shape
    fits = fits and (*query.shape[:2], query.shape[3]) == (*key.shape[:2], key.shape[3])
    if not fits or query.shape[2] % key.shape[2]:
        raise ValueError(
            f"query {query.shape}, key {key.shape}, value {value.shape}: expected [N, L, H, E], [N, L, K, E] "
            "and [N, L, K, E] with K dividing H"
        )
