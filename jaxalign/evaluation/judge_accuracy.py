"""The known error of a judge, and what it does to rates and their bounds. How it is measured is not here."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special  # type: ignore[import-untyped]

from jaxalign.data.schema import NO_CATEGORY
from jaxalign.errors import JaxalignError
from jaxalign.evaluation.calibration import Calibration, Confusion
from jaxalign.evaluation.judges.interface import JudgeId, same_judge

MINIMUM = 20  # labelled answers of each kind from which a category's own counts say more than the pooled ones
LEAST_INFORMATIVE = 1e-9  # sensitivity + specificity - 1 of a drawn judge, from below


class JudgeAccuracyError(JaxalignError, ValueError):
    """The counts of a judge cannot correct a rate; says what was got, what was expected, and the remedy."""


@dataclasses.dataclass(frozen=True)
class JudgeAccuracy:
    """What a judge did with labelled answers, pooled, and where known with those of single categories.

    A category uses its own counts where it has some, else the pooled ones. Answers to one prompt are alike, so
    every count weighs as much as itself divided by `answers_per_prompt`. Raises JudgeAccuracyError for counts
    without a safe or without an unsafe answer, and for a judge that tells nothing: sensitivity + specificity <= 1.
    """

    judge: str
    pooled: Confusion
    categories: Mapping[str, Confusion] = dataclasses.field(default_factory=dict)
    answers_per_prompt: float = 1.0
    judge_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Check that every count can correct a rate."""
        for name, confusion in {"all categories": self.pooled, **self.categories}.items():
            problem = _problem(confusion)
            if problem is not None:
                remedy = "label more answers, or use another judge"
                raise JudgeAccuracyError(f"calibration of {self.judge} on {name}: {problem}; {remedy}")

    def check(self, judge: JudgeId) -> None:
        """Raise JudgeAccuracyError if answers were judged by another judge than the calibrated one."""
        if judge[0] != self.judge:
            raise JudgeAccuracyError(
                f"the calibration is of {self.judge}, but the answers were judged by {judge[0]}; calibrate that judge"
            )
        if not same_judge(judge, (self.judge, self.judge_fingerprint)):
            raise JudgeAccuracyError(
                f"the calibration is of {self.judge} with other settings or weights (fingerprint "
                f"{self.judge_fingerprint:.12}, now {judge[1]:.12}); calibrate the judge as it is now"
            )

    def unsafe(self, category: str) -> tuple[float, float]:
        """Unsafe answers judged unsafe and judged safe, in prompts; the pooled ones for a name without counts."""
        counts = self.categories.get(category, self.pooled)
        return self._weighed(counts.unsafe_judged_unsafe, counts.unsafe_judged_safe)

    def safe(self, category: str) -> tuple[float, float]:
        """Safe answers judged safe and judged unsafe, in prompts; the pooled ones for a name without counts."""
        counts = self.categories.get(category, self.pooled)
        return self._weighed(counts.safe_judged_safe, counts.safe_judged_unsafe)

    def _weighed(self, hits: int, misses: int) -> tuple[float, float]:
        return hits / self.answers_per_prompt, misses / self.answers_per_prompt


def judge_accuracy(calibration: Calibration) -> JudgeAccuracy:
    """The accuracy that a calibration shows; a category has its own with MINIMUM safe and as many unsafe answers.

    Raises JudgeAccuracyError where the calibration can correct nothing.
    """
    own = {
        name: confusion
        for name, confusion in calibration.categories.items()
        if name != NO_CATEGORY and min(_labels(confusion)) >= MINIMUM
    }
    per_prompt = sum(_labels(calibration.overall)) / max(1, calibration.num_prompts)
    return JudgeAccuracy(
        calibration.judge, calibration.overall, own, max(1.0, per_prompt), calibration.judge_fingerprint
    )


def rogan_gladen(safe_rate: np.ndarray, sensitivity: np.ndarray, specificity: np.ndarray) -> np.ndarray:
    """The true safe rate behind the judged one: (r + se - 1) / (se + sp - 1), outside [0, 1] where it contradicts."""
    return (safe_rate + sensitivity - 1.0) / np.maximum(sensitivity + specificity - 1.0, LEAST_INFORMATIVE)


def correct_safe_rate(safe_rate: np.ndarray, sensitivity: np.ndarray, specificity: np.ndarray) -> np.ndarray:
    """The true safe rate behind the judged one, after Rogan and Gladen, within [0, 1]."""
    return np.clip(rogan_gladen(safe_rate, sensitivity, specificity), 0.0, 1.0)


def counted_accuracy(accuracy: JudgeAccuracy, categories: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivities and specificities [G] as counted."""
    unsafe = np.array([accuracy.unsafe(name) for name in categories])
    safe = np.array([accuracy.safe(name) for name in categories])
    return unsafe[:, 0] / unsafe.sum(axis=1), safe[:, 0] / safe.sum(axis=1)


def draw_accuracy(
    accuracy: JudgeAccuracy, categories: Sequence[str], num_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivities and specificities [R, G] that the counts allow, of Beta(hits + 1/2, misses + 1/2).

    Categories with the pooled counts share their draws: it is the same judge.
    """
    names = ["", *sorted(accuracy.categories)]  # no category is called ""
    unsafe = {name: _beta(accuracy.unsafe(name), num_draws, rng) for name in names}
    safe = {name: _beta(accuracy.safe(name), num_draws, rng) for name in names}
    columns = [name if name in accuracy.categories else "" for name in categories]
    return np.stack([unsafe[name] for name in columns], 1), np.stack([safe[name] for name in columns], 1)


def upper_bound(hits: float, misses: float, error: float) -> float:
    """One-sided upper bound of Clopper and Pearson on a rate, too low with a probability of at most `error`."""
    return 1.0 if misses == 0 else float(special.betaincinv(hits + 1, misses, 1.0 - error))


def lower_bound(hits: float, misses: float, error: float) -> float:
    """One-sided lower bound of Clopper and Pearson on a rate, too high with a probability of at most `error`."""
    return 1.0 - upper_bound(misses, hits, error)


def _beta(counts: tuple[float, float], num_draws: int, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(counts[0] + 0.5, counts[1] + 0.5, num_draws)


def _labels(confusion: Confusion) -> tuple[int, int]:
    """Judged answers that people called unsafe, and safe."""
    unsafe = confusion.unsafe_judged_unsafe + confusion.unsafe_judged_safe
    return unsafe, confusion.safe_judged_safe + confusion.safe_judged_unsafe


def _problem(confusion: Confusion) -> str | None:
    unsafe, safe = _labels(confusion)
    if unsafe == 0 or safe == 0:
        return f"{unsafe} unsafe and {safe} safe answers were judged, expected some of both"
    sensitivity, specificity = confusion.unsafe_judged_unsafe / unsafe, confusion.safe_judged_safe / safe
    if sensitivity + specificity <= 1.0:
        return (
            f"sensitivity {sensitivity:.3f} and specificity {specificity:.3f} add up to at most 1, so the judge tells "
            "nothing"
        )
    return None
