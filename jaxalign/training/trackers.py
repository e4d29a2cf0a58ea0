"""Trackers behind one interface: TensorBoard files, Weights & Biases, trackio. metrics.jsonl is in log.py."""

import importlib
import importlib.util
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator
from tensorboardX import SummaryWriter

from jaxalign.errors import MissingPackageError
from jaxalign.settings import Settings

Figures = Mapping[str, float | None]
RemoteTracker = Literal["wandb", "trackio"]


class LoggingConfig(Settings):
    """Where figures go besides metrics.jsonl."""

    tensorboard: bool = True
    trackers: list[RemoteTracker] = Field(
        default=[], description="wandb, trackio or both; the packages must be installed"
    )
    project: str | None = Field(default=None, description="of the trackers; null: jaxalign")

    @model_validator(mode="after")
    def _check(self) -> "LoggingConfig":
        if self.project is not None and not self.trackers:
            raise ValueError(
                f"logging.project={self.project} has no effect without logging.trackers; remove it"
            )
        repeated = {name for name in self.trackers if self.trackers.count(name) > 1}
        if repeated:
            raise ValueError(f"logging.trackers names {', '.join(sorted(repeated))} twice; name each once")
        return self


class Tracker(Protocol):
    """Where the figures of each step are mirrored to."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the finite figures of a step."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoardTracker:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: Path, first_step: int) -> None:
        # tensorboardX names files by the second and would overwrite one of the same second; TensorBoard reads
        # the files of a run in order of their names.
        suffix = f".{time.time_ns()}"
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1, filename_suffix=suffix
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a scalar for each figure."""
        for name, value in figures.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


class RunTracker:
    """A run of wandb or trackio, whose calls are alike. A resumed training goes on in the run that it began.

    Where figures go, and whether at once, is set by the variables of those packages, such as WANDB_MODE=offline.
    """

    def __init__(
        self, package: RemoteTracker, workdir: Path, first_step: int, project: str, config: dict[str, Any]
    ) -> None:
        path = workdir / f"{package}.id"
        resumes = first_step > 0 and path.exists()
        if not resumes:
            path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        identity = path.read_text(encoding="utf-8")
        # trackio finds a run by its name, wandb by its id.
        own: dict[str, Any] = {"id": identity, "dir": str(workdir)} if package == "wandb" else {}
        self._run = importlib.import_module(package).init(
            project=project,
            name=f"{workdir.name}-{identity}",
            config=config,
            resume="allow" if resumes else "never",
            **own,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Finish the run, which sends what is left."""
        self._run.finish()


def check_trackers(config: LoggingConfig) -> None:
    """Raise MissingPackageError for a tracker that is not installed, before anything is loaded."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(
                f"logging.trackers names {name}, which is not installed: pip install {name}, or remove it"
            )


def open_trackers(
    config: LoggingConfig, workdir: Path, first_step: int, run_config: dict[str, Any]
) -> list[Tracker]:
    """The configured trackers of a run that goes on after `first_step`; `run_config` is shown with the run."""
    check_trackers(config)
    trackers: list[Tracker] = [TensorBoardTracker(workdir, first_step)] if config.tensorboard else []
    project = config.project or "jaxalign"
    trackers += [RunTracker(name, workdir, first_step, project, run_config) for name in config.trackers]
    return trackers
