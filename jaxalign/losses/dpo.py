"""Direct preference optimisation. Losses with margins live in safety.py, with weights in balanced.py."""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import positive_like
from jaxalign.losses.log_ratios import log_ratios


def dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """DPO: logistic loss of the reward gap.

    `loss = -log s(beta h)`, where `h = D_w - D_l` is the difference of the log-ratios and s the sigmoid.

    Source: DPO, arXiv 2305.18290, equation 7.

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
      >>> print(f"{dpo_loss(*logps, beta=0.1).item():.6f}")
      0.575939
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (chosen - rejected))
