"""Losses of the reward gap alone whose shape is not the logistic one of DPO.

Squared shapes live in squared.py, shapes for noisy labels in label_noise.py.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import positive_like
from jaxalign.losses.log_ratios import log_ratios


def hinge_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """Hinge loss of the reward gap: a pair beyond the margin 1 costs nothing.

    `loss = max(0, 1 - beta h)`. At the kink, `beta h = 1`, the gradient is 0.

    Source: the hinge loss of SLiC-HF, arXiv 2305.10425, on the reward gap of DPO.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{hinge_loss(*logps, beta=0.1).item():.6f}")
      0.750000
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return jax.nn.relu(1.0 - positive_like(chosen, beta=beta) * (chosen - rejected))


def discopop_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    temperature: ArrayLike = 0.05,
) -> jax.Array:
    """DiscoPOP: logistic below a reward gap of 0, exponential above, found by search.

    `loss = (1 - m) (-log s(x)) + m e^{-x}` with `x = beta h` and `m = s(x/T)`. It is not convex: at
    T = 0.05 it rises by 0.09 between x = -0.12 and x = 0.07. With T above 1 the exponential is no longer
    damped at large negative gaps and overflows.

    Source: DiscoPOP, arXiv 2406.08414, equation 5 (the log-ratio modulated loss).

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      temperature: scalar T, width of the transition between the two shapes, in units of reward.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, or beta or temperature is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{discopop_loss(*logps, beta=0.1).item():.6f}")
      0.777443
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    modulation = reward_gap / positive_like(chosen, temperature=temperature)
    logistic = -jax.nn.sigmoid(-modulation) * jax.nn.log_sigmoid(reward_gap)
    # m and e^{-x} in one exponent: the first underflows where the second overflows.
    return logistic + jnp.exp(jax.nn.log_sigmoid(modulation) - reward_gap)
