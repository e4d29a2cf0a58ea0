"""The alarm for chosen responses that become less likely for long, as DPO allows. Its threshold is here."""

from dataclasses import dataclass

import numpy as np

from jaxalign.report.curves import running_mean
from jaxalign.report.record import RunRecord

THRESHOLD = -0.1
"""Nats per token: chosen responses have lost a tenth of their likelihood, token by token, since the reference."""
PATIENCE_STEPS, PATIENCE_SHARE = 10, 0.05
"""So many steps in a row below the threshold, and at least this share of the run, raise the alarm."""
RATE = 0.1  # of the running mean over steps


@dataclass(frozen=True)
class Displacement:
    """How the likelihood of the responses moved: running means [n] in nats per token against the reference.

    `raised` has the first and the last step of the longest stretch below the threshold that was long enough, None
    where none was. `unknown` says why nothing can be told.
    """

    steps: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    patience: int
    raised: tuple[int, int] | None
    unknown: str = ""


def displacement(run: RunRecord) -> Displacement:
    """Log-ratios of chosen and rejected responses from the logged rewards, over the mean length of a response."""
    steps, columns = run.metrics.steps, run.metrics.columns
    nothing = np.full(len(steps), np.nan)
    patience = max(PATIENCE_STEPS, round(PATIENCE_SHARE * len(steps)))
    needed = ("rewards/chosen", "rewards/rejected", "pairs", "response_tokens")
    beta = _beta(run)
    if not len(steps) or beta is None or not all(name in columns for name in needed):
        return Displacement(steps, nothing, nothing, patience, None, "the run has logged no rewards")
    if run.config.get("reference", {}).get("mode") == "none":
        reason = "rewards of a run with reference.mode none are not measured against a reference"
        return Displacement(steps, nothing, nothing, patience, None, reason)
    with np.errstate(invalid="ignore", divide="ignore"):
        length = columns["response_tokens"] / (2 * columns["pairs"])
        chosen, rejected = (
            running_mean(columns[f"rewards/{side}"] / beta / length, RATE) for side in ("chosen", "rejected")
        )
    return Displacement(steps, chosen, rejected, patience, _longest_below(steps, chosen, patience))


def _beta(run: RunRecord) -> float | None:
    """The factor between log-ratios and rewards."""
    for report in (run.after, run.before):
        if report is not None:
            return float(report["beta"])
    beta = run.config.get("loss", {}).get("beta")
    return None if beta is None else float(beta)


def _longest_below(steps: np.ndarray, values: np.ndarray, patience: int) -> tuple[int, int] | None:
    below = np.concatenate([[False], values < THRESHOLD, [False]]).astype(int)
    turns = np.diff(below)
    starts, ends = np.flatnonzero(turns == 1), np.flatnonzero(turns == -1)
    if not starts.size or (ends - starts).max() < patience:
        return None
    longest = int((ends - starts).argmax())
    return int(steps[starts[longest]]), int(steps[ends[longest] - 1])
