"""The one place where losses and adaptive rules meet: a loss chosen by name, the state it reads, the state it writes.

Losses and rules themselves stay pure and know nothing of configuration or of each other.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxalign import adaptive, losses
from jaxalign.adaptive import (
    BalanceConfig,
    BalanceState,
    BalanceStats,
    CategoryStats,
    MarginConfig,
    MarginState,
)
from jaxalign.batch import PairBatch
from jaxalign.settings import Settings


class DpoConfig(Settings):
    """Plain DPO."""

    name: Literal["dpo"]
    beta: PositiveFloat = 0.1


class SafeDpoConfig(Settings):
    """SafeDPO: one constant margin where exactly one response is unsafe."""

    name: Literal["safe_dpo"]
    beta: PositiveFloat = 0.1
    delta: float = Field(default=2.0, ge=0, description="the constant margin, in units of beta * log-ratio")


class CatDpoConfig(Settings):
    """Cat-DPO: an adaptive margin per harm category."""

    name: Literal["cat_dpo"]
    beta: PositiveFloat = 0.1
    margin_reduce: Literal["mean", "max", "sum"] = Field(
        default="mean", description="how the margins of a pair with several categories combine"
    )


class BDpoConfig(Settings):
    """B-DPO: each response has a strength of its own, from its mutual information with the prompt."""

    name: Literal["b_dpo"]
    beta: PositiveFloat = 0.1


class CatBDpoConfig(Settings):
    """Cat-DPO and B-DPO together."""

    name: Literal["cat_b_dpo"]
    beta: PositiveFloat = 0.1
    margin_reduce: Literal["mean", "max", "sum"] = "mean"


LossConfig = Annotated[
    DpoConfig | SafeDpoConfig | CatDpoConfig | BDpoConfig | CatBDpoConfig, Field(discriminator="name")
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossInputs:
    """What a loss may read: log-probs and MI [B, 2], the batch, old margins [B], weights [B] and scale []."""

    policy: jax.Array
    reference: jax.Array
    batch: PairBatch
    margin: jax.Array
    chosen_weight: jax.Array
    rejected_weight: jax.Array
    scale: jax.Array

    @property
    def logps(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The four leading arguments of every loss."""
        return self.policy[:, 0], self.policy[:, 1], self.reference[:, 0], self.reference[:, 1]

    @property
    def unsafe(self) -> tuple[jax.Array, jax.Array]:
        """Flags of the chosen and of the rejected response."""
        return self.batch.chosen_unsafe, self.batch.rejected_unsafe

    @property
    def weights(self) -> tuple[jax.Array, jax.Array]:
        """Strengths of the chosen and of the rejected response."""
        return self.chosen_weight, self.rejected_weight


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """A loss as the objective sees it, and the adaptive state that it reads."""

    loss: Callable[[LossInputs, Any], jax.Array]
    uses_margin: bool = False
    uses_balance: bool = False


LOSSES: dict[str, LossSpec] = {
    "dpo": LossSpec(lambda x, c: losses.dpo_loss(*x.logps, beta=c.beta)),
    "safe_dpo": LossSpec(lambda x, c: losses.safe_dpo_loss(*x.logps, *x.unsafe, beta=c.beta, delta=c.delta)),
    "cat_dpo": LossSpec(
        lambda x, c: losses.cat_dpo_loss(*x.logps, *x.unsafe, x.margin, beta=c.beta), uses_margin=True
    ),
    "b_dpo": LossSpec(
        lambda x, c: losses.b_dpo_loss(*x.logps, *x.weights, beta=c.beta, scale=x.scale), uses_balance=True
    ),
    "cat_b_dpo": LossSpec(
        lambda x, c: losses.cat_b_dpo_loss(
            *x.logps, *x.unsafe, x.margin, *x.weights, beta=c.beta, scale=x.scale
        ),
        uses_margin=True,
        uses_balance=True,
    ),
}


class ViolationConfig(Settings):
    """When the policy still counts as unsafe on a pair: its implicit reward gap lies below the threshold."""

    threshold: float = Field(
        default=0.0, description="in units of beta * log-ratio; fixed, never the margin itself"
    )
    temperature: PositiveFloat | None = Field(default=None, description="null: hard 0/1 violations")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairTerms:
    """Per-pair results [B] of one forward pass; `reward_gap` is the plain beta * h."""

    loss: jax.Array
    chosen_reward: jax.Array
    rejected_reward: jax.Array
    reward_gap: jax.Array
    accuracy: jax.Array
    violation: jax.Array
    margin: jax.Array
    chosen_weight: jax.Array
    rejected_weight: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptiveStats:
    """Sums over pairs that the rules need; added over micro-batches and devices."""

    category: CategoryStats
    balance: BalanceStats | None


def resolved_gap(policy: Any, reference: Any, xp: Any = jnp) -> Any:
    """[B] log-ratio of chosen minus that of rejected, from log-probs [B, 2]; exactly 0 where it is rounding noise.

    Noise is what lies below the float32 resolution of the four sums: without this an unchanged policy would be
    right, or in violation, at random. The signals read it; the loss does not. `xp` is jax.numpy or numpy.
    """
    log_ratio = policy - reference
    gap = log_ratio[:, 0] - log_ratio[:, 1]
    resolution = 2e-6 * (xp.abs(policy) + xp.abs(reference)).sum(axis=1)
    return xp.where(xp.abs(gap) <= resolution, xp.zeros_like(gap), gap)


def reward_accuracy(gap: Any, xp: Any = jnp) -> Any:
    """[B] 1 where the chosen response has the larger log-ratio, 0.5 at a tie, else 0."""
    return 0.5 * (xp.sign(gap) + 1.0)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A configured loss with its rules. `terms` reads the old adaptive state, `update` writes the new one."""

    config: Any
    violation: ViolationConfig
    num_categories: int
    margin_config: MarginConfig | None
    balance_config: BalanceConfig | None

    def init(self) -> tuple[MarginState | None, BalanceState | None]:
        """Initial adaptive state; None where the loss does not use it."""
        margin = adaptive.margin_rule(self.margin_config).init() if self.margin_config else None
        balance = adaptive.balance_rule(self.balance_config).init() if self.balance_config else None
        return margin, balance

    def terms(
        self,
        policy: jax.Array,
        reference: jax.Array,
        batch: PairBatch,
        margin_state: MarginState | None,
        balance_state: BalanceState | None,
    ) -> PairTerms:
        """Loss and signals of every pair, from summed log-probs [B, 2]."""
        beta = self.config.beta
        margin, chosen_weight, rejected_weight, scale = self._adaptive(batch, margin_state, balance_state)
        inputs = LossInputs(policy, reference, batch, margin, chosen_weight, rejected_weight, scale)
        rewards = beta * jax.lax.stop_gradient(policy - reference)
        gap = beta * resolved_gap(jax.lax.stop_gradient(policy), reference)
        return PairTerms(
            loss=LOSSES[self.config.name].loss(inputs, self.config),
            chosen_reward=rewards[:, 0],
            rejected_reward=rewards[:, 1],
            reward_gap=gap,
            accuracy=reward_accuracy(gap),
            violation=adaptive.implicit_violation(
                gap, threshold=self.violation.threshold, temperature=self.violation.temperature
            ),
            margin=margin,
            chosen_weight=chosen_weight,
            rejected_weight=rejected_weight,
        )

    def _adaptive(
        self, batch: PairBatch, margin_state: MarginState | None, balance_state: BalanceState | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        margin, one = jnp.zeros_like(batch.weight), jnp.ones_like(batch.weight)
        chosen_weight, rejected_weight, scale = one, one, jnp.ones((), batch.weight.dtype)
        if self.margin_config and margin_state is not None:
            margins = adaptive.margin_rule(self.margin_config).value(margin_state)
            margin = adaptive.pair_margins(margins, batch.categories, reduce=self.config.margin_reduce)
        if self.balance_config and balance_state is not None:
            value = adaptive.balance_rule(self.balance_config).value(balance_state)
            chosen_weight, rejected_weight = adaptive.balance_weights(
                self.balance_config, value, batch.mi[:, 0], batch.mi[:, 1]
            )
            scale = value.scale
        return margin, chosen_weight, rejected_weight, scale

    def stats(self, terms: PairTerms, batch: PairBatch) -> AdaptiveStats:
        """Sums over the pairs of a (micro-)batch for the rules."""
        category = adaptive.category_stats(terms.violation, batch.categories, batch.weight)
        if not self.balance_config:
            return AdaptiveStats(category, None)
        gradient_weight = adaptive.gradient_weight(terms.loss)
        balance = adaptive.balance_stats(batch.mi[:, 0], batch.mi[:, 1], gradient_weight, batch.weight)
        return AdaptiveStats(category, balance)

    def update(
        self, stats: AdaptiveStats, margin_state: MarginState | None, balance_state: BalanceState | None
    ) -> tuple[MarginState | None, BalanceState | None]:
        """The adaptive state after a step, from the sums over the whole batch."""
        if self.margin_config and margin_state is not None:
            margin_state = adaptive.margin_rule(self.margin_config).update(stats.category, margin_state)
        if self.balance_config and balance_state is not None and stats.balance is not None:
            balance_state = adaptive.balance_rule(self.balance_config).update(stats.balance, balance_state)
        return margin_state, balance_state
