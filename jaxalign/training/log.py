"""Where figures go: metrics.jsonl and TensorBoard events. Written by process 0 only."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter

Figures = Mapping[str, float | None]


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl` and mirrors the figures to TensorBoard.

    Resuming at a step drops what a killed run had logged beyond it, so that each step stands there once.
    """

    def __init__(self, workdir: Path, first_step: int, *, tensorboard: bool) -> None:
        self._path = workdir / "metrics.jsonl"
        _keep_up_to(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8")
        events = workdir / "tensorboard"
        self._events = SummaryWriter(str(events), purge_step=first_step + 1) if tensorboard else None

    def write(self, step: int, figures: Figures) -> None:
        """Log the figures; a figure that is not finite is null in the file, never 0."""
        self._file.write(json.dumps({"step": step, **figures}, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in figures.items():
                if value is not None:
                    self._events.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _keep_up_to(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except json.JSONDecodeError:  # the torn last line of a killed process
            break
        if step <= last_step:
            kept.append(line + "\n")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
