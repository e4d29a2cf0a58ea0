"""How often a judge errs: its confusion table, by category, on answers that people labelled."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.schema import NO_CATEGORY, prompt_key
from jaxalign.evaluation.judges.interface import Judge, Judgements, judge_id
from jaxalign.evaluation.labelled import read_labelled

log = logging.getLogger(__name__)

Z_95 = 1.959963984540054
"""Of a two-sided 95 % interval under the normal distribution."""


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Answers by label and judgement. Rates are over the judged ones, None where there are none."""

    unsafe_judged_unsafe: int
    unsafe_judged_safe: int
    safe_judged_safe: int
    safe_judged_unsafe: int
    unsafe_unjudged: int
    safe_unjudged: int

    @property
    def num_answers(self) -> int:
        """All answers, judged or not."""
        return sum(dataclasses.astuple(self))

    @property
    def sensitivity(self) -> float | None:
        """Share of unsafe answers that the judge calls unsafe."""
        return _rate(self.unsafe_judged_unsafe, self.unsafe_judged_safe)

    @property
    def specificity(self) -> float | None:
        """Share of safe answers that the judge calls safe."""
        return _rate(self.safe_judged_safe, self.safe_judged_unsafe)

    @property
    def sensitivity_interval(self) -> tuple[float, float]:
        """95 % Wilson interval, of independent answers; (0, 1) where there are none."""
        return wilson_interval(self.unsafe_judged_unsafe, self.unsafe_judged_unsafe + self.unsafe_judged_safe)

    @property
    def specificity_interval(self) -> tuple[float, float]:
        """95 % Wilson interval, of independent answers; (0, 1) where there are none."""
        return wilson_interval(self.safe_judged_safe, self.safe_judged_safe + self.safe_judged_unsafe)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The confusion of one judge on one file. Answers to one prompt are not independent: `num_prompts` tells."""

    judge: str
    limits: str
    file: str
    num_prompts: int
    overall: Confusion
    categories: dict[str, Confusion]
    judge_fingerprint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the counts, and what follows from them for readers."""
        return {
            "judge": self.judge,
            "judge_fingerprint": self.judge_fingerprint,
            "limits": self.limits,
            "file": self.file,
            "num_prompts": self.num_prompts,
            "overall": _figures(self.overall),
            "categories": {name: _figures(confusion) for name, confusion in self.categories.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """The inverse of `as_dict`. Raises ValueError for what is none."""
        try:
            return cls(
                judge=str(values["judge"]),
                limits=str(values["limits"]),
                file=str(values["file"]),
                num_prompts=_count(values["num_prompts"]),
                overall=_confusion(values["overall"]),
                categories={str(name): _confusion(figures) for name, figures in values["categories"].items()},
                judge_fingerprint=values.get("judge_fingerprint"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"no calibration of a judge ({type(error).__name__}: {error}); write one with "
                "`jaxalign evaluate --calibrate`"
            ) from error


def calibrate(judge: Judge, file: Path) -> Calibration:
    """The confusion of a judge on the labelled answers in a file. Raises DataError, or what the judge raises."""
    rows = read_labelled(file)
    num_repeated = len(rows) - len({(prompt_key(row.prompt), row.response) for row in rows})
    if num_repeated:
        log.warning(
            "%s: %d rows repeat an earlier prompt and response; each counts as an answer of its own, so intervals are "
            "too narrow; leave them out",
            file,
            num_repeated,
        )
    judgements = judge([row.prompt for row in rows], [row.response for row in rows])
    unsafe = np.array([row.unsafe for row in rows], bool)
    categories = [row.category for row in rows]
    names = list(dict.fromkeys(name for name in categories if name is not None))
    if names and None in categories:
        names.append(NO_CATEGORY)
    inside = {
        name: np.array([(category or NO_CATEGORY) == name for category in categories], bool) for name in names
    }
    return Calibration(
        judge=judge.name,
        limits=judge.limits,
        file=file.name,
        num_prompts=len({prompt_key(row.prompt) for row in rows}),
        overall=confusion(unsafe, judgements),
        categories={name: confusion(unsafe, judgements, members) for name, members in inside.items()},
        judge_fingerprint=judge_id(judge)[1],
    )


def confusion(unsafe: np.ndarray, judgements: Judgements, members: np.ndarray | None = None) -> Confusion:
    """Counts of labels [n] against judgements, of all answers or of the `members` [n] bool."""
    chosen = np.ones_like(unsafe) if members is None else members

    def count(*masks: np.ndarray) -> int:
        return int(np.logical_and.reduce((chosen, *masks)).sum())

    safe, judged = judgements.safe, judgements.judged
    return Confusion(
        unsafe_judged_unsafe=count(unsafe, judged, ~safe),
        unsafe_judged_safe=count(unsafe, judged, safe),
        safe_judged_safe=count(~unsafe, judged, safe),
        safe_judged_unsafe=count(~unsafe, judged, ~safe),
        unsafe_unjudged=count(unsafe, ~judged),
        safe_unjudged=count(~unsafe, ~judged),
    )


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    lower = 0.0 if successes == 0 else centre - half
    return lower, 1.0 if successes == trials else centre + half


def _rate(hits: int, misses: int) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def _figures(confusion: Confusion) -> dict[str, Any]:
    return {
        **dataclasses.asdict(confusion),
        "sensitivity": confusion.sensitivity,
        "sensitivity_interval": list(confusion.sensitivity_interval),
        "specificity": confusion.specificity,
        "specificity_interval": list(confusion.specificity_interval),
    }


def _confusion(figures: Mapping[str, Any]) -> Confusion:
    return Confusion(**{field.name: _count(figures[field.name]) for field in dataclasses.fields(Confusion)})


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value
