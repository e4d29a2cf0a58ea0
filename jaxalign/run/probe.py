"""Probes: while it trains, the policy answers fixed prompts, a judge labels the answers, and the margins follow.

What a violation rate does to a margin is the margin rule's business.
"""

import dataclasses
import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxalign.adaptive import CategoryStats, MarginState, margin_rule, restart_rates
from jaxalign.config import Config, ConfigError
from jaxalign.evaluation.judges.interface import Judgements
from jaxalign.parallel import agree_on_number, replicated
from jaxalign.run.interview import Interview, make_interview, warn_of_missing
from jaxalign.run.setup import Run
from jaxalign.training.metrics import adaptive_figures
from jaxalign.training.state import TrainState
from jaxalign.training.step_log import Figures

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Probe:
    """A probe of a run; `categories` [n, K] has those of its prompts among the categories of the training data."""

    interview: Interview
    categories: np.ndarray
    max_seconds: float | None
    update: Callable[[CategoryStats, MarginState], MarginState]
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: float = 0.0

    def __call__(self, state: TrainState) -> tuple[TrainState, Figures]:
        """The state with the margins moved by what the policy says now, and figures of the probe."""
        limit = self.max_seconds
        if limit is not None and self.seconds >= limit:
            return state, {}
        begun = time.monotonic()
        judgements = self.interview(state).judgements
        num_samples = self.interview.config.answers.num_samples
        of_answer = np.repeat(self.categories, num_samples, axis=0)
        stats = CategoryStats(
            violations=((judgements.judged & ~judgements.safe)[:, None] * of_answer).sum(axis=0),
            pairs=(judgements.judged[:, None] * of_answer).sum(axis=0),
        )
        margin = self.update(stats, state.adaptive["margin"])
        state = dataclasses.replace(
            state, adaptive=state.adaptive | {"margin": jax.block_until_ready(margin)}
        )
        # All processes must stop at the same probe.
        taken = agree_on_number(time.monotonic() - begun)
        self.seconds += taken
        if limit is not None and self.seconds >= limit:
            log.warning(
                "probes took %.0f s, adaptive.probe.max_seconds is %g: no more are made", self.seconds, limit
            )
        figures = self._figures(stats, num_samples * self.categories.sum(axis=0), judgements)
        return state, figures | self._margins(state) | {"probe/seconds_taken": taken}

    def _margins(self, state: TrainState) -> Figures:
        """Figures of the adaptive state after the probe, in place of those that the step had before it."""
        run = self.interview.run
        figures = jax.device_get(run.program.objective.figures(jax.device_get(state.adaptive)))
        return dict(adaptive_figures(figures, run.data.train.category_names))

    def _figures(self, stats: CategoryStats, answers: np.ndarray, judgements: Judgements) -> Figures:
        names = self.interview.run.data.train.category_names
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


def check_probe_steps(config: Config, num_steps: int) -> None:
    """Raise ConfigError for a run that ends before a probe could move its margins."""
    probe = config.adaptive.probe
    if probe is not None and probe.every_steps >= num_steps:
        raise ConfigError(
            f"adaptive.probe.every_steps: {probe.every_steps} is not below the {num_steps} steps of this run, so no "
            f"step would follow a probe; give {max(1, num_steps // 10)}, for example"
        )


def make_probe(run: Run) -> Probe | None:
    """The probe of a run, None for a run without.

    Raises ConfigError for prompts that do not serve, and where no probe would move a margin.
    """
    config = run.config.adaptive.probe
    if config is None:
        return None
    check_probe_steps(run.config, run.num_steps)
    interview = make_interview(run, config, "adaptive.probe", benign=False, refusals=False, label="probe")
    names = run.data.train.category_names
    categories = np.array(
        [[name in row.categories for name in names] for row in interview.prompts.rows], np.float32
    )
    missing = warn_of_missing(interview, "so no probe moves their margins")
    if missing and run.config.adaptive.signal == "probe":
        raise ConfigError(
            f"adaptive.probe.prompts: no prompt for {missing}, whose margins would never move; add some, or set "
            "adaptive.signal: both"
        )
    if run.config.adaptive.signal == "probe":
        _check_warmup(run, float(categories.sum()) * config.answers.num_samples)
    rule = margin_rule(run.program.objective.rule_configs["margin"])
    # The rates of pairs have drifted since the last probe.
    corrects = run.config.adaptive.signal == "both"

    def update(stats: CategoryStats, state: MarginState) -> MarginState:
        return rule.update(stats, restart_rates(stats, state) if corrects else state)

    jitted = jax.jit(update, out_shardings=replicated(run.program.mesh))
    return Probe(interview, categories, config.max_seconds, jitted)


def _check_warmup(run: Run, seen_per_probe: float) -> None:
    """Raise ConfigError where margins would wait to the end, as they move once earlier probes have seen enough."""
    warmup, probe = run.config.adaptive.margin.warmup_pairs, run.config.adaptive.probe
    assert probe is not None
    num_probes = (run.num_steps - 1) // probe.every_steps  # one at the last step moves nothing that is used
    seen = (num_probes - 1) * seen_per_probe
    if seen < warmup:
        raise ConfigError(
            f"adaptive.margin.warmup_pairs: {warmup:g} answers, but the {num_probes} probes of this run see "
            f"{seen_per_probe:g} each, {seen:g} before the last of them, so no margin would move; lower it, or probe "
            "more often"
        )
