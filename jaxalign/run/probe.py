"""Probes: while it trains, the policy answers fixed prompts, a judge labels the answers, and the margins follow.

What a violation rate does to a margin is the margin rule's business.
"""

import dataclasses
import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxalign.adaptive import CategoryStats, MarginState, margin_rule
from jaxalign.config import ConfigError
from jaxalign.data.encoder import Encoder
from jaxalign.data.prompts import PromptSet
from jaxalign.data.schema import Message
from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.interface import Judge, Judgements
from jaxalign.evaluation.judges.settings import EndpointConfig, FunctionConfig
from jaxalign.evaluation.settings import ProbeConfig
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.sampling import Sampling
from jaxalign.parallel import is_main_process, replicated
from jaxalign.run.data import load_tokenizer
from jaxalign.run.generate import TextFormat, stop_ids
from jaxalign.run.generation import Decoding, generate_ids
from jaxalign.run.safety import load_prompts
from jaxalign.run.setup import Run
from jaxalign.training.state import TrainState
from jaxalign.training.step_log import Figures

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Probe:
    """A probe of a run: a function of (seed, step, parameters), whatever the mesh, but for rounding.

    `categories` [n, K] has those of the prompts among the categories of the training data.
    """

    run: Run
    config: ProbeConfig
    prompts: list[tuple[Message, ...]]
    ids: list[list[int]]
    categories: np.ndarray
    format: TextFormat
    judge: Judge
    update: Callable[[CategoryStats, MarginState], MarginState]
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: float = 0.0

    def __call__(self, state: TrainState) -> tuple[TrainState, Figures]:
        """The state with the margins moved by what the policy says now, and figures of the probe."""
        limit = self.config.max_seconds
        if limit is not None and self.seconds >= limit:
            return state, {}
        begun = time.monotonic()
        judgements = self._judged(state)
        answers = self.config.answers.num_samples * self.categories
        of_answer = np.repeat(self.categories, self.config.answers.num_samples, axis=0)
        stats = CategoryStats(
            violations=((judgements.judged & ~judgements.safe)[:, None] * of_answer).sum(axis=0),
            pairs=(judgements.judged[:, None] * of_answer).sum(axis=0),
        )
        margin = self.update(stats, state.adaptive["margin"])
        state = dataclasses.replace(
            state, adaptive=state.adaptive | {"margin": jax.block_until_ready(margin)}
        )
        self.seconds += time.monotonic() - begun
        if limit is not None and self.seconds >= limit:
            log.warning(
                "probes took %.0f s, adaptive.probe.max_seconds is %g: no more are made", self.seconds, limit
            )
        return state, self._figures(stats, answers.sum(axis=0), judgements)

    def _judged(self, state: TrainState) -> Judgements:
        policy, options = self.run.program.policy, self.config.answers
        adapter = policy.decoder.lora is not None
        base, lora = (self.run.frozen["base"], state.params) if adapter else (state.params, None)
        seed = jax.random.key(self.run.config.train.seed)
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
        answers = generate_ids(
            policy.decoder,
            base,
            lora,
            self.run.program.mesh,
            self.ids,
            Decoding(self.format.stop_ids, options.max_new_tokens, sampling, options.num_samples),
            key=jax.random.fold_in(jax.random.fold_in(seed, options.seed), int(state.step)),
            batch_size=options.batch_size,
            label="probe",
            show=is_main_process(),
        )
        ordered = sorted(answers, key=lambda answer: (answer.prompt, answer.sample))
        return self.judge(
            [self.prompts[answer.prompt] for answer in ordered],
            [self.format.text(answer.ids) for answer in ordered],
        )

    def _figures(self, stats: CategoryStats, answers: np.ndarray, judgements: Judgements) -> Figures:
        names = self.run.data.train.category_names
        rates = {
            f"probe/violation/{name}": float(violations / pairs) if pairs else None
            for name, violations, pairs, asked in zip(
                names, stats.violations, stats.pairs, answers, strict=True
            )
            if asked
        }
        return {
            **rates,
            "probe/unjudged": float(judgements.num_unjudged),
            "probe/seconds": self.seconds,
            "probe/share_of_time": self.seconds / (time.monotonic() - self.started),
        }


def make_probe(run: Run) -> Probe | None:
    """The probe of a run, None for a run without; its prompts become part of the run's fingerprints.

    Raises ConfigError for prompts that do not serve: categories unknown to the data, or none left beside training.
    """
    config = run.config.adaptive.probe
    if config is None:
        return None
    if jax.process_count() > 1 and isinstance(config.judge, EndpointConfig | FunctionConfig):
        raise ConfigError(
            f"adaptive.probe.judge {config.judge.kind} would judge in each of {jax.process_count()} processes; use a "
            "model, or the refusal rule"
        )
    checkpoint, tokenizer = open_checkpoint(run.config.model.path), load_tokenizer(run.config)
    format = TextFormat(tokenizer, Encoder(tokenizer, run.config.data), stop_ids(checkpoint, tokenizer))
    prompts = load_prompts(config.prompts)
    harmful = [row for row in prompts.rows if row.categories]
    ids = [format.encoder.prompt_ids(row.prompt, f"prompt {row.id}") for row in harmful]
    trained = {tuple(x.tolist()) for x in run.data.train.prompt_ids}
    unseen = [i for i, prompt in enumerate(ids) if tuple(prompt) not in trained]
    if len(unseen) < len(ids):
        log.info("probe: left out %d prompts that are trained on", len(ids) - len(unseen))
    names = run.data.train.category_names
    categories = np.array([[name in harmful[i].categories for name in names] for i in unseen], np.float32)
    _check(prompts, names, categories, run.config.adaptive.signal)
    run.fingerprints["probe prompts"] = prompts.fingerprint()
    mesh = run.program.mesh
    return Probe(
        run=run,
        config=config,
        prompts=[harmful[i].prompt for i in unseen],
        ids=[ids[i] for i in unseen],
        categories=categories,
        format=format,
        judge=make_judge(config.judge, mesh),
        update=jax.jit(
            margin_rule(run.program.objective.rule_configs["margin"]).update, out_shardings=replicated(mesh)
        ),
    )


def _check(prompts: PromptSet, names: tuple[str, ...], categories: np.ndarray, signal: str) -> None:
    unknown = sorted(set(prompts.category_names) - set(names))
    if unknown:
        raise ConfigError(
            f"adaptive.probe.prompts: {prompts.name} has categories {unknown}, the data have {list(names)}; rename them"
        )
    if not len(categories):
        raise ConfigError(
            f"adaptive.probe.prompts: {prompts.name} has no prompt with a category that is not trained on; give others"
        )
    asked = categories.sum(axis=0)
    missing = [name for name, number in zip(names, asked, strict=True) if not number]
    if missing and signal == "probe":
        raise ConfigError(
            f"adaptive.probe.prompts: no prompt for {missing}, whose margins would never move; add some, or set "
            "adaptive.signal: both"
        )
    if missing:
        log.warning(
            "probe: no prompt for %s, whose margins follow the implicit reward alone", ", ".join(missing)
        )
