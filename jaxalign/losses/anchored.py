"""Losses that keep the chosen response from losing probability while the gap grows.

They add a term for one response to DPO. Losses that treat both responses apart live in per_response.py.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import between_like, positive_like
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.log_ratios import log_ratios
from jaxalign.losses.numerics import length_average


def rpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    *,
    beta: ArrayLike,
    alpha: ArrayLike,
) -> jax.Array:
    """RPO: DPO plus the negative log-probability per token of the chosen response.

    `loss = -log s(beta h) - alpha log pi(w)/|w|`. With alpha = 0 this is DPO.

    Source: iterative RPO, arXiv 2404.19733. No gradient flows into the length.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response; 0 counts as 1.
      beta: scalar, strength of the KL penalty, reward per nat.
      alpha: scalar, weight of the likelihood of the chosen response, at least 0.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or alpha is negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{rpo_loss(*logps, jnp.array([10]), beta=0.1, alpha=1.0).item():.6f}")
      2.575939
    """
    loss = dpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
    )
    average = length_average(jnp.asarray(policy_chosen_logps).astype(loss.dtype), chosen_length=chosen_length)
    return loss - positive_like(loss, allow_zero=True, alpha=alpha) * average


def dpop_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    lam: ArrayLike,
) -> jax.Array:
    """DPOP: DPO with a penalty where the chosen response is less probable than under the reference.

    `loss = -log s(beta (h - lam max(0, -D_w)))`. With D_w >= 0 or lam = 0 this is DPO. At the kink, D_w = 0,
    the penalty has gradient 0.

    Source: DPO-Positive, arXiv 2402.13228.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      lam: scalar, strength of the penalty, at least 0.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or lam is negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{dpop_loss(*logps, beta=0.1, lam=5.0).item():.6f}")
      0.575939
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    penalty = positive_like(chosen, allow_zero=True, lam=lam) * jax.nn.relu(-chosen)
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (chosen - rejected - penalty))


def bounded_dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    lam: ArrayLike,
) -> jax.Array:
    """Bounded DPO: DPO whose rejected log-ratio is that of a mixture of policy and reference.

    `loss = -log s(beta D_w - beta log(lam e^{D_l} + 1 - lam))`. The mixture is at least (1 - lam) times the
    reference, so nothing is won by driving the rejected response to probability 0.

    Source: BDPO, arXiv 2506.12725.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      lam: scalar, share of the policy in the mixture, in (0, 1).

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or lam not in (0, 1); names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{bounded_dpo_loss(*logps, beta=0.1, lam=0.5).item():.6f}")
      0.621339
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    lam = between_like(chosen, 0.0, 1.0, lam=lam)
    mixture = jnp.logaddexp(jnp.log(lam) + rejected, jnp.log1p(-lam))
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (chosen - mixture))
