"""Losses of single responses that are marked desirable or not; no partner is needed.

The KL estimate and the reward shift are given, never estimated here: their state lives in `jaxalign.adaptive`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import constants_like, matching_floats, positive_like, scalar_like


def kto_loss(
    policy_logps: ArrayLike,
    reference_logps: ArrayLike,
    desirable: ArrayLike,
    *,
    beta: ArrayLike,
    kl: ArrayLike,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
) -> jax.Array:
    """KTO: prospect-theoretic utility of a response, relative to a reference point.

    `loss = a (1 - s(beta (D - z)))` of a desirable response and `b (1 - s(beta (z - D)))` of an undesirable
    one, with `z = max(0, kl)`, `a = desirable_weight`, `b = undesirable_weight`.

    Source: KTO, arXiv 2402.01306, equation 7. The estimate comes from `jaxalign.adaptive.kl_rule`. No
    gradient flows into the flags, kl and the weights.

    Args:
      policy_logps: `[B]` summed response log-probabilities under the policy, nats.
      reference_logps: `[B]` the same under the reference, nats.
      desirable: `[B]` 1 where the response is desirable, else 0; bool, integer or float.
      beta: scalar, strength of the KL penalty, reward per nat.
      kl: scalar, estimate of KL(policy || reference), nats; below 0 it counts as 0.
      desirable_weight: scalar, weight of desirable responses, at least 0.
      undesirable_weight: scalar, weight of undesirable responses, at least 0.

    Returns:
      `[B]` loss per response, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or a weight is negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([-20.0, -24.0]), jnp.array([-21.0, -22.5])
      >>> desirable = jnp.array([1, 0])
      >>> loss = kto_loss(policy, reference, desirable, beta=0.1, kl=0.2)
      >>> print(f"{loss[0]:.6f} {loss[1]:.6f}")
      0.480011 0.457602
    """
    log_ratio, sign = _log_ratio_and_sign(policy_logps, reference_logps, desirable)
    reference_point = jnp.maximum(scalar_like(log_ratio, kl=kl), 0.0)
    weight = jnp.where(
        sign > 0,
        positive_like(log_ratio, allow_zero=True, desirable_weight=desirable_weight),
        positive_like(log_ratio, allow_zero=True, undesirable_weight=undesirable_weight),
    )
    weight, reference_point = jax.lax.stop_gradient((weight, reference_point))
    reward = positive_like(log_ratio, beta=beta) * (log_ratio - reference_point)
    return weight * jax.nn.sigmoid(-sign * reward)


def bco_loss(
    policy_logps: ArrayLike,
    reference_logps: ArrayLike,
    desirable: ArrayLike,
    *,
    beta: ArrayLike,
    reward_shift: ArrayLike = 0.0,
) -> jax.Array:
    """BCO: classify each response as desirable or not by its implicit reward.

    `loss = -log s(beta D - delta)` of a desirable response and `-log s(-(beta D - delta))` of an undesirable
    one.

    Source: BCO, arXiv 2404.04656. No gradient flows into the flags and the shift.

    Args:
      policy_logps: `[B]` summed response log-probabilities under the policy, nats.
      reference_logps: `[B]` the same under the reference, nats.
      desirable: `[B]` 1 where the response is desirable, else 0; bool, integer or float.
      beta: scalar, strength of the KL penalty, reward per nat.
      reward_shift: scalar delta, the reward that counts as neutral; 0 or the value of `reward_shift_rule`.

    Returns:
      `[B]` loss per response, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([-20.0, -24.0]), jnp.array([-21.0, -22.5])
      >>> desirable = jnp.array([1, 0])
      >>> loss = bco_loss(policy, reference, desirable, beta=0.1)
      >>> print(f"{loss[0]:.6f} {loss[1]:.6f}")
      0.644397 0.620957
    """
    log_ratio, sign = _log_ratio_and_sign(policy_logps, reference_logps, desirable)
    shift = jax.lax.stop_gradient(scalar_like(log_ratio, reward_shift=reward_shift))
    return -jax.nn.log_sigmoid(sign * (positive_like(log_ratio, beta=beta) * log_ratio - shift))


def apo_zero_unpaired_loss(
    policy_logps: ArrayLike,
    reference_logps: ArrayLike,
    desirable: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """APO-zero of single responses: raise the desirable ones, lower the others.

    `loss = 1 - s(beta D)` of a desirable response and `s(beta D)` of an undesirable one.

    Source: APO, arXiv 2408.06266, equation 7, one term per response. No gradient flows into the flags.

    Args:
      policy_logps: `[B]` summed response log-probabilities under the policy, nats.
      reference_logps: `[B]` the same under the reference, nats.
      desirable: `[B]` 1 where the response is desirable, else 0; bool, integer or float.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per response, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> policy, reference = jnp.array([-20.0, -24.0]), jnp.array([-21.0, -22.5])
      >>> desirable = jnp.array([1, 0])
      >>> loss = apo_zero_unpaired_loss(policy, reference, desirable, beta=0.1)
      >>> print(f"{loss[0]:.6f} {loss[1]:.6f}")
      0.475021 0.462570
    """
    log_ratio, sign = _log_ratio_and_sign(policy_logps, reference_logps, desirable)
    return jax.nn.sigmoid(-sign * positive_like(log_ratio, beta=beta) * log_ratio)


def _log_ratio_and_sign(
    policy_logps: ArrayLike, reference_logps: ArrayLike, desirable: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    policy, reference = matching_floats(policy_logps=policy_logps, reference_logps=reference_logps)
    (desirable,) = constants_like(policy, desirable=desirable)
    sign = jnp.where(desirable > 0, 1.0, -1.0)
    return policy - reference, jnp.where(jnp.isnan(desirable), jnp.nan, sign).astype(policy.dtype)
