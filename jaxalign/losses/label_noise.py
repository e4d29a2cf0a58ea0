"""Losses that expect some labels to be flipped.

The rate of flips is given, never estimated here.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import between_like, positive_like
from jaxalign.losses.log_ratios import log_ratios


def cdpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
) -> jax.Array:
    """Conservative DPO: cross-entropy with labels that are flipped with probability e.

    `loss = -(1 - e) log s(beta h) - e log s(-beta h)`. It is least at `s(beta h) = 1 - e` and grows beyond,
    so the reward gap does not run away. With e = 0 this is DPO.

    Source: cDPO, Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      label_smoothing: scalar, probability e that the label of a pair is flipped, in [0, 0.5).

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or label_smoothing not in [0, 0.5); names the
        argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{cdpo_loss(*logps, beta=0.1, label_smoothing=0.1).item():.6f}")
      0.600939
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    label_smoothing = between_like(chosen, 0.0, 0.5, allow_low=True, label_smoothing=label_smoothing)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    kept, flipped = jax.nn.log_sigmoid(reward_gap), jax.nn.log_sigmoid(-reward_gap)
    return -(1.0 - label_smoothing) * kept - label_smoothing * flipped


def robust_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
) -> jax.Array:
    """Robust DPO: an unbiased estimate of the DPO loss without label noise.

    `loss = [-(1 - e) log s(beta h) + e log s(-beta h)] / (1 - 2 e)`, whose mean over flips with probability e
    is the DPO loss of the true label. A single value may be negative. With e = 0 this is DPO.

    Source: robust DPO, arXiv 2403.00409.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      label_smoothing: scalar, probability e that the label of a pair is flipped, in [0, 0.5).

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or label_smoothing not in [0, 0.5); names the
        argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{robust_dpo_loss(*logps, beta=0.1, label_smoothing=0.1).item():.6f}")
      0.544689
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    label_smoothing = between_like(chosen, 0.0, 0.5, allow_low=True, label_smoothing=label_smoothing)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    kept, flipped = jax.nn.log_sigmoid(reward_gap), jax.nn.log_sigmoid(-reward_gap)
    return (label_smoothing * flipped - (1.0 - label_smoothing) * kept) / (1.0 - 2.0 * label_smoothing)


def exo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike = 1e-3,
) -> jax.Array:
    """EXO: reverse KL divergence from the smoothed label to the policy's preference.

    `loss = q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e)` with `q = s(beta h)`. It is 0 at
    `q = 1 - e`. The gradient vanishes where q is near 0 or 1, so a pair that the policy ranks far wrong is
    left alone.

    Source: EXO, arXiv 2402.00856, equation 16 (the form for two responses).

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      label_smoothing: scalar, probability e that the rejected response is the better one, in (0, 0.5).

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or label_smoothing not in (0, 0.5); names the
        argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{exo_loss(*logps, beta=0.1).item():.6f}")
      2.339545
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    label_smoothing = between_like(chosen, 0.0, 0.5, label_smoothing=label_smoothing)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    log_chosen, log_rejected = jax.nn.log_sigmoid(reward_gap), jax.nn.log_sigmoid(-reward_gap)
    return jnp.exp(log_chosen) * (log_chosen - jnp.log1p(-label_smoothing)) + jnp.exp(log_rejected) * (
        log_rejected - jnp.log(label_smoothing)
    )
