"""What a run brings to an evaluation of its answers: the targets and the margins of its margin rule."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxalign.config import Config
from jaxalign.data.prompts import PromptSet

log = logging.getLogger(__name__)


def targets_of(run: Config | None, prompts: PromptSet) -> dict[str, float] | None:
    """The target rates of a run's margin rule, for the categories that the prompts have."""
    if run is None or "margin" not in run.loss.rules:
        return None
    known = [name for name in prompts.category_names if name in run.data.category_names]
    return run.adaptive.margin.targets_of(known) or None


def margins_of(
    path: Path, step: int | None, prompts: PromptSet, targets: float | Mapping[str, float] | None
) -> dict[str, float]:
    """The margins that a run logged at its step, for the categories of the prompts that have a target."""
    file = path / "metrics.jsonl"
    if step is None or targets is None or not file.exists():
        return {}
    newest: dict[str, Any] = next((record for record in _records(file) if record.get("step") == step), {})
    names = targets if isinstance(targets, Mapping) else prompts.category_names
    found = {name: newest.get(f"adaptive/margin/{name}") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a log; a line that was half-written when a process was killed is left out."""
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except ValueError as error:
            log.warning("%s, line %d is left out: %s", file, number, error)
            continue
        if isinstance(record, dict):
            yield record
