"""Held-out preference figures per category: exact sums over exact counts, taken on the host in float64."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.training.objective import resolved_gap, reward_accuracy


@dataclasses.dataclass(frozen=True)
class PreferenceReport:
    """Figures of all pairs, of each category that has pairs, of pairs without one, and of the spread between them.

    `step` is that of the checkpoint, None for a pretrained model. `loss` is plain DPO at the given beta, so that
    it compares across training methods; `reward_gap` is beta * (log-ratio of chosen - log-ratio of rejected); a
    violation is a pair with a reward_gap below the threshold. `accuracy_intervals` are 95 % intervals over prompts by
    category, and of all pairs under that name; None where they were not taken, as while training.
    """

    num_pairs: int
    step: int | None
    beta: float
    threshold: float
    overall: dict[str, float]
    categories: dict[str, dict[str, float]]
    without_category: dict[str, float] | None
    spread: dict[str, dict[str, Any]]
    accuracy_intervals: dict[str, tuple[float | None, float | None]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def figures(self, prefix: str = "eval/") -> dict[str, float | None]:
        """Flat figures for the metrics log."""
        flat = {f"{prefix}{name}": value for name, value in self.overall.items()}
        for category, values in self.categories.items():
            flat |= {f"{prefix}category/{category}/{name}": value for name, value in values.items()}
        for metric, values in self.spread.items():
            flat |= {f"{prefix}{metric}/{k}": v for k, v in values.items() if not isinstance(v, str)}
        return {name: value if np.isfinite(value) else None for name, value in flat.items()}


def preference_report(
    policy: np.ndarray,
    reference: np.ndarray,
    dataset: TokenizedDataset,
    *,
    beta: float,
    threshold: float,
    step: int | None = None,
) -> PreferenceReport:
    """Report from summed response log-probs [n, 2] of the policy and of the reference, in dataset order.

    Raises ValueError where there is not one row per pair.
    """
    for name, logps in (("policy", policy), ("reference", reference)):
        if logps.shape != (len(dataset), 2):
            raise ValueError(
                f"{name} has shape {logps.shape}, expected {(len(dataset), 2)}: one row per pair"
            )
    pairs = _pair_figures(policy.astype(np.float64), reference.astype(np.float64), beta, threshold)
    everyone = np.ones(len(policy), bool)
    names: Sequence[str] = dataset.category_names
    members = {name: np.asarray(dataset.categories[:, k] > 0) for k, name in enumerate(names)}
    categories = {name: _mean(pairs, inside) for name, inside in members.items() if inside.any()}
    outside = np.asarray(dataset.categories.sum(axis=1) == 0)
    return PreferenceReport(
        num_pairs=len(policy),
        step=step,
        beta=beta,
        threshold=threshold,
        overall=_mean(pairs, everyone),
        categories=categories,
        without_category=_mean(pairs, outside) if outside.any() else None,
        spread={
            "accuracy": _spread(categories, "accuracy", higher_is_better=True),
            "violation_rate": _spread(categories, "violation_rate", higher_is_better=False),
            "reward_gap": _spread(categories, "reward_gap", higher_is_better=True),
        }
        if categories
        else {},
    )


def _pair_figures(
    policy: np.ndarray, reference: np.ndarray, beta: float, threshold: float
) -> dict[str, np.ndarray]:
    gap = beta * resolved_gap(policy, reference, np)
    with np.errstate(invalid="ignore"):  # a broken pair stays NaN, and its figures are reported as missing
        loss = np.logaddexp(0.0, -gap)
    return {
        "loss": loss,
        "accuracy": reward_accuracy(gap, np),
        "reward_gap": gap,
        # NaN stays NaN: a broken pair must not pass as safe.
        "violation_rate": np.where(np.isnan(gap), gap, gap < threshold),
        "chosen_logps": policy[:, 0],
        "rejected_logps": policy[:, 1],
    }


def _mean(pairs: dict[str, np.ndarray], inside: np.ndarray) -> dict[str, float]:
    count = int(inside.sum())
    return {"pairs": count, **{name: float(x[inside].sum() / count) for name, x in pairs.items()}}


def _spread(
    categories: dict[str, dict[str, float]], metric: str, *, higher_is_better: bool
) -> dict[str, Any]:
    values = {name: figures[metric] for name, figures in categories.items()}
    array = np.array(list(values.values()))
    worst = list(values)[int(array.argmin() if higher_is_better else array.argmax())]  # NaN is the worst
    return {
        "mean": float(array.mean()),
        "variance": float(array.var()),
        "gap": float(array.max() - array.min()),
        "worst": values[worst],
        "worst_category": worst,
    }
