"""Judged answers to the prompts of a set, and their sums per prompt. No rate and no interval is taken here."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.data.prompts import PromptSet, in_order
from jaxalign.errors import JaxalignError
from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.judges.interface import Judge, JudgeId, Judgements, judge_id, same_judge


class AnswersError(JaxalignError, ValueError):
    """Answers that do not fit their prompts or each other; says what was got, what was expected, and the remedy."""


@dataclasses.dataclass(frozen=True)
class PromptSums:
    """Sums over the answers of each prompt: float64 [n], prompts in order of their ids, whatever that of the set.

    The rows are the units that are resampled: answers to one prompt are alike and count as one cluster.
    `categories` [n, K] holds those categories that have prompts, by name. `complied` and `refused` are None where
    no judge tells refusals; an answer that this judge failed on is in neither of them.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    categories: np.ndarray
    benign: np.ndarray
    answers: np.ndarray
    judged: np.ndarray
    safe: np.ndarray
    harm: np.ndarray
    complied: np.ndarray | None
    refused: np.ndarray | None

    @property
    def groups(self) -> np.ndarray:
        """Members [n, K + 3] of each category, of all prompts that are not benign, of the harmful and of the benign."""
        harmful = self.categories.any(axis=1)
        return np.column_stack([self.categories, ~self.benign, harmful, self.benign])


@dataclasses.dataclass(frozen=True)
class Answers:
    """One or more answers to each prompt, in the order of the set, and what the judges say.

    Judgements are flat: the prompts in order, the answers of a prompt side by side. `refusals` are those of a
    second judge, for refusals alone, where the first tells none. `answerer` is None where it is not known whose
    answers they are. `scores`, flat too and NaN where there is none, tell how helpful each answer is, as the model
    `scored_by` has it. Raises AnswersError where numbers differ.
    """

    prompt_set: PromptSet
    responses: tuple[tuple[str, ...], ...]
    judgements: Judgements
    judge: str
    limits: str
    refusals: Judgements | None = None
    refusal_judge: str | None = None
    refusal_limits: str | None = None
    answerer: Answerer | None = None
    scores: np.ndarray | None = None
    scored_by: str | None = None
    scorer_fingerprint: str | None = None
    judge_fingerprint: str | None = None
    refusal_judge_fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers of prompts, answers and judgements."""
        if len(self.responses) != len(self.prompt_set.rows):
            raise AnswersError(
                f"answers to {len(self.responses)} prompts, but {self.prompt_set.name} has "
                f"{len(self.prompt_set.rows)}: give a list of answers for each prompt"
            )
        empty = [row.id for row, texts in zip(self.prompt_set.rows, self.responses, strict=True) if not texts]
        if empty:
            raise AnswersError(f"no answer to prompt {empty[0]!r}: give every prompt at least one")
        for name, judgements in (("judgements", self.judgements), ("refusals", self.refusals)):
            if judgements is not None and len(judgements.harm) != self.num_answers:
                raise AnswersError(
                    f"{len(judgements.harm)} {name} of {self.num_answers} answers: judge every answer once"
                )
        if self.scores is not None and np.shape(self.scores) != (self.num_answers,):
            raise AnswersError(
                f"scores of shape {np.shape(self.scores)} for {self.num_answers} answers: score every answer once, NaN "
                "where there is no score"
            )
        if self.refusals is not None and self.refusals.refused is None:
            raise AnswersError(
                f"refusals by {self.refusal_judge}, a judge that tells none: use one that does, or leave them out"
            )

    @property
    def num_answers(self) -> int:
        """Answers to all prompts."""
        return sum(map(len, self.responses))

    @property
    def judges(self) -> tuple[JudgeId, JudgeId]:
        """The judge, and that of refusals alone."""
        refusals = self.refusal_judge, self.refusal_judge_fingerprint
        return (self.judge, self.judge_fingerprint), refusals

    def sums(self) -> PromptSums:
        """The sums over the answers of each prompt. Raises AnswersError where none was judged."""
        if not self.judgements.judged.any():
            raise AnswersError(
                f"{self.judge} judged none of {self.num_answers} answers, expected some; check the judge"
            )
        rows = self.prompt_set.rows
        order = sorted(range(len(rows)), key=lambda i: rows[i].id)
        sizes = np.array([len(texts) for texts in self.responses])
        starts = np.cumsum(sizes) - sizes

        def total(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(values.astype(np.float64), starts)[order]

        names = tuple(sorted({name for row in rows for name in row.categories}))
        judged, refusals = self.judgements.judged, self.refusals or self.judgements
        refused = refusals.refused
        return PromptSums(
            ids=tuple(rows[i].id for i in order),
            names=names,
            categories=np.array([[n in rows[i].categories for n in names] for i in order], bool),
            benign=np.array([rows[i].benign for i in order]),
            answers=sizes.astype(np.float64)[order],
            judged=total(judged),
            safe=total(self.judgements.safe & judged),
            harm=total(np.where(judged, self.judgements.harm, 0.0)),
            complied=None if refused is None else total(refusals.judged & ~refused),
            refused=None if refused is None else total(refusals.judged & refused),
        )


def judge_answers(
    prompt_set: PromptSet,
    responses: Sequence[Sequence[str]],
    judge: Judge,
    refusal_judge: Judge | None = None,
) -> Answers:
    """Have the answers to each prompt judged, and by a second judge whether they refuse if the first does not tell."""
    pairs = zip(prompt_set.rows, responses, strict=True)
    flat = [(row.prompt, text) for row, texts in pairs for text in texts]
    prompts, texts = [prompt for prompt, _ in flat], [text for _, text in flat]
    judgements = judge(prompts, texts)
    if judgements.refused is not None:
        refusal_judge = None
    return Answers(
        prompt_set,
        tuple(map(tuple, responses)),
        judgements,
        judge.name,
        judge.limits,
        refusal_judge(prompts, texts) if refusal_judge else None,
        refusal_judge.name if refusal_judge else None,
        refusal_judge.limits if refusal_judge else None,
        judge_fingerprint=judge_id(judge)[1],
        refusal_judge_fingerprint=judge_id(refusal_judge)[1],
    )


def same_judges(one: Sequence[JudgeId], other: Sequence[JudgeId]) -> bool:
    """Whether these are the same judges, as far as is known."""
    return all(map(same_judge, one, other))


def merge_answers(parts: Sequence[Answers]) -> Answers:
    """The answers of several parts to different prompts, as one. Raises AnswersError where the judges differ."""
    first = parts[0]
    other = next((part for part in parts if not same_judges(part.judges, first.judges)), None)
    if other is not None:
        raise AnswersError(
            f"parts judged by different judges ({first.judges}; {other.judges}): judge all by the same"
        )
    prompt_set = PromptSet(
        first.prompt_set.name,
        tuple(row for part in parts for row in part.prompt_set.rows),
        in_order({name for part in parts for name in part.prompt_set.category_names}),
        sum(part.prompt_set.num_merged for part in parts),
    )
    refusals = [part.refusals for part in parts if part.refusals is not None]
    scores = [part.scores for part in parts if part.scores is not None]
    scorers = {(part.scored_by, part.scorer_fingerprint) for part in parts}
    scored = len(scores) == len(parts) and len(scorers) == 1
    return dataclasses.replace(
        first,
        answerer=first.answerer if all(part.answerer == first.answerer for part in parts) else None,
        scores=np.concatenate(scores) if scored else None,
        scored_by=first.scored_by if scored else None,
        scorer_fingerprint=first.scorer_fingerprint if scored else None,
        prompt_set=prompt_set,
        responses=tuple(texts for part in parts for texts in part.responses),
        judgements=_joined([part.judgements for part in parts]),
        refusals=_joined(refusals) if refusals else None,
    )


def _joined(parts: Sequence[Judgements]) -> Judgements:
    refused = [part.refused for part in parts if part.refused is not None]
    categories = [part.categories for part in parts if part.categories is not None]
    for given, what in ((refused, "refusals"), (categories, "categories")):
        if given and len(given) < len(parts):
            raise AnswersError(f"{len(given)} of {len(parts)} parts tell {what}: judge all by the same judge")
    return Judgements(
        harm=np.concatenate([part.harm for part in parts]),
        safe=np.concatenate([part.safe for part in parts]),
        judged=np.concatenate([part.judged for part in parts]),
        refused=np.concatenate(refused) if refused else None,
        categories=tuple(name for names in categories for name in names) if categories else None,
    )
