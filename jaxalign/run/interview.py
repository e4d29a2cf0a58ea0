"""A policy under training answers fixed prompts, and its answers are judged. What follows from that is not here."""

import dataclasses
import logging

import jax

from jaxalign.config import Config, ConfigError
from jaxalign.data.encoder import Encoder
from jaxalign.data.prompts import PromptSet
from jaxalign.evaluation.answers import Answers, judge_answers
from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.interface import Judge
from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.evaluation.judges.settings import EndpointConfig, FunctionConfig
from jaxalign.evaluation.settings import InterviewConfig
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.sampling import Sampling
from jaxalign.parallel import is_main_process
from jaxalign.run.data import load_tokenizer
from jaxalign.run.generate import TextFormat, stop_ids
from jaxalign.run.generation import Decoding, generate_ids
from jaxalign.run.judge_once import OneProcess
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
    format: TextFormat
    judge: Judge
    refusal_judge: Judge | None
    label: str

    def __call__(self, state: TrainState) -> Answers:
        """The answers of the policy at this state."""
        policy, options = self.run.program.policy, self.config.answers
        adapter = policy.decoder.lora is not None
        base, lora = (self.run.frozen["base"], state.params) if adapter else (state.params, None)
        seed = jax.random.key(self.run.config.train.seed)
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
        found = generate_ids(
            policy.decoder,
            base,
            lora,
            self.run.program.mesh,
            self.ids,
            Decoding(self.format.stop_ids, options.max_new_tokens, sampling, options.num_samples),
            key=jax.random.fold_in(jax.random.fold_in(seed, options.seed), int(state.step)),
            batch_size=options.batch_size,
            label=self.label,
            show=is_main_process(),
        )
        texts: list[list[str]] = [[""] * options.num_samples for _ in self.ids]
        for answer in found:
            texts[answer.prompt][answer.sample] = self.format.text(answer.ids)
        return judge_answers(self.prompts, texts, self.judge, self.refusal_judge)


def check_interviews(config: Config) -> None:
    """Raise what is wrong with prompts and judges where that shows before model and data are read."""
    for interview in (config.adaptive.probe, config.selection):
        if interview is not None:
            load_prompts(interview.prompts)
            if isinstance(interview.judge, EndpointConfig | FunctionConfig):
                make_judge(interview.judge)


def make_interview(
    run: Run, config: InterviewConfig, section: str, *, benign: bool, refusals: bool, label: str
) -> Interview:
    """The interview that a section of the settings asks for; its prompts become part of the run's fingerprints.

    Prompts that are trained on are left out, and without `benign` those without a category.
    Raises ConfigError for prompts that do not serve: categories unknown to the data, or none left beside training.
    """
    checkpoint, tokenizer = open_checkpoint(run.config.model.path), load_tokenizer(run.config)
    format = TextFormat(tokenizer, Encoder(tokenizer, run.config.data), stop_ids(checkpoint, tokenizer))
    prompts = load_prompts(config.prompts)
    asked = [row for row in prompts.rows if row.categories or (benign and row.benign)]
    ids = [format.encoder.prompt_ids(row.prompt, f"prompt {row.id}") for row in asked]
    trained = {tuple(x.tolist()) for x in run.data.train.prompt_ids}
    unseen = [i for i, prompt in enumerate(ids) if tuple(prompt) not in trained]
    if len(unseen) < len(ids):
        log.info("%s: left out %d prompts that are trained on", label, len(ids) - len(unseen))
    _check(prompts, run.data.train.category_names, section, any(asked[i].categories for i in unseen))
    run.fingerprints[f"{label} prompts"] = prompts.fingerprint()
    judge = make_judge(config.judge, run.program.mesh)
    if jax.process_count() > 1 and isinstance(config.judge, EndpointConfig | FunctionConfig):
        judge = OneProcess(judge)  # a model judges in all processes, each with its part of it
    tells = refusals and not isinstance(judge, RefusalJudge)
    return Interview(
        run=run,
        config=config,
        prompts=dataclasses.replace(prompts, rows=tuple(asked[i] for i in unseen)),
        ids=[ids[i] for i in unseen],
        format=format,
        judge=judge,
        refusal_judge=RefusalJudge() if tells else None,
        label=label,
    )


def _check(prompts: PromptSet, names: tuple[str, ...], section: str, any_left: bool) -> None:
    unknown = sorted(set(prompts.category_names) - set(names))
    if unknown:
        raise ConfigError(
            f"{section}.prompts: {prompts.name} has categories {unknown}, the data have {list(names)}; rename them"
        )
    if not any_left:
        raise ConfigError(
            f"{section}.prompts: {prompts.name} has no prompt with a category that is not trained on; give others"
        )
