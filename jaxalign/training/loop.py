"""The train loop: batches in order, figures out, checkpoints, evaluation, stop requests. No numerics live here."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from pydantic import Field, model_validator

from jaxalign.batch import PairBatch
from jaxalign.data.loader import PairLoader
from jaxalign.data.sampling import SamplingState
from jaxalign.errors import JaxalignError
from jaxalign.progress import Stage
from jaxalign.settings import Settings
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.log import MetricsLog
from jaxalign.training.metrics import StepSums, adaptive_figures, finish, worst_category
from jaxalign.training.objective import Objective
from jaxalign.training.preemption import Preemption
from jaxalign.training.state import TrainState

Figures = dict[str, float | None]


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


class DivergedError(JaxalignError, RuntimeError):
    """Too many non-finite steps in a row."""


@dataclasses.dataclass(frozen=True)
class LoopParts:
    """What the loop drives. `place` puts a host batch on the mesh; `evaluate` gives held-out figures of a state."""

    step_fn: Callable[[TrainState, Any, PairBatch], tuple[TrainState, StepSums]]
    frozen: Any
    place: Callable[[PairBatch], PairBatch]
    loader: PairLoader
    objective: Objective
    category_names: Sequence[str]
    checkpointer: Checkpointer
    log: MetricsLog | None
    evaluate: Callable[[TrainState], Figures] | None


@dataclasses.dataclass(frozen=True)
class LoopSchedule:
    """When things happen, in steps."""

    num_steps: int
    save_every: int
    evaluate_every: int | None
    max_skipped_in_a_row: int


def run_loop(
    state: TrainState, parts: LoopParts, schedule: LoopSchedule, cursor: dict[str, Any]
) -> tuple[TrainState, bool]:
    """Train from the state's step to the last one; returns the state and whether it got there.

    Raises DivergedError after too many non-finite steps in a row; the newest checkpoint is then the last good one.
    """
    first = int(state.step)
    main = parts.log is not None
    with (
        Preemption() as preemption,
        Stage("train", schedule.num_steps, completed=first, enabled=main) as stage,
    ):
        for step in range(first, schedule.num_steps):
            started = time.monotonic()
            batch = parts.place(parts.loader.batch(step, sampling_state(parts.loader, state)))
            state, sums = parts.step_fn(state, parts.frozen, batch)
            figures = _figures(state, sums, parts)
            seconds = time.monotonic() - started
            figures["seconds_per_step"] = seconds
            figures["response_tokens_per_second"] = (figures["response_tokens"] or 0.0) / seconds
            done = step + 1
            if parts.evaluate and schedule.evaluate_every and done % schedule.evaluate_every == 0:
                figures |= parts.evaluate(state)
            if parts.log is not None:
                parts.log.write(done, figures)
            stage.advance(1, _headline(figures, skipped=int(state.num_skipped_in_a_row) > 0))
            _stop_if_diverged(state, sums, figures, parts, schedule)

            stop = preemption.requested(done)
            last = done == schedule.num_steps
            healthy = int(state.num_skipped_in_a_row) == 0
            if (healthy and done % schedule.save_every == 0) or last or stop:
                parts.checkpointer.save(state, {**cursor, "step": done})
            if stop and not last:
                return state, False
    return state, True


def sampling_state(loader: PairLoader, state: TrainState) -> SamplingState | None:
    """What a loader that follows the violation rates must know of the state; None for any other."""
    if not loader.needs_state:
        return None
    margin = jax.device_get(state.adaptive["margin"])
    return SamplingState(violation_rates=margin.violation_rate, num_seen=margin.num_seen)


def _figures(state: TrainState, sums: StepSums, parts: LoopParts) -> Figures:
    fetched = jax.device_get(sums)
    figures = finish(fetched, parts.category_names)
    figures |= adaptive_figures(
        jax.device_get(dataclasses.replace(state, params=None, opt_state=None)),
        parts.objective,
        parts.category_names,
    )
    figures["skipped_steps"] = float(state.num_skipped)
    return figures


def _headline(figures: Figures, *, skipped: bool) -> str:
    loss, accuracy = (
        _shown(figures[name], style) for name, style in (("loss", ".4f"), ("rewards/accuracies", ".2f"))
    )
    text = f"loss {loss}  accuracy {accuracy}"
    worst = worst_category(figures)
    if worst is not None:
        text += f"  worst {worst[0]} {worst[1]:.2f} unsafe"
    text += f"  {figures['response_tokens_per_second']:.0f} tokens/s"
    return f"NOT FINITE, step skipped: {text}" if skipped else text


def _shown(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def _stop_if_diverged(
    state: TrainState, sums: StepSums, figures: Figures, parts: LoopParts, schedule: LoopSchedule
) -> None:
    in_a_row = int(state.num_skipped_in_a_row)
    if in_a_row < schedule.max_skipped_in_a_row:
        return
    names = [*parts.category_names, "(no category)"]
    counts = jax.device_get(sums.not_finite)
    bad = ", ".join(f"{name} ({int(n)} pairs)" for name, n in zip(names, counts, strict=True) if n)
    raise DivergedError(
        f"{in_a_row} steps in a row were not finite, the last is step {int(state.step)}; loss not finite in: "
        f"{bad or 'no pair, the gradient overflowed'}; grad_norm {figures['grad_norm']}. Kept: checkpoint "
        f"{parts.checkpointer.latest_step()}. Try a lower optimizer.learning_rate or model.dtype: float32"
    )
