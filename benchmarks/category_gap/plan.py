"""What the study does: which runs, on which seeds. Nothing is computed here."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ablations import ABLATIONS
from data import Design
from methods import METHODS
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

    num_screening_seeds: of the validation seeds, on which every setting is tried.
    num_finalists: settings of a method that are tried on the other validation seeds, too.
    width: runs that are trained at once.
    tolerance: helpfulness that may be given up for the safety of the worst category, when settings are chosen.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    num_settings: int = 32
    num_screening_seeds: int = 4
    num_validation_seeds: int = 12
    num_finalists: int = 6
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
    def screening_seeds(self) -> range:
        return self.validation_seeds[: self.num_screening_seeds]

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

    def screening(self, name: str) -> list[Run]:
        """Every setting of a method on the screening seeds."""
        return self._tuning(name, range(self.num_settings), self.screening_seeds)

    def finals(self, name: str, finalists: Sequence[int]) -> list[Run]:
        """The finalists of a method on the other validation seeds."""
        return self._tuning(name, finalists, self.validation_seeds[self.num_screening_seeds :])

    def _tuning(self, name: str, settings: Iterable[int], seeds: Iterable[int]) -> list[Run]:
        return [Run("tune", name, setting, seed) for setting in settings for seed in seeds]

    def testing(self, phase: str, name: str, setting: int) -> list[Run]:
        """One setting on every test seed."""
        return [Run(phase, name, setting, seed) for seed in self.test_seeds]


SUBSET = Plan(
    methods=("dpo", "safe_dpo", "cat_dpo probe", "b_dpo", "cat_b_dpo probe"),
    ablations=(),
    num_settings=4,
    num_screening_seeds=1,
    num_validation_seeds=2,
    num_finalists=2,
    num_test_seeds=4,
    width=4,
    sizes=dataclasses.replace(Sizes(), test_per_topic=48),
)


def with_rare(rare: int) -> Plan:
    """The study with so many unsafe prompts in a rare category, without ablations."""
    return Plan(ablations=(), design=Design(rare=rare))
