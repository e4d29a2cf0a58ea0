"""Stop requests: SIGTERM on one machine, a preemption notice on any host of a pod."""

import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


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
