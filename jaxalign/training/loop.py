"""The train loop: batches in order, steps logged, checkpoints, evaluation, stop requests. No numerics live here."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Protocol

import jax
from pydantic import Field, model_validator

from jaxalign.batch import PairBatch
from jaxalign.data.loader import PairLoader
from jaxalign.data.sampling import SamplingState
from jaxalign.progress import Stage
from jaxalign.settings import Settings
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.log import MetricsLog
from jaxalign.training.preemption import Preemption
from jaxalign.training.prefetch import prefetched
from jaxalign.training.state import TrainState
from jaxalign.training.step import StepFn
from jaxalign.training.step_log import Figures, StepLog


class TrainConfig(Settings):
    """Batches and length of a run."""

    batch_size: int = Field(default=64, ge=1, description="pairs of one update, over all devices")
    num_micro_batches: int = Field(default=1, ge=1, description="parts that a batch is worked through in")
    num_steps: int | None = Field(default=None, ge=1)
    num_epochs: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="order of the data, new adapters")
    max_skipped_in_a_row: int = Field(
        default=5, ge=1, description="stop after so many non-finite steps in a row"
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of train.num_steps and train.num_epochs")
        if self.batch_size % self.num_micro_batches:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by num_micro_batches={self.num_micro_batches}"
            )
        return self


class Selection(Protocol):
    """Looks at states, keeps the best one elsewhere, and says when to stop."""

    @property
    def stopped(self) -> bool:
        """True once training has nothing more to gain."""

    @property
    def improved(self) -> bool:
        """True if the last look found the best state so far."""

    def __call__(self, state: TrainState) -> Figures:
        """The figures of a look at a state."""

    def cursor(self) -> dict[str, Any]:
        """What checkpoints keep of it."""


@dataclasses.dataclass(frozen=True)
class LoopParts:
    """What the loop drives. `place` puts a host batch on the mesh; `evaluate` gives held-out figures of a state.

    `probe` lets the model answer, and gives the state with what follows for the adaptive rules, and figures.
    """

    step_fn: StepFn
    frozen: Any
    place: Callable[[PairBatch], PairBatch]
    loader: PairLoader
    category_names: Sequence[str]
    checkpointer: Checkpointer
    log: MetricsLog | None
    evaluate: Callable[[TrainState], Figures] | None
    probe: Callable[[TrainState], tuple[TrainState, Figures]] | None = None
    selection: Selection | None = None


@dataclasses.dataclass(frozen=True)
class LoopSchedule:
    """When things happen, in steps; the last state is always looked at by the selection."""

    num_steps: int
    save_every: int
    evaluate_every: int | None
    max_skipped_in_a_row: int
    probe_every: int | None = None
    select_every: int | None = None


def run_loop(
    state: TrainState, parts: LoopParts, schedule: LoopSchedule, cursor: dict[str, Any]
) -> tuple[TrainState, bool]:
    """Train from the state's step to the last one, or until the selection stops; returns whether it got there.

    Batches are made ahead and figures are fetched a step late, so that the devices always have the next step.
    Raises DivergedError after too many non-finite steps in a row; the newest checkpoint is then the last good one.
    """
    first, selection = int(state.step), parts.selection
    steps_left = range(0) if _stopped(selection) else range(first, schedule.num_steps)
    with (
        Preemption() as preemption,
        Stage("train", schedule.num_steps, completed=first, enabled=parts.log is not None) as stage,
        contextlib.closing(_batches_ahead(parts, steps_left)) as ahead,
    ):
        steps = StepLog(
            parts.category_names, parts.log, stage, parts.checkpointer, schedule.max_skipped_in_a_row
        )
        for done in (step + 1 for step in steps_left):
            started = time.monotonic()
            batch = _batch_of_state(parts, state) if parts.loader.needs_state else next(ahead)
            state, sums = parts.step_fn(state, parts.frozen, batch)
            steps.add(done, started, sums)
            last = done == schedule.num_steps
            pause = Pause(
                state,
                probe=parts.probe if _due(schedule.probe_every, done) else None,
                evaluate=parts.evaluate if _due(schedule.evaluate_every, done) else None,
                select=selection if last or _due(schedule.select_every, done) else None,
            )
            if pause.probe or pause.evaluate or pause.select:
                steps.flush(pause)
                state = pause.state

            finished = last or _stopped(selection)
            stop = preemption.requested(done) or finished
            must_save = stop or (pause.select is not None and pause.select.improved)
            if must_save or done % schedule.save_every == 0:
                steps.flush()  # no checkpoint before it is known that the step was finite, and logged
                if must_save or steps.num_skipped_in_a_row == 0:
                    chosen = {} if selection is None else {"selection": selection.cursor()}
                    parts.checkpointer.save(state, {**cursor, "step": done, **chosen})
            if stop:
                return state, finished
    return state, True


def _stopped(selection: Selection | None) -> bool:
    return selection is not None and selection.stopped


@dataclasses.dataclass
class Pause:
    """What is asked of a state between two steps; a probe gives another one, which is then looked at."""

    state: TrainState
    probe: Callable[[TrainState], tuple[TrainState, Figures]] | None
    evaluate: Callable[[TrainState], Figures] | None
    select: Selection | None

    def __call__(self) -> Figures:
        """The figures of all."""
        figures: Figures = {}
        if self.probe is not None:
            self.state, figures = self.probe(self.state)
        for look in (self.evaluate, self.select):
            figures |= {} if look is None else look(self.state)
        return figures


def _due(every: int | None, done: int) -> bool:
    return every is not None and done % every == 0


def _batches_ahead(parts: LoopParts, steps: Iterable[int]) -> Generator[PairBatch]:
    """Placed batches of the steps, made by a thread; to be used where they do not depend on the state."""
    return prefetched(lambda step: parts.place(parts.loader.batch(step)), steps)


def _batch_of_state(parts: LoopParts, state: TrainState) -> PairBatch:
    """The placed batch of the step that the state is at, where it depends on the state."""
    return parts.place(parts.loader.batch(int(state.step), sampling_state(parts.loader, state)))


def sampling_state(loader: PairLoader, state: TrainState) -> SamplingState | None:
    """What a loader that follows the violation rates must know of the state; None for any other."""
    if not loader.needs_state:
        return None
    margin = jax.device_get(state.adaptive["margin"])
    return SamplingState(violation_rates=margin.violation_rate, num_seen=margin.num_seen)
