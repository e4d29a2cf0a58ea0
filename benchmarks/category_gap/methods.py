"""The methods of the study and the ranges that their settings are drawn from, the same number for each.

Losses and rules are jaxalign's own, put together by its Objective; this module only names them and their numbers.
Numbers may be traced, so that one compiled program trains many settings.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter
from scipy.stats import qmc
from world import K

from jaxalign.adaptive import BalanceConfig, MarginConfig
from jaxalign.training.loss_settings import LossConfig
from jaxalign.training.objective import Objective, ViolationConfig
from jaxalign.training.optimizer import OptimizerConfig

Numbers = dict[str, Any]  # settings by "section.option": floats, or traced
Signal = Literal["implicit", "probe", "both"]


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a setting is drawn from, evenly on a logarithmic scale, or on a linear one."""

    low: float
    high: float
    linear: bool = False

    def at(self, share: float) -> float:
        """The value at a share of the way from low to high, to four digits."""
        if self.linear:
            return float(f"{self.low + share * (self.high - self.low):.4g}")
        return float(f"{math.exp(math.log(self.low) + share * math.log(self.high / self.low)):.4g}")


@dataclasses.dataclass(frozen=True)
class Method:
    """A loss with the numbers that are tuned (`ranges`), and what is fixed beside them.

    views: of the pairs, one for each stage; the second stage starts from, and is compared with, what the first gave.
    fixed: numbers and words by "section.option" that are not tuned.
    one_category: all harm is one category to the method: the control that shows what categories are worth.
    """

    loss: str
    ranges: Mapping[str, Range]
    views: tuple[str, ...] = ("safedpo",)
    signal: Signal = "implicit"
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    one_category: bool = False

    def drawn(self, count: int) -> list[Numbers]:
        """`count` settings spread evenly over the ranges (Sobol), the same ones every time."""
        # Leading dimensions of a Sobol sequence are alike in any number of them: what methods share, they try alike.
        sobol = qmc.Sobol(len(self.ranges), scramble=False).fast_forward(1)  # past the corner
        points = sobol.random(count)
        return [
            {
                name: found.at(float(share))
                for (name, found), share in zip(self.ranges.items(), point, strict=True)
            }
            for point in points
        ]


LEARNING_RATE = {"optimizer.learning_rate": Range(4e-4, 3e-3)}
# A squared loss asks for a log-ratio of 1 / (2 beta) and no more, so its beta must be smaller to go as far.
BETA, SQUARED_BETA = Range(0.03, 0.5), Range(0.01, 0.3)
COMMON = LEARNING_RATE | {"loss.beta": BETA}
MAXIMUM = {"margin.maximum_nats": Range(2.0, 20.0)}
PROBED_MARGIN = MAXIMUM | {"margin.step_size_nats": Range(1.0, 30.0)}
MULTIPLIED_MARGIN = MAXIMUM | {"margin.step_size": Range(0.3, 10.0)}
MARGIN = MAXIMUM | {
    "margin.step_size_nats": Range(0.2, 5.0),
    "violation.threshold_nats": Range(0.0, 12.0, linear=True),
}
BALANCE = {"balance.temperature": Range(0.5, 64.0), "balance.scale": Range(0.5, 2.0)}
SOFTMAX = {"balance.weights": "softmax"}
# Margins wait for about a quarter of the steps; a step shows some 13 categories of pairs, a probe 512 answers.
FIXED_MARGIN = {
    "margin.initial_nats": 0.0,
    "margin.minimum_nats": 0.0,
    "margin.ema_rate": 0.1,
    "margin.target_rate": 0.02,
    "margin.warmup_pairs": 800.0,
}
FIXED_PROBED = FIXED_MARGIN | {"margin.ema_rate": 0.65, "margin.warmup_pairs": 3072.0}
FIXED_BOTH = FIXED_MARGIN | {"margin.warmup_pairs": 3872.0}
FIXED_MULTIPLIED = FIXED_PROBED | {
    "margin.update": "multiplicative",
    "margin.minimum_nats": 0.5,
    "margin.initial_nats": 0.5,
}

METHODS: dict[str, Method] = {
    "dpo": Method("dpo", COMMON),
    "ipo": Method("ipo", LEARNING_RATE | {"loss.beta": SQUARED_BETA}),
    "simpo": Method(
        "simpo",
        LEARNING_RATE | {"loss.beta": Range(0.05, 5.0), "loss.gamma": Range(0.0, 5.0, linear=True)},
    ),
    "safe_dpo": Method("safe_dpo", COMMON | {"loss.delta_nats": Range(0.5, 20.0)}),
    "group_dro": Method(
        "group_dro", COMMON | {"loss.step_size": Range(0.003, 0.3), "loss.maximum_factor": Range(1.2, 10.0)}
    ),
    "bfpo": Method("bfpo", LEARNING_RATE | {"loss.beta": SQUARED_BETA}),
    "sacpo": Method("dpo", COMMON | {"second.beta": Range(0.01, 0.5)}, views=("better", "safer")),
    "cat_dpo": Method("cat_dpo", COMMON | MARGIN, fixed=FIXED_MARGIN),
    "cat_dpo probe": Method("cat_dpo", COMMON | PROBED_MARGIN, signal="probe", fixed=FIXED_PROBED),
    "cat_dpo both": Method("cat_dpo", COMMON | MARGIN, signal="both", fixed=FIXED_BOTH),
    "cat_dpo probe, one category": Method(
        "cat_dpo", COMMON | PROBED_MARGIN, signal="probe", fixed=FIXED_PROBED, one_category=True
    ),
    "cat_dpo probe, multiplicative": Method(
        "cat_dpo", COMMON | MULTIPLIED_MARGIN, signal="probe", fixed=FIXED_MULTIPLIED
    ),
    "cat_dpo probe, multiplicative, one category": Method(
        "cat_dpo", COMMON | MULTIPLIED_MARGIN, signal="probe", fixed=FIXED_MULTIPLIED, one_category=True
    ),
    "b_dpo": Method("b_dpo", COMMON | BALANCE, fixed=SOFTMAX),
    "cat_b_dpo": Method("cat_b_dpo", COMMON | MARGIN | BALANCE, fixed=FIXED_MARGIN | SOFTMAX),
    "cat_b_dpo probe": Method(
        "cat_b_dpo", COMMON | PROBED_MARGIN | BALANCE, signal="probe", fixed=FIXED_PROBED | SOFTMAX
    ),
    "cat_b_dpo probe, multiplicative": Method(
        "cat_b_dpo", COMMON | MULTIPLIED_MARGIN | BALANCE, signal="probe", fixed=FIXED_MULTIPLIED | SOFTMAX
    ),
}


def section(numbers: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of one section."""
    return {key.split(".")[1]: value for key, value in numbers.items() if key.startswith(f"{name}.")}


def in_rewards(numbers: Numbers) -> Numbers:
    """The numbers with those named `_nats`, which are log-ratios, times beta: so they mean the same at every beta."""
    beta = numbers.get("loss.beta", 1.0)
    return {
        name.removesuffix("_nats"): beta * x if name.endswith("_nats") else x for name, x in numbers.items()
    }


def make_objective(method: Method, numbers: Numbers, *, stage: int = 0) -> Objective:
    """The method's loss with its rules, at these numbers."""
    numbers = in_rewards({**method.fixed, **numbers})
    options = section(numbers, "loss") | (section(numbers, "second") if stage else {})
    # The words of a loss are checked by its settings; numbers may be traced, which these do not take.
    loss = TypeAdapter(LossConfig).validate_python({"name": method.loss}).model_copy(update=options)
    violation = ViolationConfig().model_copy(update=section(numbers, "violation"))
    rules = loss.rule_configs(K)
    if "margin" in loss.rules:
        rules["margin"] = MarginConfig(K, **section(numbers, "margin"))
    if "balance" in loss.rules:
        rules["balance"] = BalanceConfig(**section(numbers, "balance"))
    return Objective(loss, violation, rules, left_to_probes=("margin",) if method.signal == "probe" else ())


def make_optimizer_config(numbers: Numbers, num_steps: int) -> OptimizerConfig:
    """The optimizer at a learning rate that may be traced; everything else is the same for all methods."""
    config = OptimizerConfig(schedule="linear", warmup_steps=num_steps // 20)
    return config.model_copy(update=section(numbers, "optimizer"))
