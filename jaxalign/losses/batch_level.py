"""Losses that compare each pair with the whole batch. Not defined pair by pair: vmap them over batches.

Every row takes part, so padded pairs must not be passed.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import matching_floats, positive_like, replicated
from jaxalign.losses.log_ratios import log_ratios


def aot_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """AOT on pairs: the policy's gaps are to exceed the reference's gaps in distribution.

    `loss_i = -log s(beta (g_i - r_i))` with `g = log pi(w) - log pi(l)` and r_i the reference gap that has
    the same rank among the reference gaps as g_i has among the policy gaps. The mean is that of the sorted
    form. Where the gaps differ, permuting pairs permutes losses; equal policy gaps are ranked by position.
    Every row takes part in the ranks, so leave padded pairs out of the call.

    Source: AOT, arXiv 2406.05882, the paired form.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, are not `[B]`, or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{aot_loss(*logps, beta=0.1).item():.6f}")
      0.575939
    """
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = matching_floats(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    policy_gap, reference_gap = policy_chosen - policy_rejected, reference_chosen - reference_rejected
    excess = policy_gap - _of_same_rank(reference_gap, policy_gap)
    return -jax.nn.log_sigmoid(positive_like(excess, beta=beta) * excess)


def aot_unpaired_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """AOT without pairs: chosen log-ratios are to exceed rejected ones in distribution.

    `loss_i = -log s(beta (D_w,i - d_i))` with d_i the rejected log-ratio that has the same rank among the
    rejected ones as D_w,i has among the chosen ones. The mean is that of the sorted form. Where the chosen
    log-ratios differ, permuting pairs permutes losses; equal ones are ranked by position. Every row takes part
    in the ranks, so leave padded pairs out of the call.

    Source: AOT, arXiv 2406.05882, the unpaired form.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, are not `[B]`, or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{aot_unpaired_loss(*logps, beta=0.1).item():.6f}")
      0.575939
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    excess = chosen - _of_same_rank(rejected, chosen)
    return -jax.nn.log_sigmoid(positive_like(excess, beta=beta) * excess)


def _of_same_rank(values: jax.Array, like: jax.Array) -> jax.Array:
    """For each entry of `like`, the entry of `values` with the same rank; both `[B]`."""
    if like.ndim != 1:
        raise ValueError(
            f"policy_chosen_logps has shape {like.shape}, expected [B]: AOT ranks a batch of pairs"
        )
    rank = jnp.argsort(jnp.argsort(replicated(like)))
    return jnp.sort(replicated(values))[rank]
