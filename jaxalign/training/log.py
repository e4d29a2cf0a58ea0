"""Where figures go: metrics.jsonl, and the trackers that mirror it. Written by process 0 only."""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from jaxalign.errors import JaxalignError
from jaxalign.files import write_whole
from jaxalign.training.trackers import Figures, Tracker

log = logging.getLogger(__name__)


class MetricsLogError(JaxalignError, RuntimeError):
    """A metrics.jsonl that a resumed run cannot go on from."""


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl` and mirrors the figures to the trackers, which it closes.

    Resuming at a step drops what a killed run had logged beyond it, so that each step stands there once.
    """

    def __init__(self, workdir: Path, first_step: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open the log of a run that goes on after `first_step`; raises MetricsLogError where lines are damaged."""
        path = workdir / "metrics.jsonl"
        _keep_up_to(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, step: int, figures: Figures) -> None:
        """Log the figures; a figure that is not finite is null in the file, never 0."""
        self._file.write(json.dumps({"step": step, **figures}, allow_nan=False) + "\n")
        self._file.flush()
        finite = {name: value for name, value in figures.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(step, finite)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:  # all of them, even if one fails
            for close in (self._file.close, *(tracker.close for tracker in self._trackers)):
                closing.callback(close)


def _keep_up_to(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    *lines, rest = path.read_bytes().split(b"\n")
    if rest and not _is_json(rest):
        log.warning("%s, line %d: dropped, a killed process left it half written", path, len(lines) + 1)
    elif rest:
        lines.append(rest)
    steps = [_step_of(line, path, number) for number, line in enumerate(lines, start=1)]
    kept = [line + b"\n" for line, step in zip(lines, steps, strict=True) if step <= last_step]
    write_whole(path, b"".join(kept))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # of JSON, or of UTF-8
        return False
    return True


def _step_of(line: bytes, path: Path, number: int) -> int:
    record = json.loads(line) if _is_json(line) else None
    step = record.get("step") if isinstance(record, dict) else None
    if type(step) is not int:  # true is an int too
        shown = line[:80].decode("utf-8", errors="backslashreplace")
        raise MetricsLogError(
            f'{path}, line {number}: expected an object with a whole number "step", got {shown!r}; repair the line, '
            "or move the file away to begin a new one"
        )
    return step
