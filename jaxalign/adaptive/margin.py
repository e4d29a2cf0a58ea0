"""Adaptive margins per harm category: configuration, state, rule, and the margin of a pair.

The loss that uses the margins lives in `jaxalign.losses`, the violation signal in signals.py.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.adaptive.options import (
    check_ema_rate,
    check_positive,
    in_order,
    is_known,
    keep_count,
    keep_numbers,
    keep_numbers_per_category,
)
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.running_mean import add_seen, running_mean
from jaxalign.adaptive.stats import CategoryStats, read_sums
from jaxalign.arrays import as_float, membership


@dataclasses.dataclass(frozen=True)
class MarginConfig:
    """Options of the margin rule. Raises ValueError where they contradict each other.

    Numbers may come as scalars of numpy or jax, and `target_rate` as an array [K]; kept are floats and a tuple.
    Traced ones stay traced: checks that need their value are left out, so that `jax.vmap` runs many settings at
    once, and such a configuration cannot be hashed.

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
      warmup_pairs: margins stay at `initial` until the categories have been seen so often, all added up. An
        untrained policy violates every category; without a wait all margins grow, and only `step_size * target_rate`
        a step takes them back.
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
    warmup_pairs: float = 0.0

    def __post_init__(self) -> None:
        keep_count(self, "num_categories")
        keep_numbers(self, "initial", "minimum", "maximum", "step_size", "ema_rate", "normalize_mean")
        keep_numbers(self, "warmup_pairs")
        keep_numbers_per_category(self, "target_rate")
        self._check_target_rate()
        self._check_bounds()
        check_positive("step_size", self.step_size)
        check_ema_rate(self.ema_rate)
        if not in_order(0.0, self.warmup_pairs):
            raise ValueError(f"warmup_pairs={self.warmup_pairs} must be finite and not negative")
        self._check_update()

    def _check_target_rate(self) -> None:
        given = self.target_rate
        rates = given if isinstance(given, tuple) else (given,)
        num_rates = len(given) if isinstance(given, tuple) else jnp.size(given)
        if num_rates != self.num_categories and (isinstance(given, tuple) or jnp.ndim(given)):
            raise ValueError(
                f"target_rate has {num_rates} values, expected one number for all or "
                f"num_categories={self.num_categories} of them"
            )
        if not all(0 <= rate <= 1 for rate in rates if is_known(rate)):
            raise ValueError(f"target_rate={given} must lie between 0 and 1")

    def _check_bounds(self) -> None:
        if not in_order(self.minimum, self.initial, self.maximum):
            raise ValueError(
                f"initial={self.initial} is not between minimum={self.minimum} and maximum={self.maximum}, "
                "both finite"
            )
        if is_known(self.minimum, self.maximum) and self.minimum == self.maximum:
            raise ValueError(
                f"minimum={self.minimum} equals maximum: no update can move that margin; widen the bounds, or use "
                "the loss safe_dpo, whose margin is the constant delta"
            )
        if self.normalize_mean is not None and not in_order(self.minimum, self.normalize_mean, self.maximum):
            raise ValueError(
                f"normalize_mean={self.normalize_mean} is not between minimum={self.minimum} and "
                f"maximum={self.maximum}: margins within these bounds cannot have that mean"
            )

    def _check_update(self) -> None:
        if self.update not in ("additive", "multiplicative"):
            raise ValueError(f"update={self.update!r} must be 'additive' or 'multiplicative'")
        if self.update == "multiplicative" and is_known(self.minimum) and self.minimum <= 0:
            raise ValueError(
                f"minimum={self.minimum} must be positive for update='multiplicative', which cannot leave 0; "
                "raise it to a small value such as 0.01 or use update='additive'"
            )


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

    For every category k with pairs in the statistics:

        v_k <- (1 - a) v_k + a violations_k / pairs_k            first sighting: the rate itself
        m_k <- clip(m_k + eta (v_k - eps_k), minimum, maximum)   additive
        m_k <- clip(m_k exp(eta (v_k - eps_k)), minimum, maximum)  multiplicative

    A category without pairs keeps all its values bit for bit, and so does one whose statistics are not finite:
    its running rate would never recover. The statistics themselves and the loss of that step still show it.
    The margins move in updates before which `sum_k n_k >= warmup_pairs`, with n_k the pairs seen; rates always do.
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
        margin = state.margin if config.normalize_mean is None else _with_mean(state.margin, config)
        return jax.lax.stop_gradient(margin)

    def update(stats: CategoryStats, state: MarginState) -> MarginState:
        stats, _ = read_sums(stats, violations=shape, pairs=shape)
        newest, present = _rates(stats)
        seen = state.num_seen > 0
        rate = running_mean(
            state.violation_rate, newest, ema_rate=config.ema_rate, seen=seen, present=present
        )
        warm = jnp.sum(state.num_seen.astype(jnp.float32)) >= config.warmup_pairs
        return MarginState(
            margin=jnp.where(present & warm, _ascend(state.margin, rate, config), state.margin),
            violation_rate=rate,
            num_seen=add_seen(state.num_seen, stats.pairs, present),
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


def restart_rates(stats: CategoryStats, state: MarginState) -> MarginState:
    """Set the running violation rates to those of better statistics, such as judged answers between batches of pairs.

    v_k <- violations_k / pairs_k for every category with pairs in the statistics, finite ones; all else is kept.
    An update with the same statistics that follows leaves the rate there and moves the margin by it. So a signal that
    is cheap and drifts can be corrected by one that is rare and right.

    Args:
      stats: sums of the better signal, `[K]` each.
      state: state of a margin rule.

    Returns:
      The state with these rates.

    Raises:
      ValueError: if the statistics have another shape than the state.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = margin_rule(MarginConfig(num_categories=2, initial=0.0, minimum=0.0, maximum=1.0, step_size=0.5,
      ...                                 ema_rate=0.1, target_rate=0.25))
      >>> answers = CategoryStats(violations=jnp.array([3.0, 0.0]), pairs=jnp.array([4.0, 0.0]))
      >>> restart_rates(answers, rule.init()).violation_rate.tolist()
      [0.75, 0.0]
    """
    shape = state.violation_rate.shape
    stats, _ = read_sums(stats, violations=shape, pairs=shape)
    rate, present = _rates(stats)
    return dataclasses.replace(state, violation_rate=jnp.where(present, rate, state.violation_rate))


def _rates(stats: CategoryStats) -> tuple[jax.Array, jax.Array]:
    """Violation rates `[K]`, and as bool the categories that have one: those with pairs and finite sums."""
    present = (stats.pairs > 0) & jnp.isfinite(stats.pairs) & jnp.isfinite(stats.violations)
    return stats.violations / jnp.where(present, stats.pairs, 1.0), present


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
    belongs = membership(categories)
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
