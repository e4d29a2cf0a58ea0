"""Losses that ask for a larger reward gap where exactly one response of the pair is unsafe.

The margins are given, never computed here: their state lives in `jaxalign.adaptive`.
"""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import constants_like, positive_like, scalar_like
from jaxalign.losses.log_ratios import log_ratios


def safe_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_unsafe: ArrayLike,
    rejected_unsafe: ArrayLike,
    *,
    beta: ArrayLike,
    delta: ArrayLike,
) -> jax.Array:
    """SafeDPO: DPO with one constant margin for all pairs of a safe and an unsafe response.

    `loss = -log s(beta h - (u_l - u_w) delta)`, where `u = 1` marks an unsafe response.

    Source: SafeDPO, arXiv 2505.20065. The data transform comes first: swap a pair whose chosen response alone
    is unsafe, drop a pair of two unsafe responses. No gradient flows into the flags and delta.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_unsafe: `[B]` 1 where the chosen response is unsafe, else 0; bool, integer or float.
      rejected_unsafe: `[B]` the same of the rejected response.
      beta: scalar, strength of the KL penalty, reward per nat.
      delta: scalar margin, in units of reward.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> loss = safe_dpo_loss(*logps, jnp.array([0]), jnp.array([1]), beta=0.1, delta=10.0)
      >>> print(f"{loss.item():.6f}")
      9.750058
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_unsafe, rejected_unsafe = constants_like(
        chosen, chosen_unsafe=chosen_unsafe, rejected_unsafe=rejected_unsafe
    )
    margin = (rejected_unsafe - chosen_unsafe) * jax.lax.stop_gradient(scalar_like(chosen, delta=delta))
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (chosen - rejected) - margin)


def cat_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_unsafe: ArrayLike,
    rejected_unsafe: ArrayLike,
    margin: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """Cat-DPO: DPO with a margin per pair, made from the adaptive margins of its harm categories.

    `loss = -log s(beta h - (u_l - u_w) m)`, where `u = 1` marks an unsafe response. With m = 0, the margin of
    a pair without a category, this is DPO bit for bit; with one constant m it is SafeDPO.

    Source: Cat-DPO, arXiv 2604.17299; reconstructed from the abstract, not checked against the authors' code.
    Margins come from `jaxalign.adaptive.margin_rule` and `pair_margins`. No gradient flows into the flags and
    the margin.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_unsafe: `[B]` 1 where the chosen response is unsafe, else 0; bool, integer or float.
      rejected_unsafe: `[B]` the same of the rejected response.
      margin: `[B]` margin of each pair, in units of reward.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> loss = cat_dpo_loss(*logps, jnp.array([0]), jnp.array([1]), jnp.array([1.0]), beta=0.1)
      >>> print(f"{loss.item():.6f}")
      1.136871
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_unsafe, rejected_unsafe, margin = constants_like(
        chosen, chosen_unsafe=chosen_unsafe, rejected_unsafe=rejected_unsafe, margin=margin
    )
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    return -jax.nn.log_sigmoid(reward_gap - (rejected_unsafe - chosen_unsafe) * margin)


def bfpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_unsafe: ArrayLike,
    rejected_unsafe: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """BFPO: squared distance of the log-ratio gap from a target that depends on safety.

    `loss = (h - f/beta)^2` with f = 1/2 if both responses are safe, 1 if only the chosen one is, -1 if only
    the rejected one is and -1/2 if none is; that is `f = 1/2 + u_l/2 - 3 u_w/2`, where `u = 1` marks an
    unsafe response.

    Source: BFPO, arXiv 2408.15313. No gradient flows into the flags.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_unsafe: `[B]` 1 where the chosen response is unsafe, else 0; bool, integer or float.
      rejected_unsafe: `[B]` the same of the rejected response.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{bfpo_loss(*logps, jnp.array([0]), jnp.array([1]), beta=0.1).item():.6f}")
      56.250000
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_unsafe, rejected_unsafe = constants_like(
        chosen, chosen_unsafe=chosen_unsafe, rejected_unsafe=rejected_unsafe
    )
    target = 0.5 + 0.5 * rejected_unsafe - 1.5 * chosen_unsafe
    return (chosen - rejected - target / positive_like(chosen, beta=beta)) ** 2
