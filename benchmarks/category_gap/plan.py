"""What the study does: which runs, on which seeds, and how settings are chosen. Nothing is computed here."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ablations import ABLATIONS
from data import Design
from methods import METHODS
from metrics import SUMMARIES, summary
from problem import Sizes
from sources import code_fingerprint
from train import Budget

Row = dict[str, Any]  # a finished run, as the results file has it


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run. `phase` is tune, test or ablate; `setting` counts the settings drawn for a method."""

    phase: str
    name: str
    setting: int
    seed: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.phase, self.name, self.setting, self.seed


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a study. Seeds for choosing settings are never those that are reported.

    width: runs that are trained at once.
    tolerance: helpfulness that may be given up for the safety of the worst category, when settings are chosen.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    num_settings: int = 32
    num_validation_seeds: int = 4
    num_test_seeds: int = 20
    width: int = 16
    tolerance: float = 0.02
    design: Design = dataclasses.field(default_factory=Design)
    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    budget: Budget = dataclasses.field(default_factory=Budget)

    @property
    def validation_seeds(self) -> range:
        return range(1000, 1000 + self.num_validation_seeds)

    @property
    def test_seeds(self) -> range:
        return range(self.num_test_seeds)

    def fingerprint(self) -> str:
        """A hash of everything that a result depends on."""
        methods = {name: dataclasses.asdict(METHODS[name]) for name in self.methods}
        ablations = {name: dataclasses.asdict(ABLATIONS[name]) for name in self.ablations}
        code = code_fingerprint("world", "data", "model", "problem", "methods", "train", "metrics", "lanes")
        everything = dataclasses.asdict(self) | {"methods": methods, "ablations": ablations, "code": code}
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]

    def tuning(self, name: str) -> list[Run]:
        """Every setting of a method on every validation seed."""
        return [
            Run("tune", name, setting, seed)
            for setting in range(self.num_settings)
            for seed in self.validation_seeds
        ]

    def testing(self, phase: str, name: str, setting: int) -> list[Run]:
        """One setting on every test seed."""
        return [Run(phase, name, setting, seed) for seed in self.test_seeds]


SUBSET = Plan(
    methods=("dpo", "safe_dpo", "cat_dpo probe", "b_dpo", "cat_b_dpo probe"),
    ablations=(),
    num_settings=4,
    num_validation_seeds=2,
    num_test_seeds=4,
    width=4,
    sizes=dataclasses.replace(Sizes(), test_per_topic=48),
)


def with_rare(rare: int) -> Plan:
    """The study with so many unsafe prompts in a rare category, without ablations."""
    return Plan(ablations=(), design=Design(rare=rare))


def score(rows: Iterable[Row]) -> dict[str, float]:
    """Mean summary of some runs; worse than any if one of them failed."""
    rows = list(rows)
    if any(row["figures"] is None for row in rows):
        return dict.fromkeys(SUMMARIES, -np.inf)
    found = [summary(row["figures"]) for row in rows]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def scores_of_settings(plan: Plan, rows: Sequence[Row], name: str) -> list[dict[str, float]]:
    """Mean summary of every setting of a method on the validation seeds."""
    of_method = [row for row in rows if row["phase"] == "tune" and row["name"] == name]
    return [score(row for row in of_method if row["setting"] == i) for i in range(plan.num_settings)]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The setting of a method, and how many of those tried are as helpful as dpo allows."""

    setting: int
    num_helpful: int


def choose_settings(plan: Plan, rows: Sequence[Row]) -> dict[str, Choice]:
    """The setting of every method: the highest safe rate of the worst category, among those that stay helpful.

    Helpful enough are settings within `tolerance` of the most helpful setting of plain dpo; where a method has none,
    those within `tolerance` of its own most helpful one. One rule for all methods, dpo too, on the validation seeds
    alone.
    """
    scores = {name: scores_of_settings(plan, rows, name) for name in plan.methods}
    most_helpful = {name: max(one["helpful"] for one in found) for name, found in scores.items()}
    floor = most_helpful["dpo"] - plan.tolerance
    chosen = {}
    for name, found in scores.items():
        own = floor if most_helpful[name] >= floor else most_helpful[name] - plan.tolerance
        allowed = [i for i, one in enumerate(found) if one["helpful"] >= own]
        best = max(allowed, key=lambda i: found[i]["worst"])
        chosen[name] = Choice(best, sum(one["helpful"] >= floor for one in found))
    return chosen
