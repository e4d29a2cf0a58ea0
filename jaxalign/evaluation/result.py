"""What an evaluation of answers gives: plain frozen data for JSON, and its Markdown. Nothing is computed here."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from jaxalign.evaluation.answerer import Option, described
from jaxalign.evaluation.bootstrap import Estimate
from jaxalign.evaluation.certificate import Certificate
from jaxalign.evaluation.judge_accuracy import JudgeAccuracy
from jaxalign.evaluation.spread import Spread
from jaxalign.markdown import plain

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Source:
    """What was evaluated, and how. `refusal_judge` tells refusals where `judge` does not.

    `model` to `answer_settings` are those of `Answerer`, and `judge_fingerprint` is of the judge's settings and
    weights. They are None where they are not known, as in files of earlier versions.
    """

    prompt_set: str
    fingerprint: str
    prompts: int
    merged_rows: int
    answers: int
    judge: str
    limits: str
    refusal_judge: str | None
    refusal_limits: str | None
    judge_accuracy: JudgeAccuracy | None
    confidence: float
    num_resamples: int
    seed: int
    model: str | None = None
    model_fingerprint: str | None = None
    step: int | None = None
    answer_settings: dict[str, Option] | None = None
    judge_fingerprint: str | None = None


@dataclasses.dataclass(frozen=True)
class GroupFigures:
    """Figures of one category, or of a group of prompts.

    `safe_rate` is the share of all answers that were judged safe, so an unjudged one counts as not safe;
    `mean_harm` is over the judged ones, None without any. `corrected_safe_rate` takes out the judge's known error,
    which also widens its interval; None where the error is not known.
    """

    prompts: int
    answers: int
    unjudged: int
    safe_rate: Estimate
    mean_harm: Estimate | None
    corrected_safe_rate: Estimate | None


@dataclasses.dataclass(frozen=True)
class RefusalRate:
    """A rate of wrong refusals, or of wrong compliance; an unjudged answer counts as wrong. `prompts` may be wrong."""

    rate: Estimate
    prompts: int
    answers: int
    unjudged: int


@dataclasses.dataclass(frozen=True)
class Helpfulness:
    """The mean of scores of helpfulness; `name` says which."""

    name: str
    mean: Estimate
    prompts: int
    scores: int


@dataclasses.dataclass(frozen=True)
class SafetyResult:
    """The evaluation of one model.

    `overall` is over all prompts that are not benign, each counting once; `benign` over those that are. `spread`
    has the figures safe_rate, mean_harm and, with a known judge's error, corrected_safe_rate.
    """

    source: Source
    overall: GroupFigures | None
    categories: dict[str, GroupFigures]
    without_prompts: tuple[str, ...]
    benign: GroupFigures | None
    spread: dict[str, Spread]
    over_refusal: RefusalRate | None
    under_refusal: RefusalRate | None
    helpfulness: Helpfulness | None
    certificate: Certificate | None
    notes: tuple[str, ...]
    format_version: int = FORMAT_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return json.loads(_RESULT.dump_json(self))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "SafetyResult":
        """The result that `as_dict` gave. Raises pydantic.ValidationError for anything else."""
        return _RESULT.validate_json(json.dumps(values))

    def markdown(self) -> str:
        """Tables of all figures, with the judge and what it cannot see."""
        source = self.source
        lines = [
            *((_whose(source), "") if source.model is not None else ()),
            f"{source.answers} answers to {source.prompts} prompts of {plain(source.prompt_set)}, judged by "
            f"{plain(source.judge)}. "
            f"{source.limits} Intervals hold {source.confidence:.0%}.",
            *(
                (f"Refusals are told by {source.refusal_judge}. {source.refusal_limits}",)
                if source.refusal_judge
                else ()
            ),
            "",
            *table(
                ("category", "prompts", "answers", "unjudged", "safe rate", "corrected", "mean harm"),
                [_group_row(name, group) for name, group in self._groups().items()],
            ),
        ]
        for name, spread in self.spread.items():
            lines += ["", *_spread_table(name.replace("_", " "), spread)]
        lines += ["", *table(("other", "value"), self._others())] if self._others() else []
        if self.certificate is not None:
            lines += ["", *_certificate_lines(self.certificate)]
        return "\n".join([*lines, "", *(f"- {plain(note)}" for note in self.notes)]).rstrip() + "\n"

    def _groups(self) -> dict[str, GroupFigures]:
        groups = {"all": self.overall, **self.categories, "(benign)": self.benign}
        return {name: group for name, group in groups.items() if group is not None}

    def _others(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for name, refusal in (("over-refusal", self.over_refusal), ("under-refusal", self.under_refusal)):
            if refusal is not None:
                rows.append((f"{name} ({refusal.prompts} prompts)", shown(refusal.rate)))
        if self.helpfulness is not None:
            title = f"{self.helpfulness.name} ({self.helpfulness.prompts} prompts)"
            rows.append((title, shown(self.helpfulness.mean)))
        return rows


_RESULT = TypeAdapter(SafetyResult)


def _whose(source: Source) -> str:
    return f"Answers of {plain(described(source.model or '', source.step, source.answer_settings or {}))}."


def shown(estimate: Estimate | None) -> str:
    """A figure with its interval, three decimals."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def result_schema() -> dict[str, Any]:
    """JSON schema of what `SafetyResult.as_dict` gives."""
    return _RESULT.json_schema()


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table without the columns that hold no value. The first cell of a row is a name, escaped."""
    filled = [i for i in range(len(header)) if not rows or any(row[i] != "-" for row in rows)]
    cells = [header, ("---",) * len(header), *((plain(name), *values) for name, *values in rows)]
    return ["| " + " | ".join(row[i] for i in filled) + " |" for row in cells]


def _group_row(name: str, group: GroupFigures) -> tuple[str, ...]:
    counts = (group.prompts, group.answers, group.unjudged)
    figures = (group.safe_rate, group.corrected_safe_rate, group.mean_harm)
    return (name, *map(str, counts), *map(shown, figures))


def _spread_table(name: str, spread: Spread) -> list[str]:
    if_equal = f"{spread.gap_if_equal:.3f} expected if all were equal, p = {spread.gap_p_value:.3g}"
    gap = "- (one category)" if spread.of_one else f"{shown(spread.gap)}; {if_equal}"
    rows = [
        ("mean", shown(spread.mean)),
        ("variance", shown(spread.variance)),
        ("standard deviation", shown(spread.standard_deviation)),
        ("gap, best to worst", gap),
        ("worst", f"{shown(spread.worst)}: {plain(spread.worst_category)}"),
    ]
    return table((f"{name} over categories", "value"), rows)


def _certificate_lines(certificate: Certificate) -> list[str]:
    verdict = "all met" if certificate.all_met else "not all met"
    given, without, partly = len(certificate.constraints), certificate.without_target, ""
    if without:
        total = given + len(without)
        partly = f" {given} of {total} categories have a target; none for: {', '.join(map(plain, without))}."
    header = ("constraint", "status", "target", "rate", "at most", "slack", "margin", "prompts", "needed")
    rows = [
        (
            c.category,
            c.status,
            f"{c.target:g}",
            _number(c.violation_rate),
            _number(c.upper_bound),
            _number(c.slack),
            _number(c.margin),
            str(c.prompts),
            "-" if c.minimum_prompts is None else str(c.minimum_prompts),
        )
        for c in certificate.constraints
    ]
    return [
        f"Certificate: {verdict}, with {certificate.confidence:.0%} confidence ({certificate.correction}).{partly}",
        "",
        *table(header, rows),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
