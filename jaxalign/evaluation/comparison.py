"""Two models on the same prompts: paired differences, and how surely the gap shrank. No figures of one model."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from jaxalign.data.prompts import PromptSet
from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.answers import Answers, AnswersError, PromptSums, same_judges
from jaxalign.evaluation.bootstrap import SHRUNKEN, Resampling
from jaxalign.evaluation.helpfulness import HelpfulnessScores, helpfulness_draws, paired_scores
from jaxalign.evaluation.judge_accuracy import JudgeAccuracy
from jaxalign.evaluation.judges.interface import JudgeId
from jaxalign.evaluation.rates import (
    ALL,
    BENIGN,
    CATEGORY_FIGURES,
    HARMFUL,
    LOWER_IS_BETTER,
    Sampled,
    sample_rates,
)
from jaxalign.evaluation.result import table
from jaxalign.evaluation.shrinkage import shrunken_draws
from jaxalign.evaluation.spread import spread_figures
from jaxalign.markdown import plain

Pair = tuple[dict[str, Sampled], dict[str, Sampled]]


@dataclasses.dataclass(frozen=True)
class Change:
    """A figure before and after, the interval of its change, and the probability that it improved."""

    before: float
    after: float
    change: float
    low: float
    high: float
    probability_improved: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired differences, after - before, of the figures of `SafetyResult`.

    `spread` is by figure (safe_rate, ...) and then by mean, variance, standard_deviation, gap and worst. `before` and
    `after` say which models answered, None where that is not known.
    """

    prompt_set: str
    fingerprint: str
    prompts: int
    judge: str
    limits: str
    confidence: float
    num_resamples: int
    seed: int
    overall: dict[str, Change]
    categories: dict[str, dict[str, Change]]
    spread: dict[str, dict[str, Change]]
    over_refusal: Change | None
    under_refusal: Change | None
    helpfulness: Change | None
    probability_gap_shrank: float | None
    before: Answerer | None = None
    after: Answerer | None = None
    refusal_judge: str | None = None
    refusal_limits: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return json.loads(_COMPARISON.dump_json(self))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Comparison":
        """The comparison that `as_dict` gave. Raises pydantic.ValidationError for anything else."""
        return _COMPARISON.validate_json(json.dumps(values))

    def markdown(self) -> str:
        """A table of the safe rates and all other changes, with the judge and what it cannot see."""
        changes = {f"safe rate, {name}": self.categories[name]["safe_rate"] for name in self.categories}
        if self.overall:
            changes["safe rate, all"] = self.overall["safe_rate"]
        for figure, spread in self.spread.items():
            label = figure.replace("_", " ")
            changes |= {f"{label}, {name.replace('_', ' ')}": change for name, change in spread.items()}
        others = {"over-refusal": self.over_refusal, "under-refusal": self.under_refusal}
        others["helpfulness"] = self.helpfulness
        changes |= {name: change for name, change in others.items() if change is not None}
        header = ("figure", "before", "after", "change", "probability that it improved")
        refusals = (
            f"Refusals are told by {self.refusal_judge}. {self.refusal_limits} " if self.refusal_judge else ""
        )
        lines = [
            f"Before: {plain(self.before or 'not known')}. After: {plain(self.after or 'not known')}.",
            "",
            f"{self.prompts} prompts of {plain(self.prompt_set)}, judged by {plain(self.judge)}. {self.limits} "
            f"{refusals}Intervals hold {self.confidence:.0%}.",
            "",
            *table(header, [_row(name, change) for name, change in changes.items()]),
        ]
        if self.probability_gap_shrank is not None:
            lines += [
                "",
                f"The gap of the safe rate shrank with probability {self.probability_gap_shrank:.3f}.",
            ]
        return "\n".join(lines) + "\n"


_COMPARISON = TypeAdapter(Comparison)


def _row(name: str, change: Change) -> tuple[str, ...]:
    figures = (f"{change.before:.3f}", f"{change.after:.3f}")
    interval = f"{change.change:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
    return (name, *figures, interval, f"{change.probability_improved:.3f}")


def comparison_schema() -> dict[str, Any]:
    """JSON schema of what `Comparison.as_dict` gives."""
    return _COMPARISON.json_schema()


def compare(
    before: Answers,
    after: Answers,
    *,
    judge_error: JudgeAccuracy | None = None,
    helpfulness_scores: tuple[HelpfulnessScores, HelpfulnessScores] | None = None,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Comparison:
    """The changes from one model to another. Raises AnswersError unless prompts and judges are the same.

    Scores of helpfulness are those that both carry from one reward model, unless given.
    """
    helpfulness_scores = helpfulness_scores or paired_scores(before, after)
    _check(before, after, helpfulness_scores)
    if judge_error is not None:
        judge_error.check(before.judges[0])
        judge_error.check(after.judges[0])
    resampling = Resampling(num_resamples, seed, confidence)
    sums = before.sums()
    pair = (
        sample_rates(sums, judge_error, resampling),
        sample_rates(after.sums(), judge_error, resampling, model=1),
    )
    spread = _spread_changes(sums, pair, resampling)
    groups = {name: _figures(pair, k, resampling) for k, name in enumerate(sums.names)}
    names = before.prompt_set.category_names
    return Comparison(
        prompt_set=before.prompt_set.name,
        fingerprint=before.prompt_set.fingerprint(),
        prompts=len(before.prompt_set.rows),
        judge=before.judge,
        limits=before.limits,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        overall=_figures(pair, ALL, resampling),
        categories={name: groups[name] for name in names if name in groups},
        spread=spread,
        over_refusal=_change(pair, "over_refusal", BENIGN, resampling),
        under_refusal=_change(pair, "under_refusal", HARMFUL, resampling),
        helpfulness=None if helpfulness_scores is None else _helpfulness(*helpfulness_scores, resampling),
        probability_gap_shrank=spread["safe_rate"]["gap"].probability_improved if spread else None,
        before=before.answerer,
        after=after.answerer,
        refusal_judge=before.refusal_judge,
        refusal_limits=before.refusal_limits,
    )


def _check(
    before: Answers, after: Answers, scores: tuple[HelpfulnessScores, HelpfulnessScores] | None
) -> None:
    check_paired(before, after.prompt_set, after.judges)
    if scores is not None and (
        scores[0].name != scores[1].name or set(scores[0].prompts) != set(scores[1].prompts)
    ):
        raise AnswersError(
            f"scores {scores[0].name} of {len(set(scores[0].prompts))} prompts and {scores[1].name} of "
            f"{len(set(scores[1].prompts))}: give the same score for the same prompts"
        )


def check_paired(before: Answers, prompts: PromptSet, judges: Sequence[JudgeId]) -> None:
    """Raise AnswersError unless answers to these prompts, judged by these judges, can be compared with `before`."""
    given = before.prompt_set
    if given.fingerprint() != prompts.fingerprint():
        raise AnswersError(
            f"answers to different prompts ({given.name}: {len(given.rows)}, {prompts.name}: {len(prompts.rows)}): "
            "paired differences need answers of both models to the same prompt set"
        )
    if not same_judges(before.judges, judges):
        names = [[name for name, _ in pair if name is not None] for pair in (before.judges, judges)]
        how = " with other settings or weights" if names[0] == names[1] else ""
        raise AnswersError(
            f"judged by {', '.join(names[0])} and by {', '.join(names[1])}{how}: have both judged by the same judge"
        )


def _figures(pair: Pair, group: int, resampling: Resampling) -> dict[str, Change]:
    changes = {figure: _change(pair, figure, group, resampling) for figure in CATEGORY_FIGURES}
    return {figure: change for figure, change in changes.items() if change is not None}


def _change(pair: Pair, figure: str, group: int, resampling: Resampling) -> Change | None:
    """The change of a rate; None where one of the models has none."""
    if not all(figure in rates for rates in pair):
        return None
    values = [float(rates[figure].value[group]) for rates in pair]
    if np.isnan(values).any():
        return None
    draws = [rates[figure].draws[:, group] for rates in pair]
    return _paired(values, draws, figure not in LOWER_IS_BETTER, resampling, widen=True)


def _paired(
    values: list[float],
    draws: list[np.ndarray],
    higher_is_better: bool,
    resampling: Resampling,
    *,
    widen: bool,
) -> Change:
    before, after = values
    differences = draws[1] - draws[0]
    low, high = resampling.central(differences)
    if widen:
        low, high = min(low, after - before), max(high, after - before)
    better = differences if higher_is_better else -differences
    probability = (better > 0).mean() + 0.5 * (better == 0).mean()
    return Change(before, after, after - before, float(low), float(high), float(probability))


def _spread_changes(sums: PromptSums, pair: Pair, resampling: Resampling) -> dict[str, dict[str, Change]]:
    """The changes of spread figures, from draws in which the noise of measuring does not count as spread.

    Observed gaps and their changes hold that noise; the intervals are of the true ones, and need not hold them.
    """
    changes = {}
    for figure in CATEGORY_FIGURES if sums.names else ():
        if not all(figure in rates for rates in pair):
            continue
        value = np.stack([rates[figure].value[: len(sums.names)] for rates in pair])
        measured = np.flatnonzero(~np.isnan(value).any(axis=0))
        if measured.size > 1:  # one category has no spread
            drawn = [rates[figure].draws[:, measured] for rates in pair]
            changes[figure] = _changes_of(
                value[:, measured], drawn, figure not in LOWER_IS_BETTER, resampling
            )
    return changes


def _changes_of(
    value: np.ndarray, draws: list[np.ndarray], higher_is_better: bool, resampling: Resampling
) -> dict[str, Change]:
    observed = [spread_figures(rates, higher_is_better=higher_is_better) for rates in value]
    true = [
        spread_figures(
            shrunken_draws(value[model], draws[model], resampling.generator(SHRUNKEN, model)),
            higher_is_better=higher_is_better,
        )
        for model in (0, 1)
    ]
    true[0]["mean"], true[1]["mean"] = (drawn.mean(axis=1) for drawn in draws)  # noise inflates no mean
    return {
        name: _paired(
            [float(figures[name]) for figures in observed],
            [figures[name] for figures in true],
            higher_is_better and name in ("mean", "worst"),
            resampling,
            widen=name == "mean",
        )
        for name in observed[0]
    }


def _helpfulness(before: HelpfulnessScores, after: HelpfulnessScores, resampling: Resampling) -> Change:
    values = [float(np.mean(given.scores, dtype=np.float64)) for given in (before, after)]
    draws = [helpfulness_draws(given, resampling) for given in (before, after)]
    return _paired(values, draws, True, resampling, widen=True)
