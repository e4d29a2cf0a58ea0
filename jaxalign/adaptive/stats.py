"""Sums and counts over pairs, the input of the rules. No means, no rates and no state live here."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import matching_floats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CategoryStats:
    """Violations and pairs per category, summed over any part of the data.

    Statistics of two parts add up to those of the whole: `a + b`, or over devices
    `jax.lax.psum(stats, axis)`.

    Attributes:
      violations: `[K]` sum of the violations of each category's pairs.
      pairs: `[K]` number of pairs of each category.
    """

    violations: jax.Array
    pairs: jax.Array

    def __add__(self, other: "CategoryStats") -> "CategoryStats":
        if not isinstance(other, CategoryStats):
            return NotImplemented
        return jax.tree.map(jnp.add, self, other)


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
    belongs = jnp.asarray(categories).astype(bool)
    if belongs.ndim != 2 or belongs.shape[:1] != weight.shape:
        raise ValueError(
            f"categories has shape {belongs.shape}, expected [B, K] with the shape of violation "
            f"{violation.shape} as [B]"
        )
    counts = belongs & (weight > 0)[:, None]

    # A masked sum, not a matmul: that would spread NaN over all categories, and round to bfloat16 on a TPU.
    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counts, values[:, None], 0.0), axis=0)

    return jax.lax.stop_gradient(CategoryStats(violations=total(weight * violation), pairs=total(weight)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BalanceStats:
    """Sums over pairs, scalars; those of two parts of the data add up to those of the whole.

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

    def __add__(self, other: "BalanceStats") -> "BalanceStats":
        if not isinstance(other, BalanceStats):
            return NotImplemented
        return jax.tree.map(jnp.add, self, other)


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
    chosen_mi, rejected_mi, gradient_weight, weight = jax.lax.stop_gradient(
        matching_floats(
            chosen_mi=chosen_mi, rejected_mi=rejected_mi, gradient_weight=gradient_weight, weight=weight
        )
    )

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(weight > 0, weight * values, 0.0))

    return BalanceStats(total(chosen_mi), total(rejected_mi), total(gradient_weight), jnp.sum(weight))
