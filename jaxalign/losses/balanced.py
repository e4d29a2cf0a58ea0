"""Losses that weight the chosen and the rejected log-ratio separately, by mutual information.

The weights and the scale are given, never computed here: they come from `jaxalign.adaptive`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import constants_like, positive_like, scalar_like
from jaxalign.losses.log_ratios import log_ratios


def b_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_weight: ArrayLike,
    rejected_weight: ArrayLike,
    *,
    beta: ArrayLike,
    scale: ArrayLike = 1.0,
) -> jax.Array:
    """B-DPO: DPO whose two log-ratios are weighted by how well the model comprehends each response.

    `loss = -log s(g beta (w_w D_w - w_l D_l))`. With both weights 1 and g = 1 this is DPO bit for bit.

    Source: B-DPO, arXiv 2603.22829; reconstructed from the abstract, not checked against the authors' code.
    Weights come from `jaxalign.adaptive.balance_weights`. No gradient flows into the weights and the scale.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_weight: `[B]` weight w_w of the chosen log-ratio.
      rejected_weight: `[B]` weight w_l of the rejected log-ratio.
      beta: scalar, strength of the KL penalty, reward per nat.
      scale: factor g, a scalar or `[B]`.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{b_dpo_loss(*logps, jnp.array([0.5]), jnp.array([1.5]), beta=0.1).item():.6f}")
      0.565071
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_weight, rejected_weight, scale = constants_like(
        chosen,
        chosen_weight=chosen_weight,
        rejected_weight=rejected_weight,
        scale=_per_pair(scale, chosen),
    )
    gap = chosen_weight * chosen - rejected_weight * rejected
    return -jax.nn.log_sigmoid(scale * positive_like(chosen, beta=beta) * gap)


def cat_b_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_unsafe: ArrayLike,
    rejected_unsafe: ArrayLike,
    margin: ArrayLike,
    chosen_weight: ArrayLike,
    rejected_weight: ArrayLike,
    *,
    beta: ArrayLike,
    scale: ArrayLike = 1.0,
) -> jax.Array:
    """Cat-DPO and B-DPO together: weighted log-ratios and a margin per pair.

    `loss = -log s(g beta (w_w D_w - w_l D_l) - (u_l - u_w) m)`. The scale does not multiply the margin. With
    both weights 1 and g = 1 this is Cat-DPO bit for bit, with m = 0 it is B-DPO bit for bit.

    Source: our combination of Cat-DPO, arXiv 2604.17299, and B-DPO, arXiv 2603.22829, both reconstructed from
    the abstract. No gradient flows into the flags, the margin, the weights and the scale.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_unsafe: `[B]` 1 where the chosen response is unsafe, else 0; bool, integer or float.
      rejected_unsafe: `[B]` the same of the rejected response.
      margin: `[B]` margin of each pair, in units of reward.
      chosen_weight: `[B]` weight w_w of the chosen log-ratio.
      rejected_weight: `[B]` weight w_l of the rejected log-ratio.
      beta: scalar, strength of the KL penalty, reward per nat.
      scale: factor g, a scalar or `[B]`.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> safe, unsafe, margin = jnp.array([0]), jnp.array([1]), jnp.array([1.0])
      >>> weights = jnp.array([0.5]), jnp.array([1.5])
      >>> print(f"{cat_b_dpo_loss(*logps, safe, unsafe, margin, *weights, beta=0.1).item():.6f}")
      1.119960
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_unsafe, rejected_unsafe, margin, chosen_weight, rejected_weight, scale = constants_like(
        chosen,
        chosen_unsafe=chosen_unsafe,
        rejected_unsafe=rejected_unsafe,
        margin=margin,
        chosen_weight=chosen_weight,
        rejected_weight=rejected_weight,
        scale=_per_pair(scale, chosen),
    )
    gap = chosen_weight * chosen - rejected_weight * rejected
    reward_gap = scale * positive_like(chosen, beta=beta) * gap
    return -jax.nn.log_sigmoid(reward_gap - (rejected_unsafe - chosen_unsafe) * margin)


def _per_pair(scale: ArrayLike, like: jax.Array) -> ArrayLike:
    return jnp.broadcast_to(scalar_like(like, scale=scale), like.shape) if jnp.ndim(scale) == 0 else scale
