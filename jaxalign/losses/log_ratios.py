"""Log-ratios of policy and reference, which every reference-based loss is made of. No loss lives here."""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import matching_floats


def log_ratios(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Log-ratios D_w and D_l of the chosen and the rejected responses.

    `D_y = log pi_theta(y|x) - log pi_ref(y|x)`. The implicit reward of a response is `beta * D_y`, and the
    reward gap of a pair `beta * h` with `h = D_w - D_l`.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.

    Returns:
      `(D_w, D_l)`, each `[B]`, nats; float64 if an argument is, else float32.

    Raises:
      ValueError: if the shapes differ; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> chosen, rejected = log_ratios(
      ...     jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      ... )
      >>> chosen.tolist(), rejected.tolist()
      ([1.0], [-1.5])
    """
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = matching_floats(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected
