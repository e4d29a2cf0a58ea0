"""Whose answers a safety result is about, in words: the model, and how its step stands to the end of training."""

from jaxalign.report.record import RunRecord
from jaxalign.report.safety import Safety


def origin(run: RunRecord, one: Safety) -> str:
    """The model and its step; nothing where the file, an older one, tells neither."""
    parts = [one.model] if one.model else []
    if one.step is not None:
        parts.append(other_step(run, one) or f"of step {one.step}")
    elif one.model and one.moment == "after":
        parts.append("no checkpoint of a run")
    if _other_start(run, one):
        parts.append("not the model that this run began with")
    return ", ".join(parts)


def other_step(run: RunRecord, one: Safety) -> str:
    """What there is to say of a result after training that is not of the last step; nothing of others."""
    if one.moment != "after" or one.step is None or one.step == run.finished_step:
        return ""
    if run.finished_step is None:
        return f"of step {one.step}, training has not ended"
    return f"of step {one.step}, training ended at {run.finished_step}"


def _other_start(run: RunRecord, one: Safety) -> bool:
    """Whether a result before training is of a pretrained model that is not the run's own."""
    own = run.manifest["fingerprints"].get("model")
    told = one.model_fingerprint is not None and own is not None and one.step is None
    return one.moment == "before" and told and one.model_fingerprint != own
