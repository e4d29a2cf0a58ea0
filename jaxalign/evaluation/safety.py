"""From judged answers to the result of one model: what is counted, what is left out, and what a reader must know."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxalign.evaluation.answers import Answers, AnswersError, PromptSums
from jaxalign.evaluation.bootstrap import Resampling
from jaxalign.evaluation.certificate import Certificate, certify
from jaxalign.evaluation.equality import gaps_if_equal
from jaxalign.evaluation.helpfulness import HelpfulnessScores, helpfulness
from jaxalign.evaluation.judge_accuracy import JudgeAccuracy
from jaxalign.evaluation.rates import (
    ALL,
    BENIGN,
    CATEGORY_FIGURES,
    HARMFUL,
    LOWER_IS_BETTER,
    Sampled,
    sample_rates,
)
from jaxalign.evaluation.result import GroupFigures, RefusalRate, SafetyResult, Source
from jaxalign.evaluation.spread import Spread, spread


def evaluate_answers(
    answers: Answers,
    *,
    targets: float | Mapping[str, float] | None = None,
    margins: Mapping[str, float] | None = None,
    judge_error: JudgeAccuracy | None = None,
    helpfulness_scores: HelpfulnessScores | None = None,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> SafetyResult:
    """All figures of one model; with targets also the certificate, in which the margins are shown.

    Raises AnswersError where nothing was judged, and for margins without targets.
    """
    if margins is not None and targets is None:
        raise AnswersError(
            "margins without targets have no effect: only the certificate shows them; give targets"
        )
    if judge_error is not None:
        judge_error.check(answers.judges[0])
    resampling = Resampling(num_resamples, seed, confidence)
    certificate = None
    if targets is not None:
        certificate = certify(answers, targets, margins=margins, accuracy=judge_error, confidence=confidence)
    sums = answers.sums()
    rates = sample_rates(sums, judge_error, resampling)
    columns = {
        name: sums.names.index(name) for name in answers.prompt_set.category_names if name in sums.names
    }
    return SafetyResult(
        source=_source(answers, judge_error, resampling),
        overall=None if sums.benign.all() else _group(sums, rates, ALL, resampling),
        categories={name: _group(sums, rates, column, resampling) for name, column in columns.items()},
        without_prompts=tuple(name for name in answers.prompt_set.category_names if name not in columns),
        benign=_group(sums, rates, BENIGN, resampling) if sums.benign.any() else None,
        spread=_spreads(sums, rates, judge_error, resampling),
        over_refusal=_refusal(sums, rates, "over_refusal", BENIGN, resampling),
        under_refusal=_refusal(sums, rates, "under_refusal", HARMFUL, resampling),
        helpfulness=None if helpfulness_scores is None else helpfulness(helpfulness_scores, resampling),
        certificate=certificate,
        notes=(*_notes(answers, sums, rates, judge_error), *_untargeted(certificate)),
    )


def _source(answers: Answers, judge_error: JudgeAccuracy | None, resampling: Resampling) -> Source:
    return Source(
        prompt_set=answers.prompt_set.name,
        fingerprint=answers.prompt_set.fingerprint(),
        prompts=len(answers.prompt_set.rows),
        merged_rows=answers.prompt_set.num_merged,
        answers=answers.num_answers,
        judge=answers.judge,
        limits=answers.limits,
        refusal_judge=answers.refusal_judge,
        refusal_limits=answers.refusal_limits,
        judge_accuracy=judge_error,
        confidence=resampling.confidence,
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
        judge_fingerprint=answers.judge_fingerprint,
        **({} if answers.answerer is None else dataclasses.asdict(answers.answerer)),
    )


def _group(sums: PromptSums, rates: dict[str, Sampled], group: int, resampling: Resampling) -> GroupFigures:
    members = sums.groups[:, group]
    num_answers = int(sums.answers[members].sum())
    figures = {
        name: rates[name].estimate(group, resampling)
        for name in CATEGORY_FIGURES
        if name in rates and not np.isnan(rates[name].value[group])
    }
    return GroupFigures(
        prompts=int(members.sum()),
        answers=num_answers,
        unjudged=num_answers - int(sums.judged[members].sum()),
        safe_rate=figures["safe_rate"],
        mean_harm=figures.get("mean_harm"),
        corrected_safe_rate=figures.get("corrected_safe_rate"),
    )


def _refusal(
    sums: PromptSums, rates: dict[str, Sampled], figure: str, group: int, resampling: Resampling
) -> RefusalRate | None:
    members = sums.groups[:, group]
    if sums.refused is None or sums.complied is None or not members.any():
        return None
    num_answers = int(sums.answers[members].sum())
    return RefusalRate(
        rate=resampling.estimate(rates[figure].value[group], rates[figure].draws[:, group]),
        prompts=int(members.sum()),
        answers=num_answers,
        unjudged=num_answers - int((sums.refused + sums.complied)[members].sum()),
    )


def _spreads(
    sums: PromptSums, rates: dict[str, Sampled], judge_error: JudgeAccuracy | None, resampling: Resampling
) -> dict[str, Spread]:
    """The spread of every figure over the categories that have it."""
    if not sums.names:
        return {}
    by_chance = gaps_if_equal(sums, judge_error, resampling)
    spreads = {}
    for figure in CATEGORY_FIGURES:
        if figure not in by_chance:
            continue
        value = rates[figure].value[: len(sums.names)]
        measured = np.flatnonzero(~np.isnan(value))
        spreads[figure] = spread(
            [sums.names[k] for k in measured],
            value[measured],
            rates[figure].draws[:, measured],
            by_chance[figure],
            higher_is_better=figure not in LOWER_IS_BETTER,
            resampling=resampling,
        )
    return spreads


def _untargeted(certificate: Certificate | None) -> tuple[str, ...]:
    """The note that the certificate says nothing of some categories."""
    if certificate is None or not certificate.without_target:
        return ()
    given, without = len(certificate.constraints), certificate.without_target
    return (
        f"{given} of {given + len(without)} categories have a target; the certificate says nothing of: "
        f"{', '.join(without)}.",
    )


def _contradictions(sums: PromptSums, rates: dict[str, Sampled]) -> list[str]:
    """The groups whose judged rate does not fit the calibration."""
    unclipped = rates["corrected_safe_rate"].unclipped if "corrected_safe_rate" in rates else None
    if unclipped is None:
        return []
    found = (unclipped[0] > 1.0) | (unclipped[1] < 0.0)
    groups = {name: k for k, name in enumerate(sums.names)} | {"all": ALL, "(benign)": BENIGN}
    return [name for name, k in groups.items() if found[k]]


def _notes(
    answers: Answers, sums: PromptSums, rates: dict[str, Sampled], judge_error: JudgeAccuracy | None
) -> tuple[str, ...]:
    """What a reader would otherwise miss, one sentence each."""
    unjudged = answers.num_answers - int(sums.judged.sum())
    several = int((sums.categories.sum(axis=1) > 1).sum())
    empty = [name for name in answers.prompt_set.category_names if name not in sums.names]
    merged = answers.prompt_set.num_merged
    against = _contradictions(sums, rates)
    notes = {
        f"Answers that were not judged: {unjudged} of {answers.num_answers}; each counts as not safe.": unjudged
        > 0,
        f"Prompts of several categories: {several}; each counts in all of its own.": several > 0,
        f"Categories without prompts, so without figures: {', '.join(empty)}.": bool(empty),
        "No prompt has a category, so there are no figures per category and no gap.": not sums.names,
        "The judge's error is not known, so no interval holds it; calibrate the judge.": judge_error is None,
        f"The judged safe rate contradicts the calibration: {', '.join(against)}. The judge does not err on these "
        "answers as it did on the labelled ones, so its errors are not deducted there; label answers of this "
        "kind.": bool(against),
        "Over-refusal is missing: no judge tells refusals.": sums.benign.any() and sums.refused is None,
        f"Rows that repeat an earlier prompt and were merged with it: {merged}.": merged > 0,
    }
    return tuple(note for note, holds in notes.items() if holds)
