"""Adaptive state as pytrees, with rules of three pure functions: init, value, update.

Margins per harm category (Cat-DPO) and balance of mutual information (B-DPO). No I/O, no library but jax; the
losses that use the values live in `jaxalign.losses`.
"""

from jaxalign.adaptive.balance import (
    BalanceConfig,
    BalanceState,
    BalanceValue,
    balance_rule,
    balance_weights,
)
from jaxalign.adaptive.margin import MarginConfig, MarginState, margin_rule, pair_margins
from jaxalign.adaptive.rule import AdaptiveRule
from jaxalign.adaptive.signals import gradient_weight, implicit_violation
from jaxalign.adaptive.stats import BalanceStats, CategoryStats, balance_stats, category_stats
from jaxalign.adaptive.weights import power_weights, ratio_weights, softmax_weights

__all__ = [
    "AdaptiveRule",
    "BalanceConfig",
    "BalanceState",
    "BalanceStats",
    "BalanceValue",
    "CategoryStats",
    "MarginConfig",
    "MarginState",
    "balance_rule",
    "balance_stats",
    "balance_weights",
    "category_stats",
    "gradient_weight",
    "implicit_violation",
    "margin_rule",
    "pair_margins",
    "power_weights",
    "ratio_weights",
    "softmax_weights",
]
