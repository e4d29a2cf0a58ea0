"""DPO times a factor per pair. The state that the factors come from lives in `jaxalign.adaptive`."""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import constants_like
from jaxalign.losses.dpo import dpo_loss


def group_dro_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    group_weight: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """Group-robust DPO: every pair weighted by how badly its group does.

    `loss = -g log s(beta h)`. With g from `group_weights` the batch mean estimates `sum_k q_k L_k` over the
    groups k. With g = 1 this is DPO.

    Source: group-robust preference optimisation, arXiv 2405.20304. Weights come from
    `jaxalign.adaptive.group_dro_rule`. No gradient flows into them.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      group_weight: `[B]` factor of each pair, at least 0.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{group_dro_loss(*logps, jnp.array([1.5]), beta=0.1).item():.6f}")
      0.863909
    """
    loss = dpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
    )
    (group_weight,) = constants_like(loss, group_weight=group_weight)
    return group_weight * loss


def beta_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    keep: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """beta-DPO: DPO with a beta of the batch, over the pairs that its filter keeps.

    `loss = -keep log s(beta h)`. With keep = 1 and a constant beta this is DPO. With keep = mask * n / n_kept,
    n pairs of which n_kept are kept, the batch mean is the mean over the kept pairs.

    Source: beta-DPO, arXiv 2407.08639. beta and the mask come from `jaxalign.adaptive.beta_dpo_selection`. No
    gradient flows into the factors.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      keep: `[B]` factor of each pair, 0 drops it: the mask of the kept pairs, or the mask times n / n_kept; bool,
        integer or float.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> logps = [jnp.repeat(x, 2) for x in logps]
      >>> loss = beta_dpo_loss(*logps, jnp.array([1, 0]), beta=0.1)
      >>> print(f"{loss[0]:.6f} {loss[1]:.6f}")
      0.575939 0.000000
    """
    loss = dpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
    )
    (keep,) = constants_like(loss, keep=keep)
    return keep * loss
