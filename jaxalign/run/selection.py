"""The best state of a run is kept in RUN/best while it trains, and training stops when there is nothing to gain."""

import dataclasses
import logging
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxalign.config import Config, ConfigError
from jaxalign.evaluation.answers import AnswersError
from jaxalign.evaluation.selection import Assessment, assess, check_prompts, check_targets
from jaxalign.evaluation.settings import SelectionConfig
from jaxalign.run.interview import Interview, make_interview, warn_of_missing
from jaxalign.run.load import BEST
from jaxalign.run.setup import Run
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.state import TrainState
from jaxalign.training.step_log import Figures

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Record:
    """What the choice rests on so far; it is saved with every checkpoint, so that a resumed run chooses alike.

    `rank` is that of the best state, `since` how many looks have brought no better one.
    """

    best_step: int | None = None
    rank: tuple[bool, float] = (False, -1.0)
    since: int = 0
    stopped: bool = False

    def look(self, step: int, found: Assessment, config: SelectionConfig) -> bool:
        """Take an assessment in; True if its state is the best so far."""
        better = found.eligible and found.rank > self.rank
        if better:
            self.best_step, self.rank, self.since = step, found.rank, 0
        elif self.best_step is not None:
            self.since += 1
        certified = config.by == "certificates" and found.eligible and bool(found.certified)
        self.stopped = certified or (config.patience is not None and self.since >= config.patience)
        return better


@dataclasses.dataclass
class Selector:
    """Looks at a state, keeps it if it is the best so far, and says when to stop. A context: leaving it ends saves."""

    interview: Interview
    config: SelectionConfig
    targets: dict[str, float] | None
    num_looks: int
    checkpoints: Checkpointer
    best: Checkpointer
    record: Record = dataclasses.field(default_factory=Record)
    improved: bool = False

    def __call__(self, state: TrainState) -> Figures:
        """The figures of a look at this state."""
        begun, step = time.monotonic(), int(state.step)
        answers = self.interview(state)
        found = assess(
            answers,
            confidence=self.config.confidence,
            max_over_refusal=self.config.max_over_refusal,
            targets=self.targets,
            num_looks=self.num_looks,
        )
        self.improved = self.record.look(step, found, self.config)
        if self.improved:
            # The best state before stays until a checkpoint names this one: a killed run goes on from its record.
            self.checkpoints.wait()
            self.best.save(dataclasses.replace(state, opt_state={}), {"step": step})
        self._say(step, found)
        figures: Figures = {
            "selection/worst_safe_rate_at_least": found.lower_bound,
            "selection/eligible": float(found.eligible),
            "selection/unjudged": float(answers.judgements.num_unjudged),
            "selection/seconds": time.monotonic() - begun,
        }
        if found.over_refusal is not None:
            figures["selection/over_refusal"] = found.over_refusal
        if found.certified is not None:
            figures["selection/certified"] = float(found.certified)
        if self.record.best_step is not None:
            figures["selection/best_step"] = float(self.record.best_step)
        return figures

    def _say(self, step: int, found: Assessment) -> None:
        log.info(
            "step %d: %s is safe in at least %.1f %%%s; best so far is step %s",
            step,
            found.worst_category,
            100 * found.lower_bound,
            _why_not(found),
            self.record.best_step,
        )
        if self.record.stopped and found.certified:
            log.info("stopping: all certificates are met")
        elif self.record.stopped:
            log.info("stopping: %d looks without a better state", self.record.since)

    def __enter__(self) -> "Selector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.best.__exit__(kind, error, trace)

    @property
    def stopped(self) -> bool:
        """True once there is nothing more to gain."""
        return self.record.stopped

    def cursor(self) -> dict[str, Any]:
        """The record as a checkpoint keeps it."""
        return dataclasses.asdict(self.record)

    def restore(self, cursor: dict[str, Any]) -> None:
        """Go on from the record of a checkpoint. Raises ConfigError where the state that it calls best is gone."""
        self.record = Record(**cursor | {"rank": tuple(cursor["rank"])})
        step, kept = self.record.best_step, self.best.steps()
        if step is not None and step not in kept:
            raise ConfigError(
                f"the run chose step {step}, but its folder `{BEST}` holds {kept or 'nothing'}; put the folder "
                "back, or use another --workdir"
            )
        for later in kept:  # chosen after the checkpoint that the run goes on from
            if later != step:
                self.best.delete(later)


def _why_not(found: Assessment) -> str:
    if found.eligible:
        return ""
    if found.over_refusal is None:
        return ", but nothing is known of refusals"
    return f", but {100 * found.over_refusal:.0f} % of benign prompts are refused"


def make_selector(
    run: Run, workdir: Path, checkpoints: Checkpointer, probe: Interview | None
) -> Selector | None:
    """The selector of a run, None for a run without; it shares the judge of a probe that has the same.

    Raises ConfigError for prompts or targets that do not serve.
    """
    config = run.config.selection
    if config is None:
        return None
    judge = None if probe is None or probe.config.judge != config.judge else probe.judge
    interview = make_interview(
        run, config, "selection", benign=True, refusals=True, label="selection", judge=judge
    )
    warn_of_missing(interview, "which the choice knows nothing of")
    num_looks = -(-run.num_steps // config.every_steps)
    rows = interview.prompts.rows
    numbers = dict.fromkeys(interview.prompts.category_names, 0)
    numbers |= Counter(name for row in rows for name in row.categories)
    targets = _targets(run.config, list(numbers))
    guarded = config.max_over_refusal is not None
    try:
        check_prompts(
            numbers, sum(row.benign for row in rows), min_prompts=config.min_prompts, guarded=guarded
        )
        if targets is not None:
            check_targets(targets, numbers, confidence=config.confidence, num_looks=num_looks)
    except AnswersError as error:
        raise ConfigError(f"selection: {error}") from error
    return Selector(interview, config, targets, num_looks, checkpoints, Checkpointer(workdir / BEST, keep=2))


def _targets(config: Config, names: list[str]) -> dict[str, float] | None:
    """The targets of the certificates by category: as given, else those of the margin rule."""
    selection = config.selection
    assert selection is not None
    if selection.by == "worst_category":
        return None
    if selection.targets is None:
        return config.adaptive.margin.targets_of(names)
    return (
        selection.targets if isinstance(selection.targets, dict) else dict.fromkeys(names, selection.targets)
    )
