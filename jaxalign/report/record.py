"""What a run left in its workdir, read and checked: metrics, evaluation files. Nothing is judged or drawn here."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from jaxalign.report.files import Finished, MutualInformation, Preference, ReportError, read_checked
from jaxalign.report.rows import Interval
from jaxalign.report.safety import Safety
from jaxalign.report.safety_files import read_safety
from jaxalign.training.loss_settings import LossConfig

log = logging.getLogger(__name__)

MARGIN_LOSSES = frozenset(
    name
    for settings in get_args(get_args(LossConfig)[0])
    if "margin" in settings.rules
    for name in get_args(settings.model_fields["name"].annotation)
)
"""By name, the losses that have adaptive margins."""


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl: `steps` [n] and, by name, columns [n] with NaN where a figure is missing."""

    steps: np.ndarray
    columns: Mapping[str, np.ndarray]

    def by_category(self, prefix: str, suffix: str = "") -> dict[str, np.ndarray]:
        """Columns named PREFIX category SUFFIX, by category."""
        return {
            name[len(prefix) : len(name) - len(suffix)]: values
            for name, values in self.columns.items()
            if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
        }


@dataclass(frozen=True)
class CategoryPairs:
    """The held-out pairs of a category: accuracy with its interval, and the spread of the reward gaps.

    `gap` is the median within the quantiles .05 and .95 and, inner, .25 and .75; `below` the share under the threshold.
    """

    pairs: int
    prompts: int
    accuracy: Interval
    gap: Interval
    below: float


@dataclass(frozen=True)
class HeldoutPairsSummary:
    """What single held-out pairs tell beyond means: by category, and the histogram of all reward gaps."""

    categories: Mapping[str, CategoryPairs]
    overall: CategoryPairs
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RunRecord:
    """A run as it is reported; what it did not leave is None."""

    name: str
    manifest: Mapping[str, Any]
    metrics: Metrics
    finished_step: int | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    pairs: HeldoutPairsSummary | None
    mutual_information: Mapping[str, Any] | None
    safety: tuple[Safety, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that the run was started with."""
        settings: Mapping[str, Any] = self.manifest["config"]
        return settings

    @property
    def has_margins(self) -> bool:
        """Whether the loss has adaptive margins, also where none was logged yet."""
        return self.config.get("loss", {}).get("name") in MARGIN_LOSSES

    @property
    def signal(self) -> str:
        """What the margins follow: implicit_reward (training pairs), probe (judged answers) or both."""
        return str(self.config.get("adaptive", {}).get("signal", "implicit_reward"))

    def target(self, category: str, safety: Safety | None = None) -> float | None:
        """The accepted violation rate of a category: that of the result's certificate, else of the loss, else None."""
        if safety is not None and category in safety.targets:
            return safety.targets[category]
        if not self.has_margins:
            return None
        target = self.config.get("adaptive", {}).get("margin", {}).get("target_rate")
        if isinstance(target, Mapping):
            target = target.get(category, target.get("default"))
        return None if target is None else float(target)


def read_run(
    workdir: Path,
    manifest: Mapping[str, Any],
    name: str,
    summarise: Callable[[Path, float], HeldoutPairsSummary | None],
) -> RunRecord:
    """Read a workdir; `summarise(folder, threshold)` gives what single held-out pairs tell.

    Raises ReportError for damaged files.
    """
    folder = workdir / "evaluation"
    finished = read_checked(workdir / "finished.json", Finished)
    before, after = (read_checked(folder / f"{moment}.json", Preference) for moment in ("before", "after"))
    return RunRecord(
        name=name,
        manifest=manifest,
        metrics=read_metrics(workdir / "metrics.jsonl"),
        finished_step=None if finished is None else finished["step"],
        before=before,
        after=after,
        pairs=None if after is None else summarise(folder, after["threshold"]),
        mutual_information=read_checked(folder / "mutual_information.json", MutualInformation),
        safety=read_safety(folder),
    )


def read_metrics(path: Path) -> Metrics:
    """All figures by name. A half-written last line, as of a run under way, is left out; other damage is an error."""
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number == len(lines):
            if line:
                log.warning("%s, line %d: left out, it is half written", path, number)
        else:
            shown = line[:80].decode("utf-8", errors="backslashreplace")
            raise ReportError(
                f'{path}, line {number}: expected an object with a whole number "step", got {shown!r}; repair the line'
            )
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    return Metrics(np.array([row["step"] for row in rows], int), columns)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan
