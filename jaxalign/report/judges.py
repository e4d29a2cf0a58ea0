"""Who judged a run's answers while it trained, and what that judge cannot see, in words. Results name their own."""

from collections.abc import Mapping
from typing import Any

from jaxalign.refusal_limits import LIMITS
from jaxalign.report.record import RunRecord

_MODELS = {
    "guard": ("guard model", "path"),
    "score_model": ("cost model", "path"),
    "endpoint": ("endpoint model", "model"),
    "function": ("function", "function"),
}
"""By kind of the judge: what it is called, and the setting that names it."""


def probe_judge(run: RunRecord) -> str:
    """Of the answers at probes; nothing for a run without probes."""
    return "" if run.signal == "implicit_reward" else _sentence(run.config["adaptive"].get("probe"))


def selection_judge(run: RunRecord) -> str:
    """Of the answers by which the best state is chosen."""
    return _sentence(run.config.get("selection"))


def _sentence(interview: Mapping[str, Any] | None) -> str:
    judge = (interview or {}).get("judge", {})
    kind = judge.get("kind")
    if kind == "refusal":
        return f"Judged by the refusal rule. {LIMITS}"
    if kind not in _MODELS:
        return f"Judged by a judge of kind {kind or 'not known'}; its errors are not known here."
    words, setting = _MODELS[kind]
    name = str(judge.get(setting, "")).rstrip("/").rsplit("/", 1)[-1]
    return f"Judged by the {words} {name}; its errors are not known here."
