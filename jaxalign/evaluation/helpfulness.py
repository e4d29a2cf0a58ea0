"""Helpfulness as others measured it: the mean of given scores, resampled by prompt. No reward model runs here."""

import dataclasses
from collections.abc import Sequence, Set

import numpy as np

from jaxalign.evaluation.answers import Answers, AnswersError
from jaxalign.evaluation.bootstrap import Estimate, Resampling
from jaxalign.evaluation.result import Helpfulness


@dataclasses.dataclass(frozen=True)
class HelpfulnessScores:
    """Scores [n] of a reward model, or 1 for a held-out pair that is ranked rightly and 0 for one that is not.

    `prompts` names the prompt of each score: scores of one prompt are resampled together. Raises AnswersError
    unless every score is finite and has a prompt.
    """

    name: str
    scores: np.ndarray
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        """Check the scores and their number."""
        if np.shape(self.scores) != (len(self.prompts),) or len(self.prompts) == 0:
            raise AnswersError(
                f"{self.name}: scores of shape {np.shape(self.scores)} for {len(self.prompts)} prompts: name the "
                "prompt of every score, and give at least one"
            )
        bad = np.flatnonzero(~np.isfinite(self.scores))
        if bad.size:
            raise AnswersError(
                f"{self.name}: score {bad[0]} is {self.scores[bad[0]]}, expected a finite number; leave out what has "
                "no score"
            )


def scores_of(answers: Answers) -> HelpfulnessScores | None:
    """The scores that the answers carry, None without any."""
    if answers.scores is None or answers.scored_by is None or np.isnan(answers.scores).all():
        return None
    pairs = zip(answers.prompt_set.rows, answers.responses, strict=True)
    ids = [row.id for row, texts in pairs for _ in texts]
    scored = np.flatnonzero(~np.isnan(answers.scores))
    return HelpfulnessScores(answers.scored_by, answers.scores[scored], [ids[i] for i in scored])


def paired_scores(before: Answers, after: Answers) -> tuple[HelpfulnessScores, HelpfulnessScores] | None:
    """Both models' scores of the prompts that both have some of, None unless one reward model gave them."""
    one, two = scores_of(before), scores_of(after)
    if one is None or two is None or not same_scorer(before, after):
        return None
    both = set(one.prompts) & set(two.prompts)
    return (_of_prompts(one, both), _of_prompts(two, both)) if both else None


def same_scorer(before: Answers, after: Answers) -> bool:
    """Whether one reward model scored both."""
    names = (before.scored_by, before.scorer_fingerprint), (after.scored_by, after.scorer_fingerprint)
    return names[0] == names[1]


def _of_prompts(given: HelpfulnessScores, prompts: Set[str]) -> HelpfulnessScores:
    kept = [i for i, prompt in enumerate(given.prompts) if prompt in prompts]
    return HelpfulnessScores(given.name, given.scores[kept], [given.prompts[i] for i in kept])


def helpfulness(given: HelpfulnessScores, resampling: Resampling) -> Helpfulness:
    """The mean score with its interval, which is missing where all scores are of one prompt."""
    num_prompts = len(set(given.prompts))
    mean = float(np.mean(given.scores, dtype=np.float64))
    interval = Estimate(mean, None, None)
    if num_prompts > 1:
        interval = resampling.estimate(mean, helpfulness_draws(given, resampling))
    return Helpfulness(given.name, interval, num_prompts, len(given.scores))


def helpfulness_draws(given: HelpfulnessScores, resampling: Resampling) -> np.ndarray:
    """Draws [R] of the mean; scores of the same prompts get the same weights."""
    names, rows = np.unique(np.array(given.prompts), return_inverse=True)
    sums = np.zeros((len(names), 2))
    np.add.at(sums, rows, np.column_stack([given.scores, np.ones(len(rows))]))
    drawn = resampling.sums(sums)
    return drawn[:, 0] / drawn[:, 1]
