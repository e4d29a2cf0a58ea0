"""Safety results of generated answers, as far as a page shows them; safety_files.py reads them.

They lie in `RUN/evaluation/safety*.json`; one with `before` in its name is of the model before training. Of what
`jaxalign.evaluation.result.SafetyResult.as_dict` gives, these keys are read, and all others are passed over:

    source       prompt_set, fingerprint, prompts, judge, limits; refusal_judge, refusal_limits or null; and in newer
                 files model, model_fingerprint, step or null, answer_settings, judge_fingerprint or null
    overall      safe_rate {value, low, high}, corrected_safe_rate or null, prompts, unjudged; or null
    categories   the same by name
    spread       safe_rate, and corrected_safe_rate where the judge's error is known: gap {value, low, high},
                 gap_if_equal; {} without categories
    over_refusal, under_refusal   rate {value, low, high}, prompts; or null
    helpfulness  name, mean {value, low, high}, prompts; or null
    certificate  confidence, correction, bound, constraints: category, status, target, violation_rate, upper_bound,
                 margin, prompts, message; or null
    notes        sentences
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxalign.report.rows import Interval

STATUSES = ("not met", "too few prompts", "met")
"""Of a constraint, in the order in which a reader wants to see them."""


Key = tuple[str, ...]
"""Of a result: fingerprint of the prompts, judge, refusal judge, fingerprint of the judge, settings of the answers."""


@dataclass(frozen=True, slots=True)
class SafeRate:
    """Share of answers judged safe; an unjudged one counts as not safe. Corrected where the judge's error is known."""

    rate: Interval
    corrected: Interval | None
    prompts: int
    unjudged: int

    def shown(self, corrected: bool) -> Interval:
        """The corrected rate where that is asked for and known, else the rate as judged."""
        return self.corrected if corrected and self.corrected is not None else self.rate


@dataclass(frozen=True, slots=True)
class Rate:
    """Another figure with its name: a share of wrong refusals, or a mean of scores of helpfulness."""

    name: str
    rate: Interval
    prompts: int


@dataclass(frozen=True, slots=True)
class Constraint:
    """Whether the answers show that a category keeps its target."""

    category: str
    status: str
    target: float
    violation_rate: float | None
    upper_bound: float
    margin: float | None
    prompts: int
    message: str


@dataclass(frozen=True, slots=True)
class Safety:
    """The result of one model, at the `moment` before or after training, on one prompt set under one judge.

    `answer_settings` are in words. What older files do not tell is None. In a `corrected` one all rates are known
    corrected for the judge's error, and gap and worst category are of those.
    """

    file: str
    moment: str
    prompt_set: str
    fingerprint: str
    num_prompts: int
    judge: str
    limits: str
    refusal_judge: str | None
    refusal_limits: str | None
    judge_fingerprint: str | None
    answer_settings: str | None
    model: str | None
    model_fingerprint: str | None
    step: int | None
    corrected: bool
    overall: SafeRate | None
    categories: Mapping[str, SafeRate]
    gap: Interval | None
    gap_if_equal: float | None
    refusals: tuple[Rate, ...]
    helpfulness: Rate | None
    certificate: tuple[Constraint, ...]
    certified_by: str
    notes: tuple[str, ...]

    @property
    def key(self) -> Key:
        """What two results have in common that may be compared: prompts, judges, settings of judge and answers."""
        names = (
            self.fingerprint,
            self.judge,
            self.refusal_judge,
            self.judge_fingerprint,
            self.answer_settings,
        )
        return tuple(name or "" for name in names)

    @property
    def targets(self) -> dict[str, float]:
        """The accepted violation rates that the certificate was made for, by category."""
        return {row.category: row.target for row in self.certificate}

    @property
    def worst(self) -> tuple[str, SafeRate] | None:
        """The category with the lowest safe rate; None without categories."""
        return min(
            self.categories.items(), key=lambda item: item[1].shown(self.corrected).value, default=None
        )
