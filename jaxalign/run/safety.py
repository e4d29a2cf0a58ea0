"""`jaxalign evaluate --safety`: the answers of a model, judged, with every figure. No figure is computed here."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxalign.config import ConfigError
from jaxalign.data.prompt_subsets import balanced_subset
from jaxalign.data.prompts import PromptSet, read_prompts
from jaxalign.evaluation.answerer import in_words
from jaxalign.evaluation.answers import Answers, judge_answers
from jaxalign.evaluation.answers_file import read_answers, write_answers
from jaxalign.evaluation.calibration import Calibration, calibrate
from jaxalign.evaluation.certificate import check_targets
from jaxalign.evaluation.comparison import Comparison, check_paired, compare
from jaxalign.evaluation.helpfulness import scores_of
from jaxalign.evaluation.judge_accuracy import JudgeAccuracy, judge_accuracy
from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.interface import Judge, judge_id
from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.evaluation.judges.score_model import load_reward_model, open_reward_model, scorer_name
from jaxalign.evaluation.judges.settings import RewardModelConfig
from jaxalign.evaluation.result import SafetyResult
from jaxalign.evaluation.safety import evaluate_answers
from jaxalign.evaluation.settings import PromptsConfig, SafetyConfig
from jaxalign.files import locked, write_json, write_whole
from jaxalign.run.load import WhichStep, is_run, load_model, run_config
from jaxalign.run.margin_figures import margins_of, targets_of
from jaxalign.run.responses import answerer_of, kept_responses, sampling_of

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A result, what changed since the baseline if there is one, and the folder that both were written to."""

    result: SafetyResult
    comparison: Comparison | None
    folder: Path


def evaluate_safety(
    path: Path,
    config: SafetyConfig,
    *,
    name: str,
    step: WhichStep = None,
    output: Path | None = None,
    baseline: Path | None = None,
) -> Evaluation:
    """Answer the prompts with the model at `path`, have the answers judged, and write what was found to `output`.

    Written are `answers-NAME.json`, `safety-NAME.json` and .md, and with a baseline (another `answers-*.json`)
    `comparison-NAME.json` and .md. Answers are kept before they are judged, so that a judge that fails costs nothing
    but its own work: the same command goes on from there. Raises ConfigError and the errors of each part.
    """
    if output is None and not is_run(path):
        raise ConfigError(f"{path} is no run, so nothing says where its figures belong; give --output DIR")
    folder = output or path / "evaluation"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file, expected a folder; give another one")
    before = None if baseline is None else read_answers(baseline)
    prompts = load_prompts(config.prompts)
    accuracy = None if config.calibration is None else read_calibration(config.calibration)
    sampling_of(config.answers)
    run = run_config(path)
    judge = make_judge(config.judge)  # whatever is wrong with it shows before an hour of answers
    if accuracy is not None:
        accuracy.check(judge_id(judge))
    targets = config.targets if config.targets is not None else targets_of(run, prompts)
    if targets is not None:
        check_targets(prompts.category_names, targets)
    if before is not None:
        _check_baseline(before, prompts, config, judge)
    if config.reward_model is not None:
        open_reward_model(config.reward_model)
    folder.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(
        f"another call writes safety-{name} to {folder}; wait for it, or give another --output"
    )
    with locked(folder / f".{name}.lock", busy=busy):
        answers = _judged(path, config, step, prompts, judge, folder / f"responses-{name}.json")
        assert answers.answerer is not None
        result = evaluate_answers(
            answers,
            targets=targets,
            margins=margins_of(path, answers.answerer.step, prompts, targets) or None,
            judge_error=accuracy,
            helpfulness_scores=scores_of(answers),
            num_resamples=config.num_resamples,
        )
        comparison = None
        if before is not None:
            comparison = compare(before, answers, judge_error=accuracy, num_resamples=config.num_resamples)
            if comparison.helpfulness is None and before.scored_by == answers.scored_by is not None:
                log.warning(
                    "helpfulness is not compared: the baseline's scores are of a reward model with other weights"
                )
        write_answers(folder / f"answers-{name}.json", answers)
        _write(folder, f"safety-{name}", result)
        _write(folder, f"comparison-{name}", comparison)
        (folder / f"responses-{name}.json").unlink()
    return Evaluation(result, comparison, folder)


def _judged(
    path: Path, config: SafetyConfig, step: WhichStep, prompts: PromptSet, judge: Judge, kept: Path
) -> Answers:
    """The answers of the model at `path`, which are in `kept` until they are judged."""
    model = load_model(path, step=step)
    answerer = answerer_of(path, model, config.answers)
    texts = kept_responses(answerer, model, prompts, config.answers, kept)
    del model  # a judge may be a model too
    judged = judge_answers(prompts, texts, judge, _refusal_judge(config, judge))
    answers = dataclasses.replace(judged, answerer=answerer)
    return answers if config.reward_model is None else _scored(config.reward_model, answers)


def calibrate_judge(config: SafetyConfig, labelled: Path) -> Calibration:
    """How often the judge agrees with the labels of a file."""
    return calibrate(make_judge(config.judge), labelled)


def load_prompts(config: PromptsConfig, keep: Callable[[PromptSet], PromptSet] = lambda x: x) -> PromptSet:
    """The prompts of a file that `keep` leaves, or the balanced part of these. Raises DataError, ConfigError."""
    prompts = keep(read_prompts(config.path, layout=config.layout, category_column=config.category_column))
    if config.max_prompts is None:
        return prompts
    try:
        return balanced_subset(prompts, config.max_prompts)
    except ValueError as error:
        raise ConfigError(f"prompts.{error}") from error


def read_calibration(path: Path) -> JudgeAccuracy:
    """The judge's error in a file of `jaxalign evaluate --calibrate`. Raises ConfigError for anything else."""
    try:
        calibration = Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # of JSON, of UTF-8, or of what it holds
        raise ConfigError(f"calibration {path}: {error}") from error
    return judge_accuracy(calibration)


def _refusal_judge(config: SafetyConfig, judge: Judge) -> Judge | None:
    """The refusal rule, unless it is the judge or not wanted."""
    return RefusalJudge() if config.refusals and not isinstance(judge, RefusalJudge) else None


def _check_baseline(before: Answers, prompts: PromptSet, config: SafetyConfig, judge: Judge) -> None:
    """Raise AnswersError where the baseline cannot be compared with; warn where its helpfulness cannot."""
    itself = (
        before.refusal_judge is None and before.judgements.refused is not None
    )  # the judge tells refusals
    second = None if itself else _refusal_judge(config, judge)
    check_paired(before, prompts, (judge_id(judge), judge_id(second)))
    asked = config.answers.model_dump(exclude={"batch_size"})
    given = asked if before.answerer is None else before.answerer.answer_settings
    if given != asked:
        raise ConfigError(
            f"--baseline: its answers were asked for with {in_words(given)}, these with {in_words(asked)}, so a "
            "difference would not be the model's; give both the same settings"
        )
    if config.reward_model is not None and before.scored_by != scorer_name(config.reward_model):
        log.warning(
            "helpfulness is not compared: the baseline has %s; evaluate it with the same reward_model",
            f"scores by {before.scored_by}" if before.scored_by else "no scores",
        )


def _scored(config: RewardModelConfig, answers: Answers) -> Answers:
    """The answers with scores of helpfulness."""
    model = load_reward_model(config)
    pairs = zip(answers.prompt_set.rows, answers.responses, strict=True)
    flat = [(row, text) for row, texts in pairs for text in texts]
    scores = model([row.prompt for row, _ in flat], [text for _, text in flat])
    if np.isnan(scores).any():
        log.warning(
            "helpfulness: %d of %d answers are too long for a score", np.isnan(scores).sum(), len(flat)
        )
    return dataclasses.replace(
        answers,
        scores=scores,
        scored_by=scorer_name(config),
        scorer_fingerprint=model.fingerprint,
    )


def _write(folder: Path, name: str, figures: SafetyResult | Comparison | None) -> None:
    """Both files of the figures; without any, those that an earlier call left are removed."""
    if figures is None:
        for suffix in ("json", "md"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        return
    write_json(folder / f"{name}.json", figures.as_dict())
    write_whole(folder / f"{name}.md", figures.markdown())
