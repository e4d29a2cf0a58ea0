"""Reference-based losses that know how long the responses are.

Reference-free ones live in reference_free.py, the length-averaged IPO in squared.py.
"""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import constants_like, positive_like, scalar_like
from jaxalign.losses.log_ratios import log_ratios
from jaxalign.losses.numerics import length_average


def r_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    beta: ArrayLike,
    alpha: ArrayLike,
) -> jax.Array:
    """R-DPO: DPO with a margin proportional to the difference in length.

    `loss = -log s(beta h - alpha (|w| - |l|))`. With alpha = 0 or equal lengths this is DPO. A positive alpha
    makes a longer chosen response win by more; a negative one discounts what its length already explains, which
    is the sign that follows from a reward with a penalty per token, `r - |alpha| |y|`. Descriptions of the
    method differ in it.

    Source: R-DPO, arXiv 2403.19159. No gradient flows into the lengths.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response.
      rejected_length: `[B]` the same of the rejected response.
      beta: scalar, strength of the KL penalty, reward per nat.
      alpha: scalar, reward per token of difference in length, of either sign.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> lengths = jnp.array([10]), jnp.array([8])
      >>> print(f"{r_dpo_loss(*logps, *lengths, beta=0.1, alpha=0.02).item():.6f}")
      0.593650
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    num_chosen, num_rejected = constants_like(
        chosen, chosen_length=chosen_length, rejected_length=rejected_length
    )
    margin = scalar_like(chosen, alpha=alpha) * (num_chosen - num_rejected)
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (chosen - rejected) - margin)


def sigmoid_norm_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """DPO on log-ratios per token.

    `loss = -log s(beta (D_w/|w| - D_l/|l|))`. With both lengths 1 this is DPO.

    Source: the length-normalised DPO of Tulu 3, arXiv 2411.15124, which TRL calls sigmoid_norm. No gradient
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
      >>> print(f"{sigmoid_norm_loss(*logps, *lengths, beta=0.1).item():.5f}")
      0.67888
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    average_chosen = length_average(chosen, chosen_length=chosen_length)
    average_rejected = length_average(rejected, rejected_length=rejected_length)
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (average_chosen - average_rejected))
