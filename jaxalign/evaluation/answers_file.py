"""Judged answers as a JSON file, so that two models can be compared later. It holds what the models said, in full."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from jaxalign.data.prompts import PromptRow, PromptSet
from jaxalign.data.schema import Message
from jaxalign.evaluation.answerer import Answerer
from jaxalign.evaluation.answers import Answers, AnswersError
from jaxalign.evaluation.judges.interface import Judgements
from jaxalign.files import write_whole


@dataclasses.dataclass(frozen=True)
class JudgedText:
    """One answer. `harm` is None where unjudged, `refused` where no judge told, `score` where none scored it."""

    text: str
    harm: float | None
    safe: bool
    refused: bool | None
    category: str | None
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class JudgedPrompt:
    """One prompt with its answers."""

    id: str
    prompt: tuple[Message, ...]
    categories: tuple[str, ...]
    benign: bool
    answers: tuple[JudgedText, ...]


@dataclasses.dataclass(frozen=True)
class AnswersFile:
    """The whole file. What has a default is missing in files of earlier versions."""

    prompt_set: str
    category_names: tuple[str, ...]
    merged_rows: int
    judge: str
    limits: str
    refusal_judge: str | None
    refusal_limits: str | None
    tells_refusals: bool
    tells_categories: bool
    prompts: tuple[JudgedPrompt, ...]
    answerer: Answerer | None = None
    scored_by: str | None = None
    scorer_fingerprint: str | None = None
    judge_fingerprint: str | None = None
    refusal_judge_fingerprint: str | None = None


_FILE = TypeAdapter(AnswersFile)


def write_answers(path: Path, answers: Answers) -> None:
    """Write answers and judgements; `read_answers` gives them back, and with them every figure."""
    judgements, refusals = answers.judgements, answers.refusals or answers.judgements
    texts = iter(range(answers.num_answers))

    def judged(text: str) -> JudgedText:
        i = next(texts)
        told = refusals.refused is not None and bool(refusals.judged[i])
        return JudgedText(
            text=text,
            harm=float(judgements.harm[i]) if judgements.judged[i] else None,
            safe=bool(judgements.safe[i]),
            refused=bool(refusals.refused[i]) if told and refusals.refused is not None else None,
            category=judgements.categories[i] if judgements.categories else None,
            score=None if answers.scores is None or np.isnan(answers.scores[i]) else float(answers.scores[i]),
        )

    prompts = [
        JudgedPrompt(row.id, row.prompt, row.categories, row.benign, tuple(map(judged, responses)))
        for row, responses in zip(answers.prompt_set.rows, answers.responses, strict=True)
    ]
    content = AnswersFile(
        prompt_set=answers.prompt_set.name,
        category_names=answers.prompt_set.category_names,
        merged_rows=answers.prompt_set.num_merged,
        judge=answers.judge,
        limits=answers.limits,
        refusal_judge=answers.refusal_judge,
        refusal_limits=answers.refusal_limits,
        tells_refusals=refusals.refused is not None,
        tells_categories=judgements.categories is not None,
        prompts=tuple(prompts),
        answerer=answers.answerer,
        scored_by=answers.scored_by,
        scorer_fingerprint=answers.scorer_fingerprint,
        judge_fingerprint=answers.judge_fingerprint,
        refusal_judge_fingerprint=answers.refusal_judge_fingerprint,
    )
    write_whole(path, _FILE.dump_json(content, indent=1))


def read_answers(path: Path) -> Answers:
    """The answers in a file that `write_answers` wrote. Raises AnswersError for anything else."""
    try:
        content = _FILE.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        raise AnswersError(
            f"{path} holds no judged answers ({_problem(error)}); write such a file with `jaxalign evaluate`"
        ) from error
    rows = tuple(PromptRow(p.id, p.prompt, p.categories, p.benign) for p in content.prompts)
    texts = [text for prompt in content.prompts for text in prompt.answers]
    harm = _or_nan(text.harm for text in texts)
    told = np.array([text.refused is not None for text in texts])
    refused = np.array([bool(text.refused) for text in texts])
    second = content.refusal_judge is not None
    judgements = Judgements(
        harm=harm,
        safe=np.array([text.safe for text in texts]),
        judged=~np.isnan(harm),
        refused=refused if content.tells_refusals and not second else None,
        categories=tuple(text.category for text in texts) if content.tells_categories else None,
    )
    refusals = Judgements(np.where(told, ~refused, np.nan), told & refused, told, refused) if second else None
    return Answers(
        prompt_set=PromptSet(content.prompt_set, rows, content.category_names, content.merged_rows),
        responses=tuple(tuple(text.text for text in prompt.answers) for prompt in content.prompts),
        judgements=judgements,
        judge=content.judge,
        limits=content.limits,
        refusals=refusals,
        refusal_judge=content.refusal_judge,
        refusal_limits=content.refusal_limits,
        answerer=content.answerer,
        scores=_or_nan(text.score for text in texts) if content.scored_by is not None else None,
        scored_by=content.scored_by,
        scorer_fingerprint=content.scorer_fingerprint,
        judge_fingerprint=content.judge_fingerprint,
        refusal_judge_fingerprint=content.refusal_judge_fingerprint,
    )


def _or_nan(values: Iterable[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])


def _problem(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
