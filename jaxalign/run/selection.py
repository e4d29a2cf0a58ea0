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
from jaxalign.evaluation.selection import Assessment, assess, check_prompts
from jaxalign.evaluation.settings import SelectionConfig
from jaxalign.run.interview import Interview, make_interview
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
        else:
            self.since += 1
        certified = config.by == "certificates" and found.eligible and bool(found.certified)
        self.stopped = certified or (config.patience is not None and self.since >= config.patience)
        return better


@dataclasses.dataclass
class Selector:
    """Looks at a state, keeps it if it is the best so far, and says when to stop. A context: leaving it ends saves."""

    interview: Interview
    config: SelectionConfig
    targets: float | dict[str, float] | None
    num_looks: int
    best: Checkpointer
    record: Record = dataclasses.field(default_factory=Record)

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
        if self.record.look(step, found, self.config):
            self.best.save(state, {"step": step})
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
            "" if found.eligible else ", but too many benign prompts are refused",
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
        """Go on from the record of a checkpoint."""
        self.record = Record(**cursor | {"rank": tuple(cursor["rank"])})


def make_selector(run: Run, workdir: Path) -> Selector | None:
    """The selector of a run, None for a run without. Raises ConfigError for prompts or targets that do not serve."""
    config = run.config.selection
    if config is None:
        return None
    interview = make_interview(run, config, "selection", benign=True, refusals=True, label="selection")
    rows = interview.prompts.rows
    numbers = Counter(name for row in rows for name in row.categories)
    guarded = config.max_over_refusal is not None
    try:
        check_prompts(
            numbers, sum(row.benign for row in rows), min_prompts=config.min_prompts, guarded=guarded
        )
    except AnswersError as error:
        raise ConfigError(f"selection: {error}") from error
    num_looks = -(-run.num_steps // config.every_steps)
    targets = _targets(run.config, sorted(numbers))
    return Selector(interview, config, targets, num_looks, Checkpointer(workdir / BEST, keep=1))


def _targets(config: Config, names: list[str]) -> float | dict[str, float] | None:
    """The targets of the certificates: as given, else those of the margin rule."""
    selection = config.selection
    assert selection is not None
    if selection.by == "worst_category":
        return None
    if selection.targets is not None:
        return selection.targets
    return config.adaptive.margin.targets_of(names)
