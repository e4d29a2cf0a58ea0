"""DPO with a margin or a weight per pair that comes from scores of the two responses.

The scores are given: from a judge, a reward model or another preference-trained policy.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import between_like, constants_like, positive_like, scalar_like
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.log_ratios import log_ratios


def odpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_score: ArrayLike,
    rejected_score: ArrayLike,
    *,
    beta: ArrayLike,
    alpha: ArrayLike,
) -> jax.Array:
    """ODPO: DPO with an offset that grows with the gap between the scores.

    `loss = -log s(beta h - alpha log(score_w - score_l))`. Equal scores give the limit, loss and gradient 0;
    a negative gap has no logarithm and gives NaN. With alpha = 0 this is DPO, whatever the scores.

    Source: ODPO, arXiv 2402.10571. No gradient flows into the scores.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_score: `[B]` score of the chosen response, from a judge or a reward model.
      rejected_score: `[B]` score of the rejected response, not above that of the chosen one.
      beta: scalar, strength of the KL penalty, reward per nat.
      alpha: scalar, reward per nat of score gap, at least 0.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or alpha is negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> scores = jnp.array([5.0]), jnp.array([3.0])
      >>> print(f"{odpo_loss(*logps, *scores, beta=0.1, alpha=1.0).item():.6f}")
      0.939070
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_score, rejected_score = constants_like(
        chosen, chosen_score=chosen_score, rejected_score=rejected_score
    )
    alpha = positive_like(chosen, allow_zero=True, alpha=alpha)
    offset = jax.scipy.special.xlogy(alpha, chosen_score - rejected_score)
    return -jax.nn.log_sigmoid(positive_like(chosen, beta=beta) * (chosen - rejected) - offset)


def madpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    reward_margin: ArrayLike,
    *,
    beta: ArrayLike,
    tau: ArrayLike = 2.0,
    lam: ArrayLike = 1.0,
    minimum: ArrayLike = 0.5,
    maximum: ArrayLike = 2.0,
) -> jax.Array:
    """MADPO: DPO with a weight per pair that depends on the margin of a reward model.

    `loss = -w(m) log s(beta h)` with `w = s(c m) / s(m)` where m > -tau, else 1, and
    `c = c_min + (c_max - c_min) / (1 + (c_max - 1)/(1 - c_min) e^{lam (|m| - tau)})`. Then c = 1 at
    |m| = tau, so w is 1 there, at m = 0 and below -tau.

    Source: MADPO, arXiv 2510.05342. No gradient flows into the margin and the parameters of the weight.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      reward_margin: `[B]` gap between the rewards of the two responses under a reward model.
      beta: scalar, strength of the KL penalty, reward per nat.
      tau: scalar, the reward margin at which the weight crosses 1, positive.
      lam: scalar, steepness of the change around tau, positive.
      minimum: scalar c_min, scale of pairs with a large margin, in (0, 1).
      maximum: scalar c_max, scale of pairs with a small margin, above 1.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or a scalar is out of its range; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> print(f"{madpo_loss(*logps, jnp.array([4.0]), beta=0.1).item():.5f}")
      0.53682
    """
    loss = dpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
    )
    (margin,) = constants_like(loss, reward_margin=reward_margin)
    tau, lam = positive_like(loss, tau=tau), positive_like(loss, lam=lam)
    minimum = between_like(loss, 0.0, 1.0, minimum=minimum)
    maximum = between_like(loss, 1.0, float("inf"), maximum=maximum)
    start = jnp.log((maximum - 1.0) / (1.0 - minimum))
    scale = minimum + (maximum - minimum) * jax.nn.sigmoid(-lam * (jnp.abs(margin) - tau) - start)
    ratio = jnp.exp(jax.nn.log_sigmoid(scale * margin) - jax.nn.log_sigmoid(margin))
    return jax.lax.stop_gradient(jnp.where(margin <= -tau, 1.0, ratio)) * loss


def modpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_margin_reward: ArrayLike,
    rejected_margin_reward: ArrayLike,
    *,
    beta: ArrayLike,
    weight: ArrayLike,
    margin_weight: ArrayLike,
) -> jax.Array:
    """MODPO: DPO on one objective with the reward of another one as a margin.

    `loss = -log s(R_w - R_l)` with `R_y = (beta D_y - w_1 m_y) / w_0`. With w_0 = 1 and w_1 = 0 this is DPO.

    Source: MODPO, arXiv 2310.03708. No gradient flows into the margin rewards and the two weights.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      reference_chosen_logps: `[B]` summed response log-probabilities under the reference, nats.
      reference_rejected_logps: `[B]` the same of the rejected responses.
      chosen_margin_reward: `[B]` reward m_w of the chosen response under the margin model.
      rejected_margin_reward: `[B]` the same of the rejected response, m_l.
      beta: scalar, strength of the KL penalty, reward per nat.
      weight: scalar w_0, weight of the objective that the pairs are labelled by, positive.
      margin_weight: scalar w_1, weight of the other objective; usually w_0 + w_1 = 1.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, or beta or weight is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0]), jnp.array([-21.0]), jnp.array([-22.5])
      >>> margins = jnp.array([1.0]), jnp.array([0.5])
      >>> print(f"{modpo_loss(*logps, *margins, beta=0.1, weight=0.5, margin_weight=0.5).item():.6f}")
      0.693147
    """
    chosen, rejected = log_ratios(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    chosen_margin, rejected_margin = constants_like(
        chosen, chosen_margin_reward=chosen_margin_reward, rejected_margin_reward=rejected_margin_reward
    )
    weights = positive_like(chosen, weight=weight), scalar_like(chosen, margin_weight=margin_weight)
    weight, margin_weight = jax.lax.stop_gradient(weights)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    return -jax.nn.log_sigmoid((reward_gap - margin_weight * (chosen_margin - rejected_margin)) / weight)
