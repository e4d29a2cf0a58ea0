"""Live progress of a long stage: a bar on a terminal, a line every few seconds in a log file. Times of a start."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_SECONDS = 5.0


class Stage:
    """`with Stage("tokenize", total) as stage: stage.advance(1, "text")`. A disabled stage prints nothing."""

    def __init__(self, label: str, total: int, *, completed: int = 0, enabled: bool = True) -> None:
        self._label, self._total, self._completed, self._enabled = label, total, completed, enabled
        self._first = completed
        self._started = self._logged = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._task = self._bar.add_task(label, total=total, completed=completed, text="")

    def advance(self, amount: int = 1, text: str = "") -> None:
        """Count `amount` more as done and show `text` beside the bar."""
        self._completed += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._completed, text=text)
        elif self._enabled and self._due():
            self._log(text)

    def _due(self) -> bool:
        # The last line is that of the end.
        return self._completed < self._total and time.monotonic() - self._logged >= LOG_SECONDS

    def _log(self, text: str) -> None:
        self._logged = time.monotonic()
        elapsed = self._logged - self._started
        done = self._completed - self._first
        left = f", {elapsed / done * (self._total - self._completed):.0f} s left" if done else ""
        line = f"{self._label}: {self._completed}/{self._total}, {elapsed:.0f} s{left}  {text}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> "Stage":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._enabled and kind is None and time.monotonic() - self._started >= 1.0:
            self._log("done")


class StageTimes:
    """Seconds of the stages of a start, one after another: `times.done("load the model")` ends the one under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    def done(self, stage: str) -> None:
        """End a stage, which began when the one before was done; stages of one name add up."""
        begun, self._begun = self._begun, time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + self._begun - begun

    def summary(self) -> str:
        """All stages and their sum on one line."""
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s ({stages})"
