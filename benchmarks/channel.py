"""The pipe between a benchmark and a peer: a process that makes one train step whenever it is told to.

So two peers can alternate on one machine, each with its own libraries, memory and environment. Knows no library.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

Message = dict[str, Any]


class Channel:
    """The peer's end: requests come by stdin, answers go where stdout went; what others print goes to stderr."""

    def __init__(self) -> None:
        self._answers: TextIO = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._stopped = False

    def send(self, **message: Any) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def next_step(self) -> bool:
        """Wait for the next request: True for a step, False to stop."""
        self._stopped = sys.stdin.readline().strip() != "step"
        return not self._stopped

    def begin(self, **message: Any) -> None:
        """Say that everything before the first step is done; from here the peak memory is that of the steps."""
        self.send(start_peak=peak_memory(), **message)
        reset_peak_memory()

    def end(self) -> None:
        """The last answer, when it is asked for."""
        if not self._stopped:
            self.next_step()
        self.send(peak=peak_memory())


class PeerError(RuntimeError):
    """A peer ended early; holds the end of what it said."""


class Peer:
    """The benchmark's end. `started` is what the peer said when it was ready; `before` runs in its process first."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.name, self._log = name, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **env},
                preexec_fn=before,
            )
        self.started = self._answer()

    def step(self) -> Message:
        """One train step."""
        return self._ask("step")

    def stop(self) -> Message:
        """End the peer; its peak memory. Nothing may be asked afterwards."""
        answer = self._ask("stop")
        self._process.communicate()
        return answer

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: str) -> Message:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a peer that is gone has no answer, and that is reported
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.communicate()
        last = "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-12:])
        raise PeerError(
            f"{self.name} ended with exit status {self._process.returncode}, having said:\n{last}"
        )


def peak_memory() -> int:
    """Bytes of the most memory this process has had resident since its start or the last reset."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak_memory() -> None:
    """Start the peak anew from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
