"""Losses that need no reference model. Log-probabilities per token take its place.

Losses that add the likelihood of the chosen response to a reference-based one live in anchored.py.
"""

import jax
from jax.typing import ArrayLike

from jaxalign.arrays import matching_floats, positive_like, scalar_like
from jaxalign.losses.numerics import expm1_ratio, length_average, log_odds


def sft_loss(
    policy_logps: ArrayLike,
    length: ArrayLike,
) -> jax.Array:
    """Supervised fine-tuning: negative log-probability per token of a response.

    `loss = -log pi(y) / |y|`, in nats per token. Averaged over each response first, not over all tokens of a
    batch. An additive term of CPO, RPO and ORPO.

    Source: the likelihood itself. No gradient flows into the length.

    Args:
      policy_logps: `[B]` summed response log-probabilities under the policy, nats.
      length: `[B]` number of response tokens; 0 counts as 1.

    Returns:
      `[B]` loss per response, not reduced; float64 if the log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> print(f"{sft_loss(jnp.array([-20.0]), jnp.array([10])).item():.6f}")
      2.000000
    """
    (policy,) = matching_floats(policy_logps=policy_logps)
    return -length_average(policy, length=length)


def simpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    beta: ArrayLike,
    gamma: ArrayLike,
) -> jax.Array:
    """SimPO: logistic loss of the gap in log-probability per token, with a target margin.

    `loss = -log s(beta (log pi(w)/|w| - log pi(l)/|l|) - gamma)`.

    Source: SimPO, arXiv 2405.14734, equation 6. No gradient flows into the lengths.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response; 0 counts as 1.
      rejected_length: `[B]` the same of the rejected response.
      beta: scalar, reward per nat of log-probability per token.
      gamma: scalar, the gap that is asked for, in units of reward.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0])
      >>> lengths = jnp.array([10]), jnp.array([8])
      >>> print(f"{simpo_loss(*logps, *lengths, beta=2.5, gamma=1.375).item():.6f}")
      0.281150
    """
    chosen, rejected = _averages(policy_chosen_logps, policy_rejected_logps, chosen_length, rejected_length)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    return -jax.nn.log_sigmoid(reward_gap - scalar_like(chosen, gamma=gamma))


def alphapo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    beta: ArrayLike,
    gamma: ArrayLike,
    alpha: ArrayLike,
) -> jax.Array:
    """AlphaPO: SimPO whose logarithmic reward is bent by a power alpha.

    `loss = -log s(beta (r_w - r_l) - gamma)` with `r_y = (1 - p_y^{-alpha}) / alpha` and
    `log p_y = log pi(y)/|y|`. As alpha tends to 0, r tends to log p and the loss to SimPO, which it is at
    alpha = 0. Where -alpha log p exceeds 40, p^{-alpha} goes on along its tangent, so that value and gradient
    stay finite.

    Source: AlphaPO, arXiv 2501.03884. No gradient flows into the lengths.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response; 0 counts as 1.
      rejected_length: `[B]` the same of the rejected response.
      beta: scalar, reward per nat of log-probability per token.
      gamma: scalar, the gap that is asked for, in units of reward.
      alpha: scalar, bends the reward: positive punishes improbable responses harder than the log does.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or beta is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0])
      >>> lengths = jnp.array([10]), jnp.array([8])
      >>> print(f"{alphapo_loss(*logps, *lengths, beta=2.5, gamma=1.375, alpha=0.25).item():.6f}")
      0.035943
    """
    chosen, rejected = _averages(policy_chosen_logps, policy_rejected_logps, chosen_length, rejected_length)
    alpha = scalar_like(chosen, alpha=alpha)
    chosen, rejected = chosen * expm1_ratio(-alpha * chosen), rejected * expm1_ratio(-alpha * rejected)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    return -jax.nn.log_sigmoid(reward_gap - scalar_like(chosen, gamma=gamma))


def orpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    *,
    lam: ArrayLike,
) -> jax.Array:
    """ORPO: likelihood of the chosen response plus a logistic loss of the odds ratio.

    `loss = -log p_w - lam log s(o_w - o_l)` with the log-odds `o_y = log(p_y / (1 - p_y))` and
    `log p_y = log pi(y)/|y|`. A probability per token of 1 has infinite odds: log p counts as at most -1e-7
    there, so that value and gradient stay finite.

    Source: ORPO, arXiv 2403.07691, from equations 4 and 7. No gradient flows into the lengths.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response; 0 counts as 1.
      rejected_length: `[B]` the same of the rejected response.
      lam: scalar, weight of the odds ratio, at least 0.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ or lam is negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0])
      >>> lengths = jnp.array([10]), jnp.array([8])
      >>> print(f"{orpo_loss(*logps, *lengths, lam=0.1).item():.6f}")
      2.028875
    """
    chosen, rejected = _averages(policy_chosen_logps, policy_rejected_logps, chosen_length, rejected_length)
    lam = positive_like(chosen, allow_zero=True, lam=lam)
    return -chosen - lam * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


def cpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    *,
    beta: ArrayLike,
    alpha: ArrayLike,
) -> jax.Array:
    """CPO: DPO with a uniform reference, plus the likelihood of the chosen response.

    `loss = -log s(beta (log pi(w) - log pi(l))) - alpha log pi(w)/|w|`.

    Source: CPO, arXiv 2401.08417, equation 3 (the preference part), with a weighted likelihood per token as
    in TRL. No gradient flows into the length.

    Args:
      policy_chosen_logps: `[B]` summed response log-probabilities under the policy, nats.
      policy_rejected_logps: `[B]` the same of the rejected responses.
      chosen_length: `[B]` number of tokens of the chosen response; 0 counts as 1.
      beta: scalar, reward per nat of log-probability.
      alpha: scalar, weight of the likelihood of the chosen response, at least 0.

    Returns:
      `[B]` loss per pair, not reduced; float64 if a log-probability is, else float32.

    Raises:
      ValueError: if the shapes differ, beta is not positive or alpha is negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> logps = jnp.array([-20.0]), jnp.array([-24.0])
      >>> print(f"{cpo_loss(*logps, jnp.array([10]), beta=0.1, alpha=1.0).item():.6f}")
      2.513015
    """
    chosen, rejected = matching_floats(
        policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps
    )
    alpha = positive_like(chosen, allow_zero=True, alpha=alpha)
    reward_gap = positive_like(chosen, beta=beta) * (chosen - rejected)
    return -jax.nn.log_sigmoid(reward_gap) - alpha * length_average(chosen, chosen_length=chosen_length)


def _averages(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    chosen, rejected = matching_floats(
        policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps
    )
    return (
        length_average(chosen, chosen_length=chosen_length),
        length_average(rejected, rejected_length=rejected_length),
    )
