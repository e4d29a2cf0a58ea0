"""Weights of harm categories by group distributionally robust optimisation: configuration, state, rule.

The loss that uses the weights lives in `jaxalign.losses`, the statistics that the rule reads in stats.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.adaptive.options import check_positive, in_order, keep_count, keep_numbers
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.running_mean import add_seen
from jaxalign.adaptive.stats import GroupStats, read_sums
from jaxalign.arrays import as_float, membership


@dataclasses.dataclass(frozen=True)
class GroupDroConfig:
    """Options of the group weights. Raises ValueError where one is impossible.

    Numbers may be traced: checks that need their value are left out.

    Attributes:
      num_categories: K.
      step_size: eta, how fast weight moves to the groups of larger loss, 1 per nat and step.
      maximum_factor: upper bound of a category's factor, at least 1. Without one a category seen once in 64,000
        pairs would get a factor of tens of thousands, and one pair would be the whole step. A weight wholly on
        one of K equally frequent categories gives the factor K: choose the bound above K to reach that.
    """

    num_categories: int
    step_size: float
    maximum_factor: float = 10.0

    def __post_init__(self) -> None:
        keep_count(self, "num_categories")
        keep_numbers(self, "step_size", "maximum_factor")
        check_positive("step_size", self.step_size)
        if not in_order(1.0, self.maximum_factor):
            raise ValueError(
                f"maximum_factor={self.maximum_factor} must be finite and at least 1, the factor of a category "
                "that is drawn as often as it weighs"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupDroState:
    """Weights of the categories, carried from step to step.

    Attributes:
      weight: `[K]` float32, q, a point of the simplex.
      num_seen: `[K]` int32, pairs seen of each category. Counts stop at 2**31 - 1.
      num_pairs: scalar int32, pairs seen, also those of no category.
    """

    weight: jax.Array
    num_seen: jax.Array
    num_pairs: jax.Array


def group_dro_rule(config: GroupDroConfig) -> AdaptiveRule[GroupDroState, GroupStats, jax.Array]:
    """Move weight to the categories of larger loss, so that training lowers the worst of them.

    `q_k <- q_k exp(eta L_k)` for the categories with pairs in the statistics, L_k their mean loss; then those are
    scaled so that together they weigh what they did. With all categories present this is exponentiated
    ascent on the simplex. A category without pairs keeps its weight bit for bit. Where any sum is not finite
    the whole state stays as it is, as weights are relative to each other. No weight falls below the smallest
    normal float32, from where it could not rise again.

    The value turns q into factors of single pairs: a pair of category k is drawn with the frequency
    `num_seen_k / num_pairs`, so that with the factor `(q_k / sum of q over the categories seen) / frequency_k`
    the batch mean of weight times loss estimates `sum_k q_k L_k`. Where `maximum_factor` bounds the factor, the
    category counts with `maximum_factor * frequency_k` in place of its larger q_k.

    Source: group robust preference optimisation, arXiv 2405.20304; the bound and the treatment of absent
    categories, of pairs with several and of pairs with none are ours.

    Args:
      config: options of the rule.

    Returns:
      `AdaptiveRule` whose value is `[K]` float32 factors for `group_weights`, exactly 1 for an unseen category.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxalign.adaptive import group_stats
      >>> rule = group_dro_rule(GroupDroConfig(num_categories=2, step_size=1.0))
      >>> categories = jnp.array([[1, 0], [1, 0], [1, 0], [0, 1]])
      >>> state = rule.update(group_stats(jnp.array([0.5, 0.5, 0.5, 1.5]), categories, jnp.ones(4)), rule.init())
      >>> [round(q, 4) for q in state.weight.tolist()], [round(f, 4) for f in rule.value(state).tolist()]
      ([0.2689, 0.7311], [0.3586, 2.9242])
    """
    shape = (config.num_categories,)

    def init() -> GroupDroState:
        return GroupDroState(
            weight=jnp.full(shape, 1 / config.num_categories, jnp.float32),
            num_seen=jnp.zeros(shape, jnp.int32),
            num_pairs=jnp.zeros((), jnp.int32),
        )

    def value(state: GroupDroState) -> jax.Array:
        state = jax.lax.stop_gradient(state)
        seen = state.num_seen > 0
        seen_weight = jnp.sum(jnp.where(seen, state.weight, 0.0))
        share = state.weight / jnp.where(seen, seen_weight, 1.0)
        # num_pairs / num_seen before the product: both are large, their quotient is not
        rarity = state.num_pairs.astype(jnp.float32) / jnp.where(seen, state.num_seen, 1).astype(jnp.float32)
        # stop_gradient once more: the bound may be traced
        return jax.lax.stop_gradient(jnp.where(seen, jnp.minimum(share * rarity, config.maximum_factor), 1.0))

    def update(stats: GroupStats, state: GroupDroState) -> GroupDroState:
        stats, finite = read_sums(stats, loss=shape, pairs=shape, all_pairs=())
        present = finite & (stats.pairs > 0)
        loss = stats.loss / jnp.where(present, stats.pairs, 1.0)
        return GroupDroState(
            weight=_ascend(state.weight, loss, present, config),
            num_seen=add_seen(state.num_seen, stats.pairs, present),
            num_pairs=add_seen(state.num_pairs, stats.all_pairs, finite),
        )

    return AdaptiveRule(init, value, update)


def _ascend(weight: jax.Array, loss: jax.Array, present: jax.Array, config: GroupDroConfig) -> jax.Array:
    """One step of exponentiated ascent of `[K]` weights over the present categories."""
    # All present weigh exactly 1 together: rounding does not build up.
    mass = jnp.where(present.all(), 1.0, jnp.sum(jnp.where(present, weight, 0.0)))
    least = jnp.finfo(jnp.float32).tiny
    ascended = jnp.log(jnp.maximum(weight, least)) + config.step_size * loss
    share = jax.nn.softmax(jnp.where(present, ascended, jnp.finfo(jnp.float32).min))
    return jnp.where(present, jnp.maximum(mass * share, least), weight)


def group_weights(factors: ArrayLike, categories: ArrayLike) -> jax.Array:
    """Weight of each pair from the factors of its categories; 1 where a pair has none.

    `w_i = sum over k with C_ik = 1 of factor_k`.

    Args:
      factors: `[K]` value of `group_dro_rule` before this step's update.
      categories: `[B, K]` 1 where the pair belongs to the category, else 0; bool, integer or float.

    Returns:
      `[B]` weights of the losses; no gradient flows into them.

    Raises:
      ValueError: if the shapes do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> group_weights(jnp.array([0.5, 2.0]), jnp.array([[1, 0], [1, 1], [0, 0]])).tolist()
      [0.5, 2.5, 1.0]
    """
    factors = jax.lax.stop_gradient(as_float(factors))
    belongs = membership(categories)
    if factors.ndim != 1 or belongs.ndim != 2 or belongs.shape[1:] != factors.shape:
        raise ValueError(
            f"categories has shape {belongs.shape}, expected [B, K] for factors [K] of shape {factors.shape}"
        )
    total = jnp.sum(jnp.broadcast_to(factors, belongs.shape), axis=-1, where=belongs)
    return jnp.where(belongs.any(axis=-1), total, 1.0)
