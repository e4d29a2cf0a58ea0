"""Running means: the arithmetic that all rules share, and the two rules that follow one mean.

`kl_rule` gives the reference point of KTO, `reward_shift_rule` that of BCO.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.adaptive.options import check_ema_rate, keep_numbers
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.stats import MeanStats, read_sums


def running_mean(
    mean: jax.Array, newest: jax.Array, *, ema_rate: ArrayLike, seen: jax.Array, present: jax.Array
) -> jax.Array:
    """`(1 - a) mean + a newest`; the newest itself at the first sighting, the old mean where nothing is present."""
    averaged = (1 - ema_rate) * mean + ema_rate * newest
    return jnp.where(present, jnp.where(seen, averaged, newest), mean)


def add_seen(num_seen: jax.Array, pairs: jax.Array, present: jax.Array) -> jax.Array:
    """The int32 count with the pairs of a batch added; it stops at its largest value instead of wrapping."""
    # ceil: a batch of fractional weight was seen too; whole counts are exact.
    more = jnp.ceil(jnp.where(present, pairs, 0.0)).astype(jnp.int32)
    return num_seen + jnp.minimum(more, jnp.iinfo(jnp.int32).max - num_seen)


@dataclasses.dataclass(frozen=True)
class KlConfig:
    """Options of `kl_rule`. Raises ValueError where one is impossible.

    Numbers may be traced: checks that need their value are left out.

    Attributes:
      ema_rate: share of the newest mean in the running one; 1 keeps the newest alone, that of the previous
        batch if the loss reads the value before the update.
    """

    ema_rate: float

    def __post_init__(self) -> None:
        keep_numbers(self, "ema_rate")
        check_ema_rate(self.ema_rate)


@dataclasses.dataclass(frozen=True)
class RewardShiftConfig:
    """Options of `reward_shift_rule`. Raises ValueError where one is impossible.

    Numbers may be traced: checks that need their value are left out.

    Attributes:
      ema_rate: share of the newest mean in the running one; 1 keeps the newest alone.
    """

    ema_rate: float

    def __post_init__(self) -> None:
        keep_numbers(self, "ema_rate")
        check_ema_rate(self.ema_rate)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningMeanState:
    """A running mean, scalars, carried from step to step; 0 until a value was seen.

    Attributes:
      mean: float32, the running mean, in the unit of the values.
      num_seen: int32, values seen. Stops at 2**31 - 1.
    """

    mean: jax.Array
    num_seen: jax.Array


def kl_rule(config: KlConfig) -> AdaptiveRule[RunningMeanState, MeanStats, jax.Array]:
    """Follow the estimate of the divergence from the reference that KTO measures rewards against.

    `z = max(0, mean)` with `mean <- (1 - a) mean + a newest`, a the EMA rate and newest the mean of the
    statistics' values: log-ratios of policy and reference for responses paired with foreign prompts. The first
    sighting takes the newest itself. Without values, or where a sum is not finite, the state stays bit-identical.

    A loss that reads the value before the update, as a training configuration does, thus measures from the
    batches before, and from 0 at the first step.

    Source: KTO, arXiv 2402.01306, whose z is that of the batch itself: with `ema_rate=1`, update before reading.
    That z may be averaged over steps is ours.

    Args:
      config: options of the rule.

    Returns:
      `AdaptiveRule` whose value is the scalar z, float32, nats; 0 until a value was seen.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxalign.adaptive import mean_stats
      >>> rule = kl_rule(KlConfig(ema_rate=0.5))
      >>> once = rule.update(mean_stats(jnp.array([0.5, 1.5]), jnp.ones(2)), rule.init())
      >>> twice = rule.update(mean_stats(jnp.array([-4.0, -4.0]), jnp.ones(2)), once)
      >>> rule.value(once).item(), rule.value(twice).item(), twice.mean.item()
      (1.0, 0.0, -1.5)
    """
    rule = _mean_rule(config.ema_rate)
    return rule._replace(value=lambda state: jnp.maximum(rule.value(state), 0.0))


def reward_shift_rule(
    config: RewardShiftConfig,
) -> AdaptiveRule[RunningMeanState, MeanStats, jax.Array]:
    """Follow the mean reward that BCO separates desirable from undesirable responses by.

    `shift <- (1 - a) shift + a newest`, with a the EMA rate and newest the mean of the statistics' values: the
    rewards `beta D_y` of chosen and rejected responses alike. The first sighting takes the newest itself.
    Without values, or where a sum is not finite, the state stays bit-identical.

    Source: BCO, arXiv 2404.04656.

    Args:
      config: options of the rule.

    Returns:
      `AdaptiveRule` whose value is the scalar shift, float32, units of reward; 0 until a value was seen.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxalign.adaptive import mean_stats
      >>> rule = reward_shift_rule(RewardShiftConfig(ema_rate=0.25))
      >>> once = rule.update(mean_stats(jnp.array([-1.0, -3.0]), jnp.ones(2)), rule.init())
      >>> twice = rule.update(mean_stats(jnp.array([2.0]), jnp.ones(1)), once)
      >>> rule.value(once).item(), rule.value(twice).item()
      (-2.0, -1.0)
    """
    return _mean_rule(config.ema_rate)


def _mean_rule(ema_rate: ArrayLike) -> AdaptiveRule[RunningMeanState, MeanStats, jax.Array]:
    def init() -> RunningMeanState:
        return RunningMeanState(mean=jnp.zeros((), jnp.float32), num_seen=jnp.zeros((), jnp.int32))

    def value(state: RunningMeanState) -> jax.Array:
        return jax.lax.stop_gradient(state.mean)

    def update(stats: MeanStats, state: RunningMeanState) -> RunningMeanState:
        stats, finite = read_sums(stats, total=(), count=())
        present = finite & (stats.count > 0)
        newest = stats.total / jnp.where(present, stats.count, 1.0)
        seen = state.num_seen > 0
        return RunningMeanState(
            mean=running_mean(state.mean, newest, ema_rate=ema_rate, seen=seen, present=present),
            num_seen=add_seen(state.num_seen, stats.count, present),
        )

    return AdaptiveRule(init, value, update)
