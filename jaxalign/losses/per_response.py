"""Losses of pairs in which each response has a term of its own, against the reference instead of its partner.

The same terms for responses without a partner live in unpaired.py.
"""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import positive_like, scalar_like
from jaxalign.losses.log_ratios import log_ratios


def nca_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """NCA: the chosen response is raised by its absolute probability, both are held back.

    `loss = -log s(beta D_w) - log s(-beta D_w)/2 - log s(-beta D_l)/2`. The chosen reward is pulled to log 2
    and not beyond.

    Source: NCA, arXiv 2402.05369, for two responses of which one is chosen.

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
      >>> print(f"{nca_loss(*logps, beta=0.1).item():.6f}")
      1.327074
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    beta = positive_like(chosen, beta=beta)
    raised, chosen_held, rejected_held = (
        -jax.nn.log_sigmoid(reward) for reward in (beta * chosen, -beta * chosen, -beta * rejected)
    )
    return raised + 0.5 * chosen_held + 0.5 * rejected_held


def apo_zero_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """APO-zero: raise the chosen response, lower the rejected one, each on its own.

    `loss = 1 - s(beta D_w) + s(beta D_l)`. For data whose chosen responses are better than the model's own.

    Source: APO, arXiv 2408.06266, equation 7.

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
      >>> print(f"{apo_zero_loss(*logps, beta=0.1).item():.6f}")
      0.937591
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    beta = positive_like(chosen, beta=beta)
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """APO-down: lower the chosen response, and the rejected one more.

    `loss = s(beta D_w) + 1 - s(beta h)`. For data whose chosen responses are worse than the model's own.

    Source: APO, arXiv 2408.06266, equation 8.

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
      >>> print(f"{apo_down_loss(*logps, beta=0.1).item():.6f}")
      0.962803
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    beta = positive_like(chosen, beta=beta)
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))


def bco_pair_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    reward_shift: ArrayLike = 0.0,
) -> jax.Array:
    """BCO on pairs: classify the chosen response as good and the rejected one as bad.

    `loss = -log s(beta D_w - delta) - log s(-(beta D_l - delta))`. With delta = 0 this is the pair form of
    TRL.

    Source: BCO, arXiv 2404.04656. No gradient flows into the shift.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      beta: scalar, strength of the KL penalty, reward per nat.
      reward_shift: scalar delta, the reward that counts as neutral; 0 or the value of `reward_shift_rule`.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{bco_pair_loss(*logps, beta=0.1).item():.6f}")
      1.265354
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    beta = positive_like(chosen, beta=beta)
    shift = jax.lax.stop_gradient(scalar_like(chosen, reward_shift=reward_shift))
    return -jax.nn.log_sigmoid(beta * chosen - shift) - jax.nn.log_sigmoid(shift - beta * rejected)
