"""Adaptive state as pytrees, with rules of three pure functions: init, value, update.

Margins per harm category (Cat-DPO), balance of mutual information (B-DPO), and the state of the baselines: group
weights, beta-DPO, the reference points of KTO and BCO. No I/O, no library but jax; the losses that use the values
live in `jaxalign.losses`.
"""

from jaxalign.adaptive.balance import (
    BalanceConfig,
    BalanceState,
    BalanceValue,
    balance_rule,
    balance_weights,
)
from jaxalign.adaptive.beta_dpo import (
    BetaDpoConfig,
    BetaDpoState,
    BetaDpoValue,
    beta_dpo_rule,
    beta_dpo_selection,
)
from jaxalign.adaptive.composite import composite_rule
from jaxalign.adaptive.group_dro import GroupDroConfig, GroupDroState, group_dro_rule, group_weights
from jaxalign.adaptive.margin import MarginConfig, MarginState, margin_rule, pair_margins, restart_rates
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.running_mean import (
    KlConfig,
    RewardShiftConfig,
    RunningMeanState,
    kl_rule,
    reward_shift_rule,
)
from jaxalign.adaptive.signals import gradient_weight, implicit_violation
from jaxalign.adaptive.stats import (
    BalanceStats,
    CategoryStats,
    GapStats,
    GroupStats,
    MeanStats,
    balance_stats,
    category_stats,
    gap_stats,
    group_stats,
    mean_stats,
)
from jaxalign.adaptive.weights import power_weights, ratio_weights, softmax_weights

__all__ = [
    "AdaptiveRule",
    "BalanceConfig",
    "BalanceState",
    "BalanceStats",
    "BalanceValue",
    "BetaDpoConfig",
    "BetaDpoState",
    "BetaDpoValue",
    "CategoryStats",
    "GapStats",
    "GroupDroConfig",
    "GroupDroState",
    "GroupStats",
    "KlConfig",
    "MarginConfig",
    "MarginState",
    "MeanStats",
    "RewardShiftConfig",
    "RunningMeanState",
    "balance_rule",
    "balance_stats",
    "balance_weights",
    "beta_dpo_rule",
    "beta_dpo_selection",
    "category_stats",
    "composite_rule",
    "gap_stats",
    "gradient_weight",
    "group_dro_rule",
    "group_stats",
    "group_weights",
    "implicit_violation",
    "kl_rule",
    "margin_rule",
    "mean_stats",
    "pair_margins",
    "power_weights",
    "ratio_weights",
    "restart_rates",
    "reward_shift_rule",
    "softmax_weights",
]
