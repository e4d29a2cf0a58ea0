"""Adaptive margins per harm category: configuration, state, rule, and the margin of a pair.

The loss that uses the margins lives in `jaxalign.losses`, the violation signal in signals.py.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.stats import CategoryStats
from jaxalign.arrays import as_float


@dataclasses.dataclass(frozen=True)
class MarginConfig:
    """Options of the margin rule. Raises ValueError where they contradict each other.

    Numbers may come as scalars of numpy or jax, and `target_rate` as an array [K]; kept are floats and a tuple.

    Attributes:
      num_categories: K.
      initial: margin of every category before it was seen, units of reward.
      minimum: lower bound of a margin; positive for the multiplicative update.
      maximum: upper bound of a margin.
      step_size: eta, reward per unit of violation rate and step (additive), or 1 over it (multiplicative).
      ema_rate: a, the share of the newest rate in the running violation rate; 1 keeps the newest alone.
      target_rate: eps, tolerated violation rate; one for all categories or one per category.
      update: "additive" dual ascent or "multiplicative" (exponentiated) dual ascent.
      normalize_mean: mean over the categories that the margins in use are held at, so that only their spread
        adapts; None uses the margins as they are.
    """

    num_categories: int
    initial: float
    minimum: float
    maximum: float
    step_size: float
    ema_rate: float
    target_rate: float | tuple[float, ...]
    update: Literal["additive", "multiplicative"] = "additive"
    normalize_mean: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in ("num_categories", "update"):
                plain = _as_plain(field.name, getattr(self, field.name), several=field.name == "target_rate")
                object.__setattr__(self, field.name, plain)  # arrays and lists would not be hashable
        self._check_categories()
        if not -math.inf < self.minimum <= self.initial <= self.maximum < math.inf:
            raise ValueError(
                f"initial={self.initial} is not between minimum={self.minimum} and maximum={self.maximum}, "
                "both finite"
            )
        if self.minimum == self.maximum:
            raise ValueError(
                f"minimum={self.minimum} equals maximum: no update can move that margin; widen the bounds, or use "
                "the loss safe_dpo, whose margin is the constant delta"
            )
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size} must be positive and finite")
        if not 0 < self.ema_rate <= 1:
            raise ValueError(f"ema_rate={self.ema_rate} must be above 0 and at most 1")
        if self.update not in ("additive", "multiplicative"):
            raise ValueError(f"update={self.update!r} must be 'additive' or 'multiplicative'")
        if self.update == "multiplicative" and self.minimum <= 0:
            raise ValueError(
                f"minimum={self.minimum} must be positive for update='multiplicative', which cannot leave 0; "
                "raise it to a small value such as 0.01 or use update='additive'"
            )
        if self.normalize_mean is not None and not self.minimum <= self.normalize_mean <= self.maximum:
            raise ValueError(
                f"normalize_mean={self.normalize_mean} is not between minimum={self.minimum} and "
                f"maximum={self.maximum}: margins within these bounds cannot have that mean"
            )

    def _check_categories(self) -> None:
        if self.num_categories < 1:
            raise ValueError(f"num_categories={self.num_categories} must be at least 1")
        if isinstance(self.target_rate, tuple) and len(self.target_rate) != self.num_categories:
            raise ValueError(
                f"target_rate has {len(self.target_rate)} values, expected one number for all or "
                f"num_categories={self.num_categories} of them"
            )
        rates = self.target_rate if isinstance(self.target_rate, tuple) else (self.target_rate,)
        if not all(0 <= rate <= 1 for rate in rates):
            raise ValueError(f"target_rate={self.target_rate} must lie between 0 and 1")


def _as_plain(name: str, given: Any, several: bool) -> Any:
    """A number, or where `several` may be given a tuple of numbers; None stays. Raises ValueError."""
    try:
        values = given.tolist() if hasattr(given, "tolist") else given
        if several and isinstance(values, list | tuple):
            return tuple(_as_plain(name, value, several=False) for value in values)
        if values is None:
            return None
        if not isinstance(values, str):
            return float(values)
    except TypeError:  # neither a number nor, under a transformation, a known one
        pass
    expected = "one number for all categories or one per category" if several else "a number"
    raise ValueError(f"{name}={given!r} must be {expected}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MarginState:
    """Margins and violation rates per category, carried from step to step.

    Attributes:
      margin: `[K]` float32, m, units of reward, before `normalize_mean`.
      violation_rate: `[K]` float32, v, running violation rate; 0 until the category was seen.
      num_seen: `[K]` int32, pairs seen. Counts to 2**31 - 1; a float32 would stop at 2**24.
    """

    margin: jax.Array
    violation_rate: jax.Array
    num_seen: jax.Array


def margin_rule(config: MarginConfig) -> AdaptiveRule[MarginState, CategoryStats, jax.Array]:
    """Raise the margin of a category while it is violated more often than its target, else lower it.

    For every category k with pairs in the statistics::

        v_k <- (1 - a) v_k + a violations_k / pairs_k            first sighting: the rate itself
        m_k <- clip(m_k + eta (v_k - eps_k), minimum, maximum)   additive
        m_k <- clip(m_k exp(eta (v_k - eps_k)), minimum, maximum)  multiplicative

    A category without pairs keeps all its values bit for bit, and so does one whose statistics are not finite:
    its running rate would never recover. The statistics themselves and the loss of that step still show it.
    With `normalize_mean = c` the state is the same, and `value` gives the margins nearest to it, by least
    squares, that lie within the bounds and have mean c; where all margins of the state are equal, all are c.

    Source: Cat-DPO, arXiv 2604.17299; reconstructed from the abstract, not checked against the authors' code.

    Args:
      config: options of the rule.

    Returns:
      `AdaptiveRule` whose value is `[K]` float32 margins, units of reward.

    Example:
      >>> import jax.numpy as jnp
      >>> config = MarginConfig(num_categories=2, initial=1.0, minimum=0.0, maximum=4.0, step_size=0.5,
      ...                       ema_rate=0.1, target_rate=0.25)
      >>> rule = margin_rule(config)
      >>> stats = CategoryStats(violations=jnp.array([3.0, 0.0]), pairs=jnp.array([4.0, 0.0]))
      >>> state = rule.update(stats, rule.init())
      >>> rule.value(state).tolist(), state.num_seen.tolist()
      ([1.25, 1.0], [4, 0])
    """
    shape = (config.num_categories,)

    def init() -> MarginState:
        return MarginState(
            margin=jnp.full(shape, config.initial, jnp.float32),
            violation_rate=jnp.zeros(shape, jnp.float32),
            num_seen=jnp.zeros(shape, jnp.int32),
        )

    def value(state: MarginState) -> jax.Array:
        margin = jax.lax.stop_gradient(state.margin)
        return margin if config.normalize_mean is None else _with_mean(margin, config)

    def update(stats: CategoryStats, state: MarginState) -> MarginState:
        for name, array in (("violations", stats.violations), ("pairs", stats.pairs)):
            if jnp.shape(array) != shape:
                raise ValueError(
                    f"stats.{name} has shape {jnp.shape(array)}, expected {shape}, num_categories"
                )
        violations, pairs = jax.lax.stop_gradient(
            (stats.violations.astype(jnp.float32), stats.pairs.astype(jnp.float32))
        )
        present = (pairs > 0) & jnp.isfinite(pairs) & jnp.isfinite(violations)
        rate = violations / jnp.where(present, pairs, 1.0)
        running = (1 - config.ema_rate) * state.violation_rate + config.ema_rate * rate
        running = jnp.where(state.num_seen > 0, running, rate)
        margin = _ascend(state.margin, running, config)
        return MarginState(
            margin=jnp.where(present, margin, state.margin),
            violation_rate=jnp.where(present, running, state.violation_rate),
            # ceil: a category of fractional weight was seen too; whole counts are exact
            num_seen=state.num_seen + jnp.ceil(jnp.where(present, pairs, 0.0)).astype(jnp.int32),
        )

    return AdaptiveRule(init, value, update)


def _ascend(margin: jax.Array, violation_rate: jax.Array, config: MarginConfig) -> jax.Array:
    """One step of projected dual ascent on `[K]` margins."""
    step = config.step_size * (violation_rate - jnp.asarray(config.target_rate, jnp.float32))
    ascended = margin + step if config.update == "additive" else margin * jnp.exp(step)
    return jnp.clip(ascended, config.minimum, config.maximum)


def _with_mean(margin: jax.Array, config: MarginConfig) -> jax.Array:
    """The `[K]` margins nearest to the given ones, within the bounds, whose mean is `normalize_mean`.

    They are `clip(margin + shift, minimum, maximum)` for one shift. The mean is piecewise linear in the
    shift, with a break where a category meets a bound, so that interpolating between the breaks is exact.
    """
    shifts = jnp.sort(jnp.concatenate([config.minimum - margin, config.maximum - margin]))
    means = jnp.mean(jnp.clip(margin[None, :] + shifts[:, None], config.minimum, config.maximum), axis=1)
    shift = jnp.interp(jnp.asarray(config.normalize_mean, jnp.float32), means, shifts)
    return jnp.clip(margin + shift, config.minimum, config.maximum)


def pair_margins(
    margins: ArrayLike, categories: ArrayLike, reduce: Literal["mean", "max", "sum"] = "mean"
) -> jax.Array:
    """Margin of each pair from the margins of its categories; 0 where a pair has none.

    `m_i = reduce over k with C_ik = 1 of m_k`.

    Args:
      margins: `[K]` margins, units of reward.
      categories: `[B, K]` 1 where the pair belongs to the category, else 0; bool, integer or float.
      reduce: "mean", "max" or "sum" over the categories of a pair.

    Returns:
      `[B]` margins, units of reward; no gradient flows into them.

    Raises:
      ValueError: if the shapes do not fit together or reduce is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> pair_margins(jnp.array([1.0, 3.0]), jnp.array([[1, 0], [1, 1], [0, 0]])).tolist()
      [1.0, 2.0, 0.0]
    """
    margins = jax.lax.stop_gradient(as_float(margins))
    belongs = jnp.asarray(categories).astype(bool)
    if margins.ndim != 1 or belongs.ndim != 2 or belongs.shape[1:] != margins.shape:
        raise ValueError(
            f"categories has shape {belongs.shape}, expected [B, K] for margins [K] of shape {margins.shape}"
        )
    of_pair = jnp.broadcast_to(margins, belongs.shape)
    if reduce == "max":
        largest = jnp.max(of_pair, axis=-1, initial=-jnp.inf, where=belongs)
        return jnp.where(belongs.any(axis=-1), largest, 0.0)
    total = jnp.sum(of_pair, axis=-1, where=belongs)
    if reduce == "sum":
        return total
    if reduce == "mean":
        return total / jnp.maximum(belongs.sum(axis=-1), 1).astype(total.dtype)
    raise ValueError(f"reduce={reduce!r} must be 'mean', 'max' or 'sum'")
