"""Weights of chosen and rejected responses by mutual information. No state lives here.

Each map gives the response of higher mutual information the lower weight; the weights of a pair sum to 2.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxalign.arrays import matching_floats, positive_like, scalar_like


def ratio_weights(
    chosen_mi: ArrayLike, rejected_mi: ArrayLike, *, floor: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Weights in inverse proportion to mutual information.

    `(w_w, w_l) = 2 (I_l, I_w) / (I_w + I_l)`, with `I <- max(I, floor)`. Exactly (1, 1) where both are equal.

    Source: B-DPO, arXiv 2603.22829; reconstructed from the abstract, not checked against the authors' code.

    Args:
      chosen_mi: `[B]` mutual information of prompt and chosen response, nats per token.
      rejected_mi: `[B]` the same of the rejected response.
      floor: scalar, least mutual information, positive, nats per token; estimates can be negative.

    Returns:
      `(chosen_weight, rejected_weight)`, each `[B]`; no gradient flows into them.

    Raises:
      ValueError: if the shapes differ or a concrete floor is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> chosen, rejected = ratio_weights(jnp.array([0.75, 0.5]), jnp.array([0.25, 0.5]), floor=0.01)
      >>> chosen.tolist(), rejected.tolist()
      ([0.5, 1.0], [1.5, 1.0])
    """
    chosen_mi, rejected_mi = _mutual_information(chosen_mi, rejected_mi)
    least = positive_like(chosen_mi, floor=floor)
    chosen_mi, rejected_mi = jnp.maximum(chosen_mi, least), jnp.maximum(rejected_mi, least)
    total = chosen_mi + rejected_mi
    equal = chosen_mi == rejected_mi  # exact on every device, also where a division is not correctly rounded
    return jnp.where(equal, 1.0, 2 * rejected_mi / total), jnp.where(equal, 1.0, 2 * chosen_mi / total)


def softmax_weights(
    chosen_mi: ArrayLike, rejected_mi: ArrayLike, *, temperature: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Weights by a softmax of the negative mutual information.

    `(w_w, w_l) = 2 softmax(-[I_w, I_l] / T)`. Exactly (1, 1) where both are equal or T is infinite.

    Source: B-DPO, arXiv 2603.22829; reconstructed from the abstract, not checked against the authors' code.

    Args:
      chosen_mi: `[B]` mutual information of prompt and chosen response, nats per token.
      rejected_mi: `[B]` the same of the rejected response.
      temperature: scalar T, positive, nats per token; may be infinite.

    Returns:
      `(chosen_weight, rejected_weight)`, each `[B]`; no gradient flows into them.

    Raises:
      ValueError: if the shapes differ or a concrete temperature is not positive; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> chosen, rejected = softmax_weights(jnp.array([0.75]), jnp.array([0.25]), temperature=0.5)
      >>> print(f"{chosen.item():.6f} {rejected.item():.6f}")
      0.537883 1.462117
    """
    chosen_mi, rejected_mi = _mutual_information(chosen_mi, rejected_mi)
    width = positive_like(chosen_mi, allow_infinite=True, temperature=temperature)
    return _twice_softmax((rejected_mi - chosen_mi) / width)


def power_weights(
    chosen_mi: ArrayLike,
    rejected_mi: ArrayLike,
    mean_mi: ArrayLike,
    *,
    alpha: ArrayLike,
    floor: ArrayLike = 0.01,
) -> tuple[jax.Array, jax.Array]:
    """Weights by a power of the mean mutual information over the response's own.

    `w_y = (Ibar / I_y)^alpha`, divided by their sum and doubled, with `I <- max(I, floor)`. Exactly (1, 1)
    where both are equal, where alpha is 0, and while Ibar is not positive, that is before anything was seen.
    Since a pair's weights are divided by their sum, a positive Ibar cancels; alpha = 1 gives `ratio_weights`.

    Source: B-DPO, arXiv 2603.22829; reconstructed from the abstract, not checked against the authors' code.

    Args:
      chosen_mi: `[B]` mutual information of prompt and chosen response, nats per token.
      rejected_mi: `[B]` the same of the rejected response.
      mean_mi: scalar Ibar, running mean of the mutual information, nats per token; 0 before it is known.
      alpha: scalar exponent, not negative.
      floor: scalar, least mutual information, positive, nats per token.

    Returns:
      `(chosen_weight, rejected_weight)`, each `[B]`; no gradient flows into them.

    Raises:
      ValueError: if the shapes differ or a concrete floor is not positive or alpha negative; names the argument.

    Example:
      >>> import jax.numpy as jnp
      >>> mi = jnp.array([0.8]), jnp.array([0.2])
      >>> chosen, rejected = power_weights(*mi, 0.5, alpha=0.5)
      >>> print(f"{chosen.item():.6f} {rejected.item():.6f}")
      0.666667 1.333333
    """
    chosen_mi, rejected_mi = _mutual_information(chosen_mi, rejected_mi)
    least = positive_like(chosen_mi, floor=floor)
    known = jax.lax.stop_gradient(scalar_like(chosen_mi, mean_mi=mean_mi)) > 0
    # Ibar cancels in the normalisation: the difference of the logarithms is all that is left of the ratios.
    ratio = jnp.log(jnp.maximum(rejected_mi, least)) - jnp.log(jnp.maximum(chosen_mi, least))
    exponent = positive_like(chosen_mi, alpha=alpha, allow_zero=True)
    return _twice_softmax(jnp.where(known, exponent * ratio, 0.0))


def _mutual_information(chosen_mi: ArrayLike, rejected_mi: ArrayLike) -> tuple[jax.Array, jax.Array]:
    chosen_mi, rejected_mi = matching_floats(chosen_mi=chosen_mi, rejected_mi=rejected_mi)
    return jax.lax.stop_gradient((chosen_mi, rejected_mi))


def _twice_softmax(advantage: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Twice the softmax of two values that differ by `advantage`; exactly (1, 1) at 0 on every device."""
    equal = advantage == 0
    chosen, rejected = 2 * jax.nn.sigmoid(advantage), 2 * jax.nn.sigmoid(-advantage)
    return jnp.where(equal, 1.0, chosen), jnp.where(equal, 1.0, rejected)
