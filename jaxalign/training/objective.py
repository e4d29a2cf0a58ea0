"""The one place where losses and adaptive rules meet: a loss chosen by name, the state it reads, the state it writes.

Losses and rules themselves stay pure and know nothing of configuration or of each other. The table of losses is
in loss_table.py, their options in loss_settings.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxalign import adaptive, losses
from jaxalign.batch import PairBatch
from jaxalign.settings import Settings
from jaxalign.training.loss_settings import LossConfig
from jaxalign.training.loss_table import LOSSES, AdaptiveTerms, LossInputs

AdaptiveState = dict[str, Any]
"""State of each rule that the loss reads, by the rule's name in RULES; {} for a loss without any."""


class ViolationConfig(Settings):
    """When the policy still counts as unsafe on a pair: its implicit reward gap lies below the threshold."""

    threshold: float = Field(
        default=0.0, description="in units of beta * log-ratio; fixed, never the margin itself"
    )
    temperature: PositiveFloat | None = Field(default=None, description="null: hard 0/1 violations")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairTerms:
    """Per-pair results [B] of one forward pass; `reward_gap` is the plain beta * h.

    `adaptive` has what the rules of the loss gave, by field of AdaptiveTerms: [B], or [] for all pairs alike.
    """

    loss: jax.Array
    chosen_reward: jax.Array
    rejected_reward: jax.Array
    reward_gap: jax.Array
    accuracy: jax.Array
    violation: jax.Array
    adaptive: dict[str, jax.Array]


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
    """What rules may read of a step, no gradient through it: the batch, its log-ratios [B, 2], a random key."""

    batch: PairBatch
    log_ratio: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class RuleSpec:
    """A rule as the objective sees it.

    `make(config)` gives the rule; `read(value, signals, loss config, config)` gives fields of AdaptiveTerms;
    `stats(terms, signals, loss config)` gives the sums that its update needs; `figures(state, value)` gives what the
    log shows of it, scalars and [K] by category.
    """

    make: Callable[[Any], adaptive.AdaptiveRule[Any, Any, Any]]
    read: Callable[[Any, Signals, Any, Any], dict[str, jax.Array]]
    stats: Callable[[PairTerms, Signals, Any], Any]
    figures: Callable[[Any, Any], dict[str, Any]]


def _read_margin(value: Any, x: Signals, loss: Any, config: Any) -> dict[str, jax.Array]:
    return {"margin": adaptive.pair_margins(value, x.batch.categories, reduce=loss.margin_reduce)}


def _read_balance(value: Any, x: Signals, loss: Any, config: Any) -> dict[str, jax.Array]:
    chosen, rejected = adaptive.balance_weights(config, value, x.batch.mi[:, 0], x.batch.mi[:, 1])
    return {"chosen_weight": chosen, "rejected_weight": rejected, "scale": value.scale}


def _read_beta_dpo(value: Any, x: Signals, loss: Any, config: Any) -> dict[str, jax.Array]:
    weight = x.batch.weight
    beta, keep = adaptive.beta_dpo_selection(config, value, _gap(x), weight, x.key)
    # The step divides by all real pairs: this makes its mean the mean over the kept ones.
    return {"beta": beta, "pair_weight": keep * (weight.sum() / jnp.maximum((keep * weight).sum(), 1.0))}


def _category_stats(terms: PairTerms, x: Signals, loss: Any) -> adaptive.CategoryStats:
    return adaptive.category_stats(terms.violation, x.batch.categories, x.batch.weight)


def _balance_stats(terms: PairTerms, x: Signals, loss: Any) -> adaptive.BalanceStats:
    mi, weight = x.batch.mi, x.batch.weight
    return adaptive.balance_stats(mi[:, 0], mi[:, 1], adaptive.gradient_weight(terms.loss), weight)


def _group_stats(terms: PairTerms, x: Signals, loss: Any) -> adaptive.GroupStats:
    zero = jnp.zeros_like(x.log_ratio[:, 0])
    plain = losses.dpo_loss(x.log_ratio[:, 0], x.log_ratio[:, 1], zero, zero, beta=loss.beta)
    return adaptive.group_stats(plain, x.batch.categories, x.batch.weight)


def _row_stats(factor: float, x: Signals) -> adaptive.MeanStats:
    """Sums of factor * log-ratio over both rows of every pair."""
    return adaptive.mean_stats(factor * x.log_ratio.reshape(-1), jnp.repeat(x.batch.weight, 2))


def _gap(x: Signals) -> jax.Array:
    return x.log_ratio[:, 0] - x.log_ratio[:, 1]


RULES: dict[str, RuleSpec] = {
    "margin": RuleSpec(
        adaptive.margin_rule,
        _read_margin,
        _category_stats,
        lambda state, value: {"margin": value, "violation": state.violation_rate},
    ),
    "balance": RuleSpec(
        adaptive.balance_rule,
        _read_balance,
        _balance_stats,
        lambda state, value: {f"balance/{name}": x for name, x in vars(state).items()},
    ),
    "group_dro": RuleSpec(
        adaptive.group_dro_rule,
        lambda value, x, loss, config: {"pair_weight": adaptive.group_weights(value, x.batch.categories)},
        _group_stats,
        lambda state, value: {"group_weight": state.weight, "group_factor": value},
    ),
    "beta_dpo": RuleSpec(
        adaptive.beta_dpo_rule,
        _read_beta_dpo,
        lambda terms, x, loss: adaptive.gap_stats(_gap(x), x.batch.weight),
        lambda state, value: {"gap_mean": state.mean, "gap_std": state.std},
    ),
    "kl": RuleSpec(
        adaptive.kl_rule,
        lambda value, x, loss, config: {"kl": value},
        lambda terms, x, loss: _row_stats(1.0, x),
        lambda state, value: {},  # the log has the value itself, as a mean over the pairs
    ),
    "reward_shift": RuleSpec(
        adaptive.reward_shift_rule,
        lambda value, x, loss, config: {"reward_shift": value},
        lambda terms, x, loss: _row_stats(loss.beta, x),
        lambda state, value: {},
    ),
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A configured loss with its rules. `terms` reads the old adaptive state, `update` writes the new one.

    `rule_configs` has one configuration for each rule that the loss reads, by its name in RULES. Rules that are
    `left_to_probes` keep their state from step to step: it changes between steps, by what the model says.
    """

    config: LossConfig
    violation: ViolationConfig
    rule_configs: Mapping[str, Any]
    left_to_probes: tuple[str, ...] = ()

    @property
    def rule(self) -> adaptive.AdaptiveRule[AdaptiveState, dict[str, Any], dict[str, Any]]:
        """All rules as one."""
        rules = {name: RULES[name].make(config) for name, config in self.rule_configs.items()}
        return adaptive.composite_rule(**rules)

    def init(self) -> AdaptiveState:
        """Initial adaptive state."""
        return self.rule.init()

    def terms(
        self,
        policy: jax.Array,
        reference: jax.Array,
        batch: PairBatch,
        state: AdaptiveState,
        key: jax.Array,
    ) -> tuple[PairTerms, dict[str, Any]]:
        """Loss and signals of every pair, and sums over the pairs for the rules, from summed log-probs [B, 2]."""
        log_ratio = jax.lax.stop_gradient(policy - reference)
        signals = Signals(batch, log_ratio, key)
        given = self._read(state, signals)
        inputs = LossInputs(policy, reference, batch, dataclasses.replace(_neutral(batch), **given))
        rewards = self.config.reward_beta * log_ratio
        gap = self.config.reward_beta * resolved_gap(jax.lax.stop_gradient(policy), reference)
        terms = PairTerms(
            loss=LOSSES[self.config.name](inputs, self.config),
            chosen_reward=rewards[:, 0],
            rejected_reward=rewards[:, 1],
            reward_gap=gap,
            accuracy=reward_accuracy(gap),
            violation=adaptive.implicit_violation(
                gap, threshold=self.violation.threshold, temperature=self.violation.temperature
            ),
            adaptive=given,
        )
        stats = {name: RULES[name].stats(terms, signals, self.config) for name in self.rule_configs}
        return terms, stats

    def _read(self, state: AdaptiveState, signals: Signals) -> dict[str, jax.Array]:
        """Fields of AdaptiveTerms that the rules speak of."""
        values = self.rule.value(state)
        fields: dict[str, jax.Array] = {}
        for name, config in self.rule_configs.items():
            fields |= RULES[name].read(values[name], signals, self.config, config)
        return fields

    def update(self, stats: dict[str, Any], state: AdaptiveState) -> AdaptiveState:
        """The adaptive state after a step, from the sums over the whole batch."""
        return self.rule.update(stats, state) | {name: state[name] for name in self.left_to_probes}

    def figures(self, state: AdaptiveState) -> dict[str, tuple[Any, Any]]:
        """What the log shows of the state, each with its sightings: both [] or, by category, both [K]."""
        values = self.rule.value(state)
        return {
            name: (value, part.num_seen)
            for rule, part in state.items()
            for name, value in RULES[rule].figures(part, values[rule]).items()
        }


def _neutral(batch: PairBatch) -> AdaptiveTerms:
    """The terms of a loss that no rule speaks of."""
    one = jnp.ones_like(batch.weight)
    nothing = jnp.zeros((), one.dtype)
    return AdaptiveTerms(
        margin=0 * one,
        chosen_weight=one,
        rejected_weight=one,
        pair_weight=one,
        scale=nothing + 1,
        beta=nothing,
        kl=nothing,
        reward_shift=nothing,
    )
