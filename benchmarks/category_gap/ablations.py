"""What each part of the methods is worth: one change at a time to the settings that were chosen, nothing tuned anew."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from methods import METHODS, Method, Numbers


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A change to a method: numbers multiplied or replaced, words and numbers fixed, settings dropped."""

    base: str
    times: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def applied(self, chosen: Numbers) -> tuple[Method, Numbers]:
        """The changed method, and its numbers made of those chosen for the base."""
        method = METHODS[self.base]
        numbers = {name: x for name, x in chosen.items() if name not in {*self.dropped, *self.fixed}}
        numbers |= {name: numbers[name] * factor for name, factor in self.times.items()}
        return dataclasses.replace(method, fixed={**method.fixed, **self.fixed}), numbers


PROBE = "cat_dpo probe"
SCALE_ONLY = Ablation("b_dpo", fixed={"balance.weights": "none"}, dropped=("balance.temperature",))
RATIO = {"balance.weights": "ratio"}

ABLATIONS: dict[str, Ablation] = {
    "b_dpo, weights alone": Ablation("b_dpo", fixed={"balance.scale": 1.0}),
    "b_dpo, scale alone": SCALE_ONLY,
    "b_dpo, scale by gradient weight": Ablation(
        "b_dpo", fixed={"balance.scale_by_gradient_weight": True, "balance.maximum_scale": 10.0}
    ),
    "b_dpo, weights by ratio": Ablation("b_dpo", fixed=RATIO, dropped=("balance.temperature",)),
    "cat_b_dpo probe, weights alone": Ablation("cat_b_dpo probe", fixed={"balance.scale": 1.0}),
    "cat_b_dpo probe, scale alone": dataclasses.replace(SCALE_ONLY, base="cat_b_dpo probe"),
    "cat_dpo probe, no warm-up": Ablation(PROBE, fixed={"margin.warmup_pairs": 0.0}),
    "cat_dpo, no warm-up": Ablation("cat_dpo", fixed={"margin.warmup_pairs": 0.0}),
    **{
        f"cat_dpo probe, margin maximum x {factor:g}": Ablation(PROBE, times={"margin.maximum_nats": factor})
        for factor in (0.25, 0.5, 2.0)
    },
    **{
        f"cat_dpo probe, target rate {rate:g}": Ablation(PROBE, fixed={"margin.target_rate": rate})
        for rate in (0.0, 0.05, 0.1, 0.2)
    },
}
