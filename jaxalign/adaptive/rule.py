"""The protocol of adaptive state. No rule lives here."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State")
Stats = TypeVar("Stats")
Value = TypeVar("Value")


class AdaptiveRule(NamedTuple, Generic[State, Stats, Value]):
    """Three pure functions that carry explicit state from step to step, as optax does for optimizers.

    The loss of a step reads `value` of the old state; `update` then writes the new one. Statistics are sums
    and counts: add them over micro-batches and devices first, then update once.

    Attributes:
      init: `() -> state`, the state before anything was seen.
      value: `state -> value`, what the losses use; no gradient flows into it.
      update: `(stats, state) -> state` with the structure, shapes and dtypes of the old state.
    """

    init: Callable[[], State]
    value: Callable[[State], Value]
    update: Callable[[Stats, State], State]
