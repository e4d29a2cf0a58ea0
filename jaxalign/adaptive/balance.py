"""The scale and the weights of B-DPO: configuration, state and rule.

The maps from mutual information to weights live in weights.py, the statistics that the rule reads in
stats.py, the loss in `jaxalign.losses`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.adaptive.options import check_ema_rate, check_positive, in_order, is_known, keep_numbers
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.running_mean import add_seen, running_mean
from jaxalign.adaptive.stats import BalanceStats, read_sums
from jaxalign.adaptive.weights import power_weights, ratio_weights, softmax_weights
from jaxalign.arrays import matching_floats, scalar_like


@dataclasses.dataclass(frozen=True)
class BalanceConfig:
    """Options of the weights and the scale of B-DPO. Raises ValueError where one would have no effect.

    Numbers may come as scalars of numpy or jax, kept as floats, or traced: checks that need their value are then
    left out, and such a configuration cannot be hashed.

    Ablations: weights alone with `scale=1.0`, scale alone with `weights="none"`, both with a map and a scale.

    Attributes:
      weights: map from mutual information to weights; "none" gives exactly 1.
      floor: least mutual information of "ratio" and "power", and only there, nats per token; None is 0.01. It
        also bounds the running mean.
      temperature: of "softmax", and only there, nats per token.
      alpha: exponent of "power", and only there.
      minimum_weight: lower bound of a weight. Where a bound binds, the two weights no longer sum to 2.
      maximum_weight: upper bound of a weight; the maps stay below 2 by themselves.
      scale: constant c that multiplies the reward gap.
      scale_by_gradient_weight: use c over the running mean gradient weight instead of c.
      maximum_scale: upper bound of that quotient, and only with it. A larger scale lowers the gradient
        weight, which raises the scale again: without a bound it can grow for ever.
      ema_rate: share of the newest batch mean in the running means; 1 keeps the newest alone. With a constant
        scale and another map than "power" the means are read by nothing but the log, so it smooths that alone.
    """

    weights: Literal["ratio", "softmax", "power", "none"] = "ratio"
    floor: float | None = None
    temperature: float | None = None
    alpha: float | None = None
    minimum_weight: float = 0.0
    maximum_weight: float = 2.0
    scale: float = 1.0
    scale_by_gradient_weight: bool = False
    maximum_scale: float | None = None
    ema_rate: float = 0.01

    def __post_init__(self) -> None:
        if self.weights not in ("ratio", "softmax", "power", "none"):
            raise ValueError(f"weights={self.weights!r} must be 'ratio', 'softmax', 'power' or 'none'")
        keep_numbers(self, "floor", "temperature", "alpha", "minimum_weight", "maximum_weight")
        keep_numbers(self, "scale", "maximum_scale", "ema_rate")
        self._check_options_of_the_map()
        self._check_bounds()
        check_ema_rate(self.ema_rate)
        self._check_scale()

    @property
    def least_mi(self) -> float:
        """The floor in use, nats per token."""
        return 0.01 if self.floor is None else self.floor

    def _check_options_of_the_map(self) -> None:
        if self.floor is not None and self.weights not in ("ratio", "power"):
            raise ValueError(
                f"floor={self.floor} has no effect with weights={self.weights!r}; leave it out or set "
                "weights='ratio' or 'power'"
            )
        self._check_option_of_map("temperature", self.temperature, "softmax")
        self._check_option_of_map("alpha", self.alpha, "power")
        check_positive("floor", self.least_mi)
        # An infinite temperature is plain DPO.
        if self.temperature is not None and is_known(self.temperature) and not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        if self.alpha is not None and not in_order(0.0, self.alpha):
            raise ValueError(f"alpha={self.alpha} must be finite and not negative")

    def _check_option_of_map(self, name: str, option: Any, weights: str) -> None:
        if (option is not None) != (self.weights == weights):
            remedy = f"leave it out or set weights={weights!r}" if option is not None else "give it a value"
            raise ValueError(f"{name}={option} with weights={self.weights!r}: {remedy}")

    def _check_bounds(self) -> None:
        bounds = f"minimum_weight={self.minimum_weight} and maximum_weight={self.maximum_weight}"
        if not in_order(0.0, self.minimum_weight, 1.0, self.maximum_weight):
            raise ValueError(
                f"{bounds} must enclose 1, the weight of equal mutual information, and be finite and not negative"
            )
        traced = not is_known(self.minimum_weight, self.maximum_weight)
        if self.weights == "none" and (traced or (self.minimum_weight, self.maximum_weight) != (0.0, 2.0)):
            raise ValueError(f"{bounds} have no effect with weights='none'; leave them out or choose a map")

    def _check_scale(self) -> None:
        check_positive("scale", self.scale)
        if self.maximum_scale is None and self.scale_by_gradient_weight:
            raise ValueError(
                "maximum_scale=None with scale_by_gradient_weight=True: the scale could grow for ever; "
                "give it a bound such as 10 times the scale"
            )
        if self.maximum_scale is not None and not self.scale_by_gradient_weight:
            raise ValueError(
                f"maximum_scale={self.maximum_scale} has no effect on a constant scale; leave it out or set "
                "scale_by_gradient_weight=True"
            )
        if self.maximum_scale is not None and not in_order(self.scale, self.maximum_scale):
            raise ValueError(
                f"maximum_scale={self.maximum_scale} must be finite and at least scale={self.scale}, "
                "which is the quotient at the largest gradient weight, 1"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BalanceState:
    """Running means, scalars, carried from step to step; 0 until a pair was seen.

    Attributes:
      chosen_mi: float32, mean mutual information of chosen responses, nats per token.
      rejected_mi: float32, the same of rejected responses.
      gradient_weight: float32, mean gradient weight of a pair.
      num_seen: int32, pairs seen.
    """

    chosen_mi: jax.Array
    rejected_mi: jax.Array
    gradient_weight: jax.Array
    num_seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BalanceValue:
    """What the weights and the loss read from the state, scalars.

    Attributes:
      mean_mi: float32, mean mutual information over both branches, at least the floor; 0 until a pair was seen.
      scale: float32, factor g of the reward gap; the constant c until a pair was seen.
    """

    mean_mi: jax.Array
    scale: jax.Array


def balance_rule(config: BalanceConfig) -> AdaptiveRule[BalanceState, BalanceStats, BalanceValue]:
    """Track mean mutual information and gradient weight, and make the scale of B-DPO from them.

    `mean <- (1 - a) mean + a newest`, with a the EMA rate and newest the mean over the pairs of the
    statistics; the first sighting takes the newest itself. Without pairs, or where a sum is not finite, the
    state stays bit-identical.
    `g = c`, or `g = min(c / mean gradient weight, maximum_scale)`.

    Source: B-DPO, arXiv 2603.22829; reconstructed from the abstract, not checked against the authors' code.

    Args:
      config: options of the weights and the scale.

    Returns:
      `AdaptiveRule` whose value is a `BalanceValue`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxalign.adaptive import balance_stats
      >>> config = BalanceConfig(weights="none", scale_by_gradient_weight=True, maximum_scale=10.0)
      >>> rule = balance_rule(config)
      >>> one = jnp.ones(4)
      >>> state = rule.update(balance_stats(one, one, 0.25 * one, one), rule.init())
      >>> rule.value(rule.init()).scale.item(), rule.value(state).scale.item()
      (1.0, 4.0)
    """

    def init() -> BalanceState:
        # Four buffers, not one shared: a buffer cannot be donated twice.
        return BalanceState(
            chosen_mi=jnp.zeros((), jnp.float32),
            rejected_mi=jnp.zeros((), jnp.float32),
            gradient_weight=jnp.zeros((), jnp.float32),
            num_seen=jnp.zeros((), jnp.int32),
        )

    def value(state: BalanceState) -> BalanceValue:
        seen = state.num_seen > 0
        mean_mi = jnp.maximum((state.chosen_mi + state.rejected_mi) / 2, config.least_mi)
        scale = jnp.asarray(config.scale, jnp.float32)
        if config.maximum_scale is not None:
            # Dividing by max(weight, c / maximum) bounds the quotient without dividing by 0.
            least = config.scale / config.maximum_scale
            scale = jnp.where(seen, scale / jnp.maximum(state.gradient_weight, least), scale)
        return jax.lax.stop_gradient(BalanceValue(mean_mi=jnp.where(seen, mean_mi, 0.0), scale=scale))

    def update(stats: BalanceStats, state: BalanceState) -> BalanceState:
        stats, finite = read_sums(stats, chosen_mi=(), rejected_mi=(), gradient_weight=(), pairs=())
        present, seen = finite & (stats.pairs > 0), state.num_seen > 0
        num_pairs = jnp.where(present, stats.pairs, 1.0)

        def follow(mean: jax.Array, total: jax.Array) -> jax.Array:
            newest = total / num_pairs
            return running_mean(mean, newest, ema_rate=config.ema_rate, seen=seen, present=present)

        return BalanceState(
            chosen_mi=follow(state.chosen_mi, stats.chosen_mi),
            rejected_mi=follow(state.rejected_mi, stats.rejected_mi),
            gradient_weight=follow(state.gradient_weight, stats.gradient_weight),
            num_seen=add_seen(state.num_seen, stats.pairs, present),
        )

    return AdaptiveRule(init, value, update)


def balance_weights(
    config: BalanceConfig, value: BalanceValue, chosen_mi: ArrayLike, rejected_mi: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Weights of the chosen and the rejected log-ratios, by the configured map and within its bounds.

    Args:
      config: options of the weights.
      value: value of `balance_rule` before this step's update.
      chosen_mi: `[B]` mutual information of prompt and chosen response, nats per token.
      rejected_mi: `[B]` the same of the rejected response.

    Returns:
      `(chosen_weight, rejected_weight)`, each `[B]`. They sum to 2 per pair unless a bound binds. No gradient
      flows into them.

    Raises:
      ValueError: if the shapes differ; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> config = BalanceConfig(weights="ratio", minimum_weight=0.75)
      >>> value = balance_rule(config).value(balance_rule(config).init())
      >>> [weight.tolist() for weight in balance_weights(config, value, jnp.array([0.75]), jnp.array([0.25]))]
      [[0.75], [1.5]]
    """
    match config.weights:
        case "ratio":
            weights = ratio_weights(chosen_mi, rejected_mi, floor=config.least_mi)
        case "softmax":
            assert config.temperature is not None  # BalanceConfig has checked it
            weights = softmax_weights(chosen_mi, rejected_mi, temperature=config.temperature)
        case "power":
            assert config.alpha is not None
            weights = power_weights(
                chosen_mi, rejected_mi, value.mean_mi, alpha=config.alpha, floor=config.least_mi
            )
        case "none":
            ones = jnp.ones_like(matching_floats(chosen_mi=chosen_mi, rejected_mi=rejected_mi)[0])
            weights = ones, ones
    least = scalar_like(weights[0], minimum_weight=config.minimum_weight)
    most = scalar_like(weights[0], maximum_weight=config.maximum_weight)
    chosen, rejected = (jax.lax.stop_gradient(jnp.clip(weight, least, most)) for weight in weights)
    return chosen, rejected
