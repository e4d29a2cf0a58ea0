"""What a run was made of: settings, data, fingerprints, versions, devices."""

from collections.abc import Mapping
from typing import Any

from jaxalign.report.document import Column, Figure, Section, Table
from jaxalign.report.record import RunRecord
from jaxalign.report.scales import MISSING

_MAIN = (
    "model.path",
    "loss.name",
    "loss.beta",
    "optimizer.learning_rate",
    "train.batch_size",
    "train.num_steps",
)


def section(run: RunRecord) -> Section:
    """The main settings, then all of them, then what ties the run to its data and its software."""
    flat = flat_settings(run.config)
    main = [(key, flat[key]) for key in _MAIN if key in flat]
    whole = Table([Column("setting"), Column("value")], list(flat.items()))
    software = {
        "jaxalign": run.manifest.get("jaxalign"),
        "revision": run.manifest.get("git_revision"),
        **run.manifest.get("versions", {}),
        **{f"devices: {key}": value for key, value in run.manifest.get("devices", {}).items()},
        "resumed": f"{len(run.manifest.get('resumed', []))} times",
    }
    prints = [(key, _text(value)) for key, value in run.manifest.get("fingerprints", {}).items()]
    figures = (
        Figure("Main settings", "", Table([Column("setting"), Column("value")], main), unfolded=True),
        Figure("All settings", "As the run was started; defaults are written out.", whole),
        Figure(
            "Fingerprints",
            "SHA-256 of what the run read. Runs with the same fingerprint of held-out data compare pair by pair.",
            Table([Column("of"), Column("fingerprint")], prints),
            unfolded=True,
        ),
        Figure(
            "Versions and devices",
            "",
            Table(
                [Column("what"), Column("version")], [(key, _text(value)) for key, value in software.items()]
            ),
            unfolded=True,
        ),
    )
    return Section("settings", "Settings, data and versions", "", figures)


def flat_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """All settings as text by dotted name."""
    return dict(_flatten(config))


def _flatten(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Leaves of nested settings by dotted name; an empty group is shown as such."""
    if isinstance(value, Mapping) and value:
        return [
            leaf for name, inner in value.items() for leaf in _flatten(inner, f"{key}.{name}".lstrip("."))
        ]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        return [leaf for place, inner in enumerate(value) for leaf in _flatten(inner, f"{key}.{place}")]
    return [(key, _text(value))]


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
