"""JSON files of a run, read and checked for what every page reads of them. Safety results are read in safety.py."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from jaxalign.errors import JaxalignError


class ReportError(JaxalignError, ValueError):
    """A file of a run that a report cannot be made from."""


class _Strict(BaseModel):
    """Fields that must be there, as they are; further ones are passed over."""

    model_config = ConfigDict(strict=True)


class Finished(_Strict):
    """finished.json."""

    step: int


class _Pairs(_Strict):
    pairs: int
    accuracy: float | None


class _Spread(_Strict):
    worst_category: str | None
    worst: float | None
    gap: float | None


class _Spreads(_Strict):
    violation_rate: _Spread | None = None


class Preference(_Strict):
    """before.json and after.json: figures of held-out pairs."""

    num_pairs: int
    beta: float
    threshold: float
    overall: _Pairs
    categories: dict[str, _Pairs]
    without_category: _Pairs | None = None
    spread: _Spreads


class _Means(_Strict):
    pairs: int
    chosen_mi: float
    rejected_mi: float
    chosen_weight: float
    rejected_weight: float
    chosen_higher: float


class _Bins(_Strict):
    edges: list[float]
    counts: list[int]

    @model_validator(mode="after")
    def _lengths(self) -> "_Bins":
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.edges)} edges do not fit {len(self.counts)} counts")
        return self


class MutualInformation(_Strict):
    """mutual_information.json: the summary of single training pairs."""

    overall: _Means
    categories: dict[str, _Means]
    edges: list[float]
    counts: list[list[int]]
    chosen_weight: _Bins

    @model_validator(mode="after")
    def _lengths(self) -> "MutualInformation":
        if {len(self.counts), *map(len, self.counts)} != {len(self.edges) - 1}:
            raise ValueError(f"the table of counts does not fit {len(self.edges)} edges")
        return self


def read_checked(path: Path, kind: type[BaseModel]) -> dict[str, Any] | None:
    """The object in a file, None without the file. Raises ReportError naming what is missing or something else."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({error}); remove it, or make it again") from error
    if not isinstance(value, dict):
        raise ReportError(
            f"{path}: expected an object, got {type(value).__name__}; remove it, or make it again"
        )
    try:
        kind.model_validate(value)
    except ValidationError as error:
        raise ReportError(f"{path} {_faults(error)}; remove it, or make it again") from error
    return value


def _faults(error: ValidationError) -> str:
    """All that is missing, then the first thing that is something else."""
    faults = [(".".join(map(str, one["loc"])), one) for one in error.errors()]
    missing = sorted(place for place, one in faults if one["type"] == "missing")
    wrong = [
        f"holds {one['input']!r:.60} as {place}: {one['msg']}" if place else f"does not agree: {one['msg']}"
        for place, one in faults
        if one["type"] != "missing"
    ]
    return ", and ".join([*([f"lacks {', '.join(missing)}"] if missing else []), *wrong[:1]])
