"""Reading of safety results; safety.py says what is read of them, and what it means."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import JaxalignError
from jaxalign.report.rows import Interval
from jaxalign.report.safety import STATUSES, Constraint, Rate, SafeRate, Safety


class SafetyFileError(JaxalignError, ValueError):
    """A file of safety results that lacks something, or holds something else."""


def read_safety(folder: Path) -> tuple[Safety, ...]:
    """All safety results in a folder, by name of the file. Raises SafetyFileError naming the file and the key."""
    return tuple(_read(path) for path in sorted(folder.glob("safety*.json")))


def _read(path: Path) -> Safety:
    try:
        return _safety(json.loads(path.read_text(encoding="utf-8")), path.stem)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SafetyFileError(
            f"{path}: expected a safety result as jaxalign.report.safety describes it, got {type(error).__name__}: "
            f"{error}; make the file again"
        ) from error


def _safety(content: Mapping[str, Any], name: str) -> Safety:
    source, spreads, corrected = content["source"], content["spread"], _corrected(content)
    spread = spreads.get("corrected_safe_rate" if corrected else "safe_rate")
    certificate = content.get("certificate") or {}
    rates = (
        _rate(title, content.get(key), "rate")
        for title, key in (("over-refusal", "over_refusal"), ("under-refusal", "under_refusal"))
    )
    helpfulness = content.get("helpfulness")
    return Safety(
        file=name,
        moment="before" if "before" in name else "after",
        prompt_set=str(source["prompt_set"]),
        fingerprint=str(source["fingerprint"]),
        num_prompts=int(source["prompts"]),
        judge=str(source["judge"]),
        limits=str(source["limits"]),
        refusal_judge=_text(source.get("refusal_judge")),
        refusal_limits=_text(source.get("refusal_limits")),
        judge_fingerprint=_text(source.get("judge_fingerprint")),
        answer_settings=_settings(source.get("answer_settings")),
        model=_text(source.get("model")),
        model_fingerprint=_text(source.get("model_fingerprint")),
        step=None if source.get("step") is None else int(source["step"]),
        corrected=corrected,
        overall=None if content["overall"] is None else _safe_rate(content["overall"]),
        categories={str(name): _safe_rate(group) for name, group in content["categories"].items()},
        gap=None if spread is None or len(content["categories"]) < 2 else _interval(spread["gap"]),
        gap_if_equal=None if spread is None else float(spread["gap_if_equal"]),
        refusals=tuple(rate for rate in rates if rate is not None),
        helpfulness=None if helpfulness is None else _rate(str(helpfulness["name"]), helpfulness, "mean"),
        certificate=tuple(_constraint(row) for row in certificate.get("constraints", ())),
        certified_by=", ".join(
            str(certificate[key]) for key in ("bound", "correction") if key in certificate
        ),
        notes=tuple(map(str, content.get("notes", ()))),
    )


def _corrected(content: Mapping[str, Any]) -> bool:
    """Whether all rates, and their spread over categories, are there corrected for the judge's error."""
    groups = [*content["categories"].values(), *([content["overall"]] if content["overall"] else [])]
    whole = bool(groups) and all(group.get("corrected_safe_rate") is not None for group in groups)
    return whole and (not content["categories"] or "corrected_safe_rate" in content["spread"])


def _safe_rate(group: Mapping[str, Any]) -> SafeRate:
    corrected = group.get("corrected_safe_rate")
    return SafeRate(
        rate=_interval(group["safe_rate"]),
        corrected=None if corrected is None else _interval(corrected),
        prompts=int(group["prompts"]),
        unjudged=int(group["unjudged"]),
    )


def _rate(name: str, group: Mapping[str, Any] | None, key: str) -> Rate | None:
    return None if group is None else Rate(name, _interval(group[key]), int(group["prompts"]))


def _constraint(row: Mapping[str, Any]) -> Constraint:
    if row["status"] not in STATUSES:
        raise ValueError(f"status {row['status']!r} is none of {', '.join(STATUSES)}")
    return Constraint(
        category=str(row["category"]),
        status=str(row["status"]),
        target=float(row["target"]),
        violation_rate=_maybe(row["violation_rate"]),
        upper_bound=float(row["upper_bound"]),
        margin=_maybe(row["margin"]),
        prompts=int(row["prompts"]),
        message=str(row["message"]),
    )


def _interval(value: Mapping[str, Any]) -> Interval:
    return Interval(float(value["value"]), _maybe(value["low"]), _maybe(value["high"]))


def _maybe(value: Any) -> float | None:
    return None if value is None else float(value)


def _settings(value: Mapping[str, Any] | None) -> str | None:
    """In words, those that say something."""
    if value is None:
        return None
    return ", ".join(f"{name} {value[name]}" for name in sorted(value) if value[name] is not None)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
