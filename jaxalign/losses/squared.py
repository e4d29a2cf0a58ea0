"""Losses that regress log-ratios onto a target with squared errors.

They pull the gap back once it exceeds the target. BFPO, whose target depends on safety, is in safety.py.
"""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import positive_like
from jaxalign.losses.log_ratios import log_ratios
from jaxalign.losses.numerics import length_average


def ipo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """IPO: squared distance of the log-ratio gap from 1 / (2 beta).

    `loss = (h - 1/(2 beta))^2`, in nats squared, on summed log-probabilities.

    Source: IPO, arXiv 2310.12036, equation 17 (beta is the paper's tau).

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
      >>> print(f"{ipo_loss(*logps, beta=0.1).item():.6f}")
      6.250000
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    target = 0.5 / positive_like(chosen, beta=beta)
    return (chosen - rejected - target) ** 2


def ipo_average_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """IPO on log-ratios per token, so that long responses do not dominate.

    `loss = (D_w/|w| - D_l/|l| - 1/(2 beta))^2`. With both lengths 1 this is `ipo_loss`.

    Source: IPO, arXiv 2310.12036, equation 17, with log-ratios averaged over tokens as TRL does. No gradient
    flows into the lengths.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response; 0 counts as 1.
      rejected_length: `[B]` the same of the rejected response.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> lengths = jnp.array([10]), jnp.array([8])
      >>> print(f"{ipo_average_loss(*logps, *lengths, beta=0.1).item():.5f}")
      22.20766
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    average_chosen = length_average(chosen, chosen_length=chosen_length)
    average_rejected = length_average(rejected, rejected_length=rejected_length)
    target = 0.5 / positive_like(chosen, beta=beta)
    return (average_chosen - average_rejected - target) ** 2


def sppo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """SPPO: each log-ratio is regressed onto its own target.

    `loss = (D_w - 1/(2 beta))^2 + (D_l + 1/(2 beta))^2`, in nats squared.

    Source: SPPO, arXiv 2405.00675, equation 4.7 with win probabilities 1 and 0 (the hard labels of a pair)
    and eta = 1/beta.

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
      >>> print(f"{sppo_loss(*logps, beta=0.1).item():.6f}")
      28.250000
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    target = 0.5 / positive_like(chosen, beta=beta)
    return (chosen - target) ** 2 + (rejected + target) ** 2


def cal_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """Cal-DPO: DPO plus a calibration of both log-ratios to the scale of a reward.

    `loss = -log s(h) + [(D_w - 1/(2 beta))^2 + (D_l + 1/(2 beta))^2] / 2`. The logistic part has no beta, the
    calibration is half of `sppo_loss`.

    Source: Cal-DPO, arXiv 2412.14516.

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
      >>> print(f"{cal_dpo_loss(*logps, beta=0.1).item():.6f}")
      14.203890
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    target = 0.5 / positive_like(chosen, beta=beta)
    calibration = (chosen - target) ** 2 + (rejected + target) ** 2
    return 0.5 * calibration - jax.nn.log_sigmoid(chosen - rejected)
