"""Stop requests: SIGTERM on one machine, a preemption notice on any host of a pod."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Before and after the train loop SIGTERM ends the process with status 0: there is nothing to save.

    Only where one process trains alone; several hear of it through their coordination service.
    """
    if jax.process_count() > 1:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        print("stopped outside of the train loop; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(0)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Preemption:
    """`with Preemption() as preemption: ... preemption.requested(step)`, asked on every process at every step."""

    def __init__(self) -> None:
        self._flag = False
        self._alone = jax.process_count() == 1

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self._flag = True

    def requested(self, step: int) -> bool:
        """True once a stop was asked for; on several processes they all learn it at the same step."""
        if self._alone:
            return self._flag
        return bool(multihost_utils.reached_preemption_sync_point(step))

    def __enter__(self) -> "Preemption":
        if self._alone:  # with several processes the coordination service catches the signal
            self._previous = signal.signal(signal.SIGTERM, self._raise_flag)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)
