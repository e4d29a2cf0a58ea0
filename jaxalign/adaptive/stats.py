"""Sums and counts over pairs, the input of the rules. No means, no rates and no state live here."""

import dataclasses
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import matching_floats, membership


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over any part of the data; those of two parts add up to those of the whole.

    Add them with `a + b`, over devices with `jax.lax.psum(stats, axis)`.
    """

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return jax.tree.map(jnp.add, self, other)


S = TypeVar("S", bound=Sums)


def read_sums(stats: S, **shapes: tuple[int, ...]) -> tuple[S, jax.Array]:
    """The sums in float32, cut off from the gradient, and whether all of them are finite.

    Raises ValueError, naming the field, if its shape is not the given one.
    """
    for name, shape in shapes.items():
        given = jnp.shape(getattr(stats, name))
        if given != shape:
            meaning = "num_categories" if shape else "a scalar"
            raise ValueError(f"stats.{name} has shape {given}, expected {shape}, {meaning}")
    stats = jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x).astype(jnp.float32)), stats)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(stats)]).all()
    return stats, finite


def _total(values: jax.Array, weight: jax.Array) -> jax.Array:
    # Not a dot product: that would let NaN of padding through, and round to bfloat16 on a TPU.
    return jax.lax.stop_gradient(jnp.sum(jnp.where(weight != 0, weight * values, 0.0)))


def _category_totals(
    values: jax.Array, categories: ArrayLike, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`[K]` sums of the values `[B]` of each category's pairs, and their number."""
    belongs = membership(categories)
    if belongs.ndim != 2 or belongs.shape[:1] != weight.shape:
        raise ValueError(
            f"categories has shape {belongs.shape}, expected [B, K] with the shape of weight {weight.shape} as [B]"
        )
    counts = belongs & (weight != 0)[:, None]

    # A masked sum, not a matmul: that would spread NaN over all categories as well.
    def total(of_pair: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(jnp.sum(jnp.where(counts, of_pair[:, None], 0.0), axis=0))

    return total(weight * values), total(weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CategoryStats(Sums):
    """Violations and pairs per category, summed over any part of the data.

    Attributes:
      violations: `[K]` sum of the violations of each category's pairs.
      pairs: `[K]` number of pairs of each category.
    """

    violations: jax.Array
    pairs: jax.Array


def category_stats(violation: ArrayLike, categories: ArrayLike, weight: ArrayLike) -> CategoryStats:
    """Sum violations and pairs over a batch, per category.

    `violations_k = sum_i weight_i C_ik violation_i`, `pairs_k = sum_i weight_i C_ik`. A pair of several
    categories counts in each. What a pair of weight 0 holds, even NaN, does not count.

    Args:
      violation: `[B]` 1 where the pair violates its constraint, 0 where not, or a value between.
      categories: `[B, K]` 1 where the pair belongs to the category, else 0; bool, integer or float.
      weight: `[B]` 1 for a real pair, 0 for padding.

    Returns:
      `CategoryStats` of two `[K]` sums; no gradient flows into them.

    Raises:
      ValueError: if the shapes do not fit together; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> categories = jnp.array([[1, 0], [1, 1], [1, 1]])
      >>> stats = category_stats(jnp.array([1, 0, 1]), categories, weight=jnp.array([1, 1, 0]))
      >>> stats.violations.tolist(), stats.pairs.tolist()
      ([1.0, 0.0], [2.0, 1.0])
    """
    violation, weight = matching_floats(violation=violation, weight=weight)
    return CategoryStats(*_category_totals(violation, categories, weight))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BalanceStats(Sums):
    """Mutual information and gradient weights, scalar sums over pairs.

    Attributes:
      chosen_mi: sum of the chosen responses' mutual information, nats per token.
      rejected_mi: the same of the rejected responses.
      gradient_weight: sum of the gradient weights.
      pairs: number of pairs.
    """

    chosen_mi: jax.Array
    rejected_mi: jax.Array
    gradient_weight: jax.Array
    pairs: jax.Array


def balance_stats(
    chosen_mi: ArrayLike, rejected_mi: ArrayLike, gradient_weight: ArrayLike, weight: ArrayLike
) -> BalanceStats:
    """Sum mutual information and gradient weight over a batch. What a pair of weight 0 holds does not count.

    Args:
      chosen_mi: `[B]` mutual information of prompt and chosen response, nats per token.
      rejected_mi: `[B]` the same of the rejected response.
      gradient_weight: `[B]` gradient weight of each pair, from the function of that name.
      weight: `[B]` 1 for a real pair, 0 for padding.

    Returns:
      `BalanceStats` of scalar sums; no gradient flows into them.

    Raises:
      ValueError: if the shapes differ; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> one = jnp.ones(2)
      >>> stats = balance_stats(0.5 * one, 0.25 * one, 0.5 * one, jnp.array([1, 0]))
      >>> stats.chosen_mi.item(), stats.pairs.item()
      (0.5, 1.0)
    """
    chosen_mi, rejected_mi, gradient_weight, weight = matching_floats(
        chosen_mi=chosen_mi, rejected_mi=rejected_mi, gradient_weight=gradient_weight, weight=weight
    )
    sums = (_total(x, weight) for x in (chosen_mi, rejected_mi, gradient_weight, jnp.ones_like(weight)))
    return BalanceStats(*sums)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupStats(Sums):
    """Losses and pairs per category, and the number of all pairs.

    Attributes:
      loss: `[K]` sum of the losses of each category's pairs, nats.
      pairs: `[K]` number of pairs of each category.
      all_pairs: scalar, number of pairs, also those of no category.
    """

    loss: jax.Array
    pairs: jax.Array
    all_pairs: jax.Array


def group_stats(loss: ArrayLike, categories: ArrayLike, weight: ArrayLike) -> GroupStats:
    """Sum losses and pairs over a batch, per category.

    `loss_k = sum_i weight_i C_ik loss_i`, `pairs_k = sum_i weight_i C_ik`. A pair of several categories counts
    in each, but once in `all_pairs`. What a pair of weight 0 holds, even NaN, does not count.

    Args:
      loss: `[B]` per-pair loss before any group weight, nats.
      categories: `[B, K]` 1 where the pair belongs to the category, else 0; bool, integer or float.
      weight: `[B]` 1 for a real pair, 0 for padding.

    Returns:
      `GroupStats` of two `[K]` sums and a scalar; no gradient flows into them.

    Raises:
      ValueError: if the shapes do not fit together; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> stats = group_stats(jnp.array([0.5, 1.0, 2.0]), jnp.array([[1, 0], [1, 1], [0, 0]]), jnp.ones(3))
      >>> stats.loss.tolist(), stats.pairs.tolist(), stats.all_pairs.item()
      ([1.5, 1.0], [2.0, 1.0], 3.0)
    """
    loss, weight = matching_floats(loss=loss, weight=weight)
    totals = _category_totals(loss, categories, weight)
    return GroupStats(*totals, all_pairs=_total(jnp.ones_like(weight), weight))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GapStats(Sums):
    """Gaps of the log-ratios, scalar sums over pairs.

    Attributes:
      gap: sum of the gaps h, nats.
      squared_gap: sum of their squares.
      pairs: number of pairs.
    """

    gap: jax.Array
    squared_gap: jax.Array
    pairs: jax.Array


def gap_stats(gap: ArrayLike, weight: ArrayLike) -> GapStats:
    """Sum gaps and their squares over a batch. What a pair of weight 0 holds, even NaN, does not count.

    Args:
      gap: `[B]` log-ratio of the chosen response minus that of the rejected one, h, nats.
      weight: `[B]` 1 for a real pair, 0 for padding.

    Returns:
      `GapStats` of scalar sums; no gradient flows into them.

    Raises:
      ValueError: if the shapes differ; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> stats = gap_stats(jnp.array([1.0, -2.0, jnp.nan]), jnp.array([1, 1, 0]))
      >>> stats.gap.item(), stats.squared_gap.item(), stats.pairs.item()
      (-1.0, 5.0, 2.0)
    """
    gap, weight = matching_floats(gap=gap, weight=weight)
    return GapStats(*(_total(x, weight) for x in (gap, gap * gap, jnp.ones_like(gap))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MeanStats(Sums):
    """A sum and a count of anything, scalars.

    Attributes:
      total: sum of the values.
      count: number of values.
    """

    total: jax.Array
    count: jax.Array


def mean_stats(values: ArrayLike, weight: ArrayLike) -> MeanStats:
    """Sum values over a batch. What a value of weight 0 is, even NaN, does not count.

    Args:
      values: `[N]` anything whose mean is followed, such as log-ratios in nats.
      weight: `[N]` 1 for a real value, 0 for padding.

    Returns:
      `MeanStats` of scalar sums; no gradient flows into them.

    Raises:
      ValueError: if the shapes differ; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> stats = mean_stats(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0]))
      >>> stats.total.item(), stats.count.item()
      (4.0, 2.0)
    """
    values, weight = matching_floats(values=values, weight=weight)
    return MeanStats(_total(values, weight), _total(jnp.ones_like(values), weight))
