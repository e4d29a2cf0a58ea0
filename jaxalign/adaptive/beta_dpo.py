"""Beta-DPO: running mean and deviation of the log-ratio gaps, and from them beta and the pairs that are kept.

The loss that uses both lives in `jaxalign.losses`, the statistics that the rule reads in stats.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.adaptive.options import check_ema_rate, check_positive, in_order, is_known, keep_numbers
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.running_mean import add_seen, running_mean
from jaxalign.adaptive.stats import GapStats, read_sums
from jaxalign.arrays import matching_floats, replicated, scalar_like


@dataclasses.dataclass(frozen=True)
class BetaDpoConfig:
    """Options of beta-DPO. Raises ValueError where one is impossible.

    Numbers may be traced: checks that need their value are left out.

    Attributes:
      beta: beta0, strength of a batch of average gaps, 1 per nat.
      alpha: how strongly beta follows the gap, 1 per nat; 0 keeps beta constant.
      ema_rate: share of the newest batch in the running mean and deviation; 1 keeps the newest alone.
      keep_fraction: share of the pairs of a batch that is kept; 1 keeps all.
      minimum: lower bound of the adapted beta.
    """

    beta: float
    alpha: float
    ema_rate: float = 0.1
    keep_fraction: float = 0.8
    minimum: float = 1e-3

    def __post_init__(self) -> None:
        keep_numbers(self, "beta", "alpha", "ema_rate", "keep_fraction", "minimum")
        check_positive("minimum", self.minimum)
        if not in_order(self.minimum, self.beta):
            raise ValueError(f"beta={self.beta} must be finite and at least minimum={self.minimum}")
        if not in_order(0.0, self.alpha):
            raise ValueError(f"alpha={self.alpha} must be finite and not negative")
        check_ema_rate(self.ema_rate)
        if is_known(self.keep_fraction) and not 0 < self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction={self.keep_fraction} must be above 0 and at most 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BetaDpoState:
    """Running figures of the gaps, scalars, carried from step to step; 0 until a pair was seen.

    Attributes:
      mean: float32, M, mean gap, nats.
      std: float32, S, standard deviation of the gaps within a batch, nats.
      num_seen: int32, pairs seen. Stops at 2**31 - 1.
    """

    mean: jax.Array
    std: jax.Array
    num_seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BetaDpoValue:
    """What the selection reads from the state, scalars.

    Attributes:
      mean: float32, M, nats.
      std: float32, S, nats.
      seen: bool, whether any pair was seen.
    """

    mean: jax.Array
    std: jax.Array
    seen: jax.Array


def beta_dpo_rule(config: BetaDpoConfig) -> AdaptiveRule[BetaDpoState, GapStats, BetaDpoValue]:
    """Follow mean and standard deviation of the gaps `h = D_w - D_l`.

    `M <- (1 - a) M + a mean(h)` and `S <- (1 - a) S + a std(h)`, with a the EMA rate and the figures of the
    statistics' pairs. The deviation is that around the batch's own mean, `sqrt(mean(h^2) - mean(h)^2)`, and 0
    where it lies below a thousandth of the gaps, which float32 sums do not resolve. The first sighting takes
    both as they are. Without pairs, or where a sum is not finite, the state stays bit-identical.

    Source: beta-DPO, arXiv 2407.08639.

    Args:
      config: options of the rule.

    Returns:
      `AdaptiveRule` whose value is a `BetaDpoValue`, for `beta_dpo_selection`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxalign.adaptive import gap_stats
      >>> rule = beta_dpo_rule(BetaDpoConfig(beta=0.1, alpha=0.6))
      >>> state = rule.update(gap_stats(jnp.array([1.0, 3.0]), jnp.ones(2)), rule.init())
      >>> state.mean.item(), state.std.item()
      (2.0, 1.0)
    """

    def init() -> BetaDpoState:
        # Separate buffers: one buffer cannot be donated twice.
        return BetaDpoState(
            mean=jnp.zeros((), jnp.float32),
            std=jnp.zeros((), jnp.float32),
            num_seen=jnp.zeros((), jnp.int32),
        )

    def value(state: BetaDpoState) -> BetaDpoValue:
        state = jax.lax.stop_gradient(state)
        return BetaDpoValue(mean=state.mean, std=state.std, seen=state.num_seen > 0)

    def update(stats: GapStats, state: BetaDpoState) -> BetaDpoState:
        stats, finite = read_sums(stats, gap=(), squared_gap=(), pairs=())
        present, seen = finite & (stats.pairs > 0), state.num_seen > 0
        num_pairs = jnp.where(present, stats.pairs, 1.0)
        mean, mean_square = stats.gap / num_pairs, stats.squared_gap / num_pairs
        variance = mean_square - mean * mean
        # What float32 sums cannot resolve is 0: equal gaps must not look like a tiny, even negative, spread.
        std = jnp.sqrt(jnp.where(variance > 1e-6 * mean_square, variance, 0.0))

        def follow(old: jax.Array, newest: jax.Array) -> jax.Array:
            return running_mean(old, newest, ema_rate=config.ema_rate, seen=seen, present=present)

        return BetaDpoState(
            mean=follow(state.mean, mean),
            std=follow(state.std, std),
            num_seen=add_seen(state.num_seen, stats.pairs, present),
        )

    return AdaptiveRule(init, value, update)


def beta_dpo_selection(
    config: BetaDpoConfig, value: BetaDpoValue, gap: ArrayLike, weight: ArrayLike, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Beta of a batch and the pairs that it keeps, both from the gaps `h = D_w - D_l`.

    Of n real pairs `round(keep_fraction n)`, ties to even and at least one, are drawn without replacement, with
    probabilities in proportion to `exp(-((h - M) / S)^2 / 2)`, uniformly while S is 0 or nothing was seen. Then
    `beta = max(minimum, beta0 (1 + alpha (mean of the kept h - M)))`; beta0 itself before anything was seen. A
    real pair whose gap is not finite is kept first, so that it shows in beta and in the loss.

    Same key, same mask, also where the pairs lie on several devices as global arrays under jit. Noise belongs to
    the place in the batch: permuted pairs keep their probabilities, not their draws. On the shards of a
    `shard_map` this selects among each shard's own pairs, so gather the gaps first.

    Source: beta-DPO, arXiv 2407.08639.

    Args:
      config: options of the rule.
      value: value of `beta_dpo_rule` before this step's update.
      gap: `[B]` log-ratio of the chosen response minus that of the rejected one, h, nats.
      weight: `[B]` 1 for a real pair, 0 for padding, which is never kept.
      key: random key of this step.

    Returns:
      `(beta, keep)`: a scalar, 1 per nat, and `[B]` 1 for a kept pair, else 0. No gradient flows into them.

    Raises:
      ValueError: if the shapes of gap and weight differ or are not `[B]`; names the argument.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> config = BetaDpoConfig(beta=0.1, alpha=0.5, keep_fraction=0.75)
      >>> value = BetaDpoValue(mean=jnp.float32(1.0), std=jnp.float32(0.1), seen=jnp.array(True))
      >>> gap = jnp.array([1.0, 1.0, 4.0, 1.0, 9.0])
      >>> beta, keep = beta_dpo_selection(config, value, gap, jnp.array([1, 1, 1, 1, 0]), jax.random.key(0))
      >>> round(beta.item(), 6), keep.tolist()
      (0.1, [1.0, 1.0, 0.0, 1.0, 0.0])
    """
    gap, weight = jax.lax.stop_gradient(matching_floats(gap=gap, weight=weight))
    if gap.ndim != 1:
        raise ValueError(f"gap has shape {gap.shape}, expected [B]: pairs are ranked within one batch")
    mean, std = (scalar_like(gap, **{name: getattr(value, name)}) for name in ("mean", "std"))
    keep = _keep(
        config, value.seen & (std > 0), (gap - mean) / jnp.where(std > 0, std, 1.0), weight != 0, key
    )
    kept_weight = keep * weight
    total = jnp.sum(jnp.where(keep > 0, kept_weight * gap, 0.0))
    excess = total / jnp.maximum(kept_weight.sum(), jnp.finfo(gap.dtype).tiny) - mean
    base, alpha, minimum = (scalar_like(gap, **{n: getattr(config, n)}) for n in ("beta", "alpha", "minimum"))
    adapted = jnp.maximum(base * (1 + alpha * excess), minimum)
    beta = jnp.where(value.seen & (keep > 0).any(), adapted, base)
    return jax.lax.stop_gradient((beta, keep))


def _keep(
    config: BetaDpoConfig, informed: jax.Array, distance: jax.Array, real: jax.Array, key: jax.Array
) -> jax.Array:
    """`[B]` mask of the pairs of largest log-probability plus Gumbel noise: drawing without replacement."""
    log_probability = jnp.where(informed, -0.5 * distance**2, 0.0)
    noisy = log_probability + jax.random.gumbel(key, distance.shape, distance.dtype)
    # A far pair may overflow: it stays ahead of padding, and a broken one ahead of all.
    noisy = jnp.maximum(noisy, jnp.finfo(distance.dtype).min)
    score = jnp.where(real, jnp.where(jnp.isfinite(distance), noisy, jnp.inf), -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-replicated(score)))
    num_real = real.sum()
    fraction = scalar_like(distance, keep_fraction=config.keep_fraction)
    num_kept = jnp.maximum(jnp.round(fraction * num_real.astype(fraction.dtype)), 1).astype(rank.dtype)
    return ((rank < num_kept) & real).astype(distance.dtype)
