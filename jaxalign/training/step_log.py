"""What is said of a step once the devices have finished it: its log line, its headline, and the stop at divergence."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax

from jaxalign.errors import JaxalignError
from jaxalign.progress import Stage
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.log import MetricsLog
from jaxalign.training.metrics import StepSums, step_figures, worst_category

Figures = dict[str, float | None]


class DivergedError(JaxalignError, RuntimeError):
    """Too many non-finite steps in a row."""


@dataclasses.dataclass
class StepLog:
    """Logs steps in order, each while the devices already work on the next one.

    `num_skipped_in_a_row` is that of the newest step logged.
    """

    category_names: Sequence[str]
    log: MetricsLog | None
    stage: Stage
    checkpointer: Checkpointer
    max_skipped_in_a_row: int
    num_skipped_in_a_row: int = 0
    _under_way: tuple[int, float, StepSums] | None = None
    _finished: float = -math.inf  # when the step before was

    def add(self, step: int, started: float, sums: StepSums) -> None:
        """Take a step that is under way, begun at `started`; the one before is logged. Raises DivergedError for it."""
        self.flush()
        self._under_way = step, started, sums

    def flush(self, evaluate: Callable[[], Figures] | None = None) -> None:
        """Wait for the step under way, if there is one, and log it, with held-out figures of its state if asked to.

        Raises DivergedError if it is one too many that is not finite.
        """
        if self._under_way is None:
            return
        (step, started, on_device), self._under_way = self._under_way, None
        sums = jax.device_get(on_device)
        # The devices began it when they had finished the step before, or later, if it was not yet there.
        begun, self._finished = max(started, self._finished), time.monotonic()
        seconds = self._finished - begun
        figures = step_figures(sums, self.category_names)
        figures["seconds_per_step"] = seconds
        figures["response_tokens_per_second"] = float(sums.tokens) / seconds
        if evaluate is not None:
            figures |= evaluate()
        if self.log is not None:
            self.log.write(step, figures)
        self.num_skipped_in_a_row = int(sums.num_skipped_in_a_row)
        self.stage.advance(1, _headline(figures, skipped=self.num_skipped_in_a_row > 0))
        if self.num_skipped_in_a_row >= self.max_skipped_in_a_row:
            raise DivergedError(self._divergence(step, sums))

    def _divergence(self, step: int, sums: StepSums) -> str:
        self.checkpointer.wait()
        counts = zip([*self.category_names, "(no category)"], sums.not_finite, strict=True)
        bad = ", ".join(f"{name} ({int(n)} pairs)" for name, n in counts if n)
        return (
            f"{self.num_skipped_in_a_row} steps in a row were not finite, the last is step {step}; loss not finite in: "
            f"{bad or 'no pair, the gradient overflowed'}; grad_norm {float(sums.grad_norm)}. Kept: checkpoint "
            f"{self.checkpointer.latest_step()}. Try a lower optimizer.learning_rate or model.dtype: float32"
        )


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
