"""What a pair tells the rules: whether it still violates its constraint, and how strongly it still pulls.

One value per pair; no sums and no state live here.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import as_float, scalar_like


def implicit_violation(
    reward_gap: ArrayLike, *, threshold: ArrayLike, temperature: ArrayLike | None = None
) -> jax.Array:
    """Violation of a pair by its implicit reward gap, hard or soft.

    Hard: `1[gap < threshold]`. Soft, with a temperature: `s((threshold - gap) / temperature)`.

    The gap is the plain `beta h`, also where a loss weights its log-ratios, so that weights do not change
    what a violation is. The threshold is a fixed level: a pair's own margin in its place would feed on
    itself, as every pair below its margin raises that margin, and would drive all margins to their maximum.

    Source: our offline violation signal for Cat-DPO, arXiv 2604.17299, reconstructed from the abstract.

    Args:
      reward_gap: `[B]` implicit reward gap `beta h` of each pair, units of reward.
      threshold: gap below which a pair is a violation, units of reward; a scalar or `[B]`.
      temperature: width of the soft step, units of reward; None for the hard step.

    Returns:
      `[B]` violation between 0 and 1; NaN where the gap is NaN. No gradient flows into it.

    Raises:
      ValueError: if the temperature is not positive and finite or the shape of threshold does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> gap = jnp.array([-1.0, 0.0, 1.0])
      >>> implicit_violation(gap, threshold=0.0).tolist()
      [1.0, 0.0, 0.0]
      >>> [round(v, 6) for v in implicit_violation(gap, threshold=0.0, temperature=1.0).tolist()]
      [0.731059, 0.5, 0.268941]
    """
    gap = jax.lax.stop_gradient(as_float(reward_gap))
    level = jax.lax.stop_gradient(jnp.asarray(threshold).astype(gap.dtype))
    if level.shape not in ((), gap.shape):
        raise ValueError(f"threshold has shape {level.shape}, expected a scalar or {gap.shape}")
    if temperature is not None:
        if (
            not isinstance(temperature, jax.core.Tracer)
            and not 0 < float(jax.device_get(temperature)) < math.inf
        ):
            raise ValueError(
                f"temperature={temperature} must be positive and finite; leave it out for the hard step"
            )
        width = jax.lax.stop_gradient(scalar_like(gap, temperature=temperature))
        return jax.nn.sigmoid((level - gap) / width)
    # A comparison with NaN is false: without this a broken pair would pass as safe.
    return jnp.where(jnp.isnan(gap), gap, (gap < level).astype(gap.dtype))


def gradient_weight(loss: ArrayLike) -> jax.Array:
    """Gradient weight of each pair under a logistic loss.

    `loss = -log s(z)` has the derivative `-s(-z)` in its argument z, and `s(-z) = 1 - exp(-loss)`. The weight
    is 1/2 where z is 0 and falls to 0 as the pair is learnt. That the scale of B-DPO may follow its mean is
    our reconstruction.

    Args:
      loss: `[B]` per-pair value of any loss `-log s(z)`, nats.

    Returns:
      `[B]` weights between 0 and 1; no gradient flows into them.

    Example:
      >>> import jax.numpy as jnp
      >>> print(f"{gradient_weight(jnp.array([0.575939])).item():.6f}")  # DPO of the fixed case, z = 0.25
      0.437823
    """
    return -jnp.expm1(-jax.lax.stop_gradient(as_float(loss)))
