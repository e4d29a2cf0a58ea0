"""Each loss by its name in a configuration: how the pure function is called with what a step knows.

No formula and no state live here; options are in loss_settings.py, the rules in objective.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses
from jaxalign.batch import PairBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveTerms:
    """What the adaptive state says of each pair, before this step's update; neutral where no rule speaks.

    margin, chosen_weight, rejected_weight, pair_weight are [B]; scale, beta, kl, reward_shift are []. `beta` is
    that of the rule which moves it; a loss without such a rule reads its configuration.
    """

    margin: jax.Array
    chosen_weight: jax.Array
    rejected_weight: jax.Array
    pair_weight: jax.Array
    scale: jax.Array
    beta: jax.Array
    kl: jax.Array
    reward_shift: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossInputs:
    """What a loss may read: summed log-probs [B, 2] of policy and reference, the batch, the adaptive terms."""

    policy: jax.Array
    reference: jax.Array
    batch: PairBatch
    adaptive: AdaptiveTerms

    @property
    def pair(self) -> tuple[jax.Array, jax.Array]:
        """Policy log-probs of the chosen and of the rejected response."""
        return self.policy[:, 0], self.policy[:, 1]

    @property
    def logps(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The four leading arguments of every loss with a reference."""
        return *self.pair, self.reference[:, 0], self.reference[:, 1]

    @property
    def lengths(self) -> tuple[jax.Array, jax.Array]:
        """Response tokens of both branches, [B] float32."""
        lengths = self.batch.lengths.astype(jnp.float32)
        return lengths[:, 0], lengths[:, 1]

    @property
    def scores(self) -> tuple[jax.Array, jax.Array]:
        """Scores of both branches."""
        return self.batch.scores[:, 0], self.batch.scores[:, 1]

    @property
    def unsafe(self) -> tuple[jax.Array, jax.Array]:
        """Flags of the chosen and of the rejected response."""
        return self.batch.chosen_unsafe, self.batch.rejected_unsafe

    @property
    def weights(self) -> tuple[jax.Array, jax.Array]:
        """Strengths of the chosen and of the rejected response."""
        return self.adaptive.chosen_weight, self.adaptive.rejected_weight


LossFn = Callable[[LossInputs, Any], jax.Array]

FAR = 1e6
"""Nats beyond every real gap: where losses sort the batch, padding goes last on both sides and meets itself."""


def _of_pair(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss of single rows, as the mean over the two rows of a pair."""

    def of_pair(x: LossInputs, **options: Any) -> jax.Array:
        one = jnp.ones_like(x.batch.weight)
        chosen = loss(x.policy[:, 0], x.reference[:, 0], one, **options)
        return (chosen + loss(x.policy[:, 1], x.reference[:, 1], 0 * one, **options)) / 2

    return of_pair


def _aot(x: LossInputs, c: Any) -> jax.Array:
    far = jnp.where(x.batch.weight > 0, 0.0, FAR)
    chosen, rejected, reference_chosen, reference_rejected = x.logps
    return losses.aot_loss(chosen + far, rejected, reference_chosen + far, reference_rejected, beta=c.beta)


def _aot_unpaired(x: LossInputs, c: Any) -> jax.Array:
    far = jnp.where(x.batch.weight > 0, 0.0, FAR)
    chosen, rejected, *reference = x.logps
    return losses.aot_unpaired_loss(chosen + far, rejected + far, *reference, beta=c.beta)


def _madpo(x: LossInputs, c: Any) -> jax.Array:
    chosen, rejected = x.scores
    options = {"tau": c.tau, "lam": c.lam, "minimum": c.minimum, "maximum": c.maximum}
    return losses.madpo_loss(*x.logps, chosen - rejected, beta=c.beta, **options)


def _beta_alone(loss: Callable[..., jax.Array]) -> LossFn:
    return lambda x, c: loss(*x.logps, beta=c.beta)


def _label_smoothed(loss: Callable[..., jax.Array]) -> LossFn:
    return lambda x, c: loss(*x.logps, beta=c.beta, label_smoothing=c.label_smoothing)


LOSSES: dict[str, LossFn] = {
    "dpo": _beta_alone(losses.dpo_loss),
    "cdpo": _label_smoothed(losses.cdpo_loss),
    "robust_dpo": _label_smoothed(losses.robust_dpo_loss),
    "exo": _label_smoothed(losses.exo_loss),
    "ipo": _beta_alone(losses.ipo_loss),
    "ipo_average": lambda x, c: losses.ipo_average_loss(*x.logps, *x.lengths, beta=c.beta),
    "sppo": _beta_alone(losses.sppo_loss),
    "cal_dpo": _beta_alone(losses.cal_dpo_loss),
    "hinge": _beta_alone(losses.hinge_loss),
    "discopop": lambda x, c: losses.discopop_loss(*x.logps, beta=c.beta, temperature=c.temperature),
    "sft": lambda x, c: losses.sft_loss(x.policy[:, 0], x.lengths[0]),
    "simpo": lambda x, c: losses.simpo_loss(*x.pair, *x.lengths, beta=c.beta, gamma=c.gamma),
    "alphapo": lambda x, c: losses.alphapo_loss(
        *x.pair, *x.lengths, beta=c.beta, gamma=c.gamma, alpha=c.alpha
    ),
    "orpo": lambda x, c: losses.orpo_loss(*x.pair, *x.lengths, lam=c.lam),
    "cpo": lambda x, c: losses.cpo_loss(*x.pair, x.lengths[0], beta=c.beta, alpha=c.alpha),
    "rpo": lambda x, c: losses.rpo_loss(*x.logps, x.lengths[0], beta=c.beta, alpha=c.alpha),
    "dpop": lambda x, c: losses.dpop_loss(*x.logps, beta=c.beta, lam=c.lam),
    "bounded_dpo": lambda x, c: losses.bounded_dpo_loss(*x.logps, beta=c.beta, lam=c.lam),
    "nca": _beta_alone(losses.nca_loss),
    "apo_zero": _beta_alone(losses.apo_zero_loss),
    "apo_down": _beta_alone(losses.apo_down_loss),
    "bco_pair": _beta_alone(losses.bco_pair_loss),
    "kto": lambda x, c: _of_pair(losses.kto_loss)(
        x,
        beta=c.beta,
        kl=x.adaptive.kl,
        desirable_weight=c.desirable_weight,
        undesirable_weight=c.undesirable_weight,
    ),
    "bco": lambda x, c: _of_pair(losses.bco_loss)(x, beta=c.beta, reward_shift=x.adaptive.reward_shift),
    "apo_zero_unpaired": lambda x, c: _of_pair(losses.apo_zero_unpaired_loss)(x, beta=c.beta),
    "r_dpo": lambda x, c: losses.r_dpo_loss(*x.logps, *x.lengths, beta=c.beta, alpha=c.alpha),
    "sigmoid_norm": lambda x, c: losses.sigmoid_norm_loss(*x.logps, *x.lengths, beta=c.beta),
    "odpo": lambda x, c: losses.odpo_loss(*x.logps, *x.scores, beta=c.beta, alpha=c.alpha),
    "madpo": _madpo,
    "modpo": lambda x, c: losses.modpo_loss(
        *x.logps, *x.scores, beta=c.beta, weight=c.weight, margin_weight=c.margin_weight
    ),
    "safe_dpo": lambda x, c: losses.safe_dpo_loss(*x.logps, *x.unsafe, beta=c.beta, delta=c.delta),
    "cat_dpo": lambda x, c: losses.cat_dpo_loss(*x.logps, *x.unsafe, x.adaptive.margin, beta=c.beta),
    "bfpo": lambda x, c: losses.bfpo_loss(*x.logps, *x.unsafe, beta=c.beta),
    "b_dpo": lambda x, c: losses.b_dpo_loss(*x.logps, *x.weights, beta=c.beta, scale=x.adaptive.scale),
    "cat_b_dpo": lambda x, c: losses.cat_b_dpo_loss(
        *x.logps, *x.unsafe, x.adaptive.margin, *x.weights, beta=c.beta, scale=x.adaptive.scale
    ),
    "group_dro": lambda x, c: losses.group_dro_loss(*x.logps, x.adaptive.pair_weight, beta=c.beta),
    "beta_dpo": lambda x, c: losses.beta_dpo_loss(*x.logps, x.adaptive.pair_weight, beta=x.adaptive.beta),
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
}
