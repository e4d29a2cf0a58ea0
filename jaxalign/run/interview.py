"""A policy under training answers fixed prompts, and its answers are judged. What follows from that is not here."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.config import Config, ConfigError
from jaxalign.data.encoder import Encoder
from jaxalign.data.prompts import PromptRow, PromptSet
from jaxalign.data.schema import Message, prompt_key
from jaxalign.evaluation.answers import Answers, judge_answers
from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.interface import Judge
from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.evaluation.judges.settings import EndpointConfig, FunctionConfig
from jaxalign.evaluation.settings import AnswersConfig, InterviewConfig
from jaxalign.hf.read import open_checkpoint
from jaxalign.parallel import is_main_process
from jaxalign.run.data import load_tokenizer
from jaxalign.run.generate import TextFormat, stop_ids
from jaxalign.run.generation import Decoding, check_prompt, generate_ids
from jaxalign.run.judge_once import OneProcess
from jaxalign.run.responses import sampling_of
from jaxalign.run.safety import load_prompts
from jaxalign.run.setup import Run
from jaxalign.training.state import TrainState

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Interview:
    """Judged answers of a policy: a function of (seed, step, parameters), whatever the mesh, but for rounding."""

    run: Run
    config: InterviewConfig
    prompts: PromptSet
    ids: list[list[int]]
    decoding: Decoding
    format: TextFormat
    judge: Judge
    refusal_judge: Judge | None
    label: str

    def __call__(self, state: TrainState) -> Answers:
        """The answers of the policy at this state."""
        policy, seed = self.run.program.policy, jax.random.key(self.run.config.train.seed)
        adapter = policy.decoder.lora is not None
        base, lora = (self.run.frozen["base"], state.params) if adapter else (state.params, None)
        found = generate_ids(
            policy.decoder,
            base,
            lora,
            self.run.program.mesh,
            self.ids,
            self.decoding,
            key=jax.random.fold_in(jax.random.fold_in(seed, self.config.answers.seed), int(state.step)),
            batch_size=self.config.answers.batch_size,
            label=self.label,
            show=is_main_process(),
        )
        texts: list[list[str]] = [[""] * self.decoding.num_samples for _ in self.ids]
        for answer in found:
            texts[answer.prompt][answer.sample] = self.format.text(answer.ids)
        return judge_answers(self.prompts, texts, self.judge, self.refusal_judge)


def check_interviews(config: Config) -> None:
    """Raise what is wrong with prompts and judges where that shows before model and data are read."""
    for section, interview in (("adaptive.probe", config.adaptive.probe), ("selection", config.selection)):
        if interview is not None:
            _check_categories(load_prompts(interview.prompts), config.data.category_names, section)
            decoding_of(interview.answers, ())
            if isinstance(interview.judge, EndpointConfig | FunctionConfig):
                make_judge(interview.judge)


def decoding_of(options: AnswersConfig, stop_ids: tuple[int, ...]) -> Decoding:
    """How answers are made. Raises GenerationError for options without effect."""
    return Decoding(stop_ids, options.max_new_tokens, sampling_of(options), options.num_samples)


def make_interview(
    run: Run,
    config: InterviewConfig,
    section: str,
    *,
    benign: bool,
    refusals: bool,
    label: str,
    judge: Judge | None = None,
) -> Interview:
    """The interview that a section of the settings asks for; its prompts become part of the run's fingerprints.

    Prompts that are trained on (but for letter case and spacing) are left out, and those without a category unless they
    are `benign` and wanted; `max_prompts` are taken of what is left. A judge may be given that is there already.
    Raises ConfigError where no prompt is left beside training, and GenerationError for those that the model cannot
    read.
    """
    checkpoint, tokenizer = open_checkpoint(run.config.model.path), load_tokenizer(run.config)
    format = TextFormat(tokenizer, Encoder(tokenizer, run.config.data), stop_ids(checkpoint, tokenizer))
    prompts = load_prompts(
        config.prompts, lambda found: _usable(found, format, run, section, benign=benign, label=label)
    )
    decoding = decoding_of(config.answers, format.stop_ids)
    ids = [_ids(format, row) for row in prompts.rows]
    for row, tokens in zip(prompts.rows, ids, strict=True):
        check_prompt(
            f"{section}: prompt {row.id}", tokens, run.program.policy.decoder, decoding.max_new_tokens
        )
    order = "\n".join(
        [prompts.fingerprint(), *(row.id for row in prompts.rows)]
    )  # a draw depends on its place
    run.fingerprints[f"{label} prompts"] = hashlib.sha256(order.encode()).hexdigest()
    judge = _judge(config, run) if judge is None else judge
    tells = refusals and not isinstance(judge, RefusalJudge)
    return Interview(
        run=run,
        config=config,
        prompts=prompts,
        ids=ids,
        decoding=decoding,
        format=format,
        judge=judge,
        refusal_judge=RefusalJudge() if tells else None,
        label=label,
    )


def _usable(
    found: PromptSet, format: TextFormat, run: Run, section: str, *, benign: bool, label: str
) -> PromptSet:
    """The prompts without those that are trained on, and without those that tell nothing here.

    Prompts are cut as those of training were, so that one too long for training is known again. Raises ConfigError
    where none with a category is left.
    """
    asked = [row for row in found.rows if row.categories or (benign and row.benign)]
    if len(asked) < len(found.rows):
        what = "no category" if not benign else "no category and are not benign"
        log.info("%s: left out %d prompts that have %s", label, len(found.rows) - len(asked), what)
    trained = set(_keys(format.tokenizer, run.data.train.prompt_ids))
    cut = [format.encoder.cut_prompt(_ids(format, row)) for row in asked]
    keys = _keys(format.tokenizer, cut)
    unseen = tuple(row for row, key in zip(asked, keys, strict=True) if key not in trained)
    if len(unseen) < len(asked):
        log.info("%s: left out %d prompts that are trained on", label, len(asked) - len(unseen))
    if not any(row.categories for row in unseen):
        raise ConfigError(
            f"{section}.prompts: {found.name} has no prompt with a category that is not trained on; give others"
        )
    return dataclasses.replace(found, rows=unseen)


def _ids(format: TextFormat, row: PromptRow) -> list[int]:
    return format.encoder.prompt_ids(row.prompt, f"prompt {row.id}")


def _keys(tokenizer: Any, prompts: Iterable[Sequence[int] | np.ndarray]) -> Iterator[str]:
    """What tells prompts of token ids apart: their text but for letter case and spacing, as where data are split."""
    for ids in prompts:
        yield prompt_key((Message("user", tokenizer.decode(list(ids))),))


def _judge(config: InterviewConfig, run: Run) -> Judge:
    judge = make_judge(config.judge, run.program.mesh)
    if jax.process_count() > 1 and isinstance(config.judge, EndpointConfig | FunctionConfig):
        return OneProcess(judge)  # a model judges in all processes, each with its part of it
    return judge


def warn_of_missing(interview: Interview, what: str) -> list[str]:
    """The categories of training pairs that have no prompt; warn that `what` is so for them."""
    asked = {name for row in interview.prompts.rows for name in row.categories}
    train = interview.run.data.train
    trained = set(np.flatnonzero(train.categories.any(axis=0)))
    missing = [name for k, name in enumerate(train.category_names) if k in trained and name not in asked]
    if missing:
        log.warning("%s: no prompt for %s, %s", interview.label, ", ".join(missing), what)
    return missing


def _check_categories(prompts: PromptSet, names: Sequence[str], section: str) -> None:
    unknown = sorted(set(prompts.category_names) - set(names))
    if unknown:
        raise ConfigError(
            f"{section}.prompts: {prompts.name} has categories {unknown}, the data have {list(names)}; rename them"
        )
