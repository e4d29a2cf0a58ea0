"""Mutual information of chosen against rejected responses, and the weights made of it, as small tables for a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_BINS = 24
_SHOWN = (0.005, 0.995)  # the quantiles that the axes reach to; what lies beyond counts in the outermost bins


def mutual_information_summary(
    mi: np.ndarray, weights: np.ndarray, categories: np.ndarray, category_names: Sequence[str]
) -> dict[str, Any]:
    """Plain values for JSON from MI [n, 2] in nats per token, weights [n, 2] and categories [n, K].

    Pairs without a finite MI, which the run never visits, are left out. `counts` is [chosen bin][rejected bin].
    Raises ValueError where no pair is left.
    """
    seen = np.isfinite(mi).all(axis=1)
    if not seen.any():
        raise ValueError("no pair has a finite mutual information")
    mi, weights, categories = mi[seen].astype(float), weights[seen].astype(float), categories[seen]
    edges = _edges(mi)
    clipped = np.clip(mi, edges[0], edges[-1])
    counts, _, _ = np.histogram2d(clipped[:, 0], clipped[:, 1], bins=(edges, edges))
    weight_edges = _edges(weights[:, :1])
    weight_counts, _ = np.histogram(np.clip(weights[:, 0], weight_edges[0], weight_edges[-1]), weight_edges)
    members = {name: categories[:, k] > 0 for k, name in enumerate(category_names)}
    return {
        "unit": "nats per token",
        "overall": _means(mi, weights),
        "categories": {
            name: _means(mi[inside], weights[inside]) for name, inside in members.items() if inside.any()
        },
        "edges": edges.tolist(),
        "counts": counts.astype(int).tolist(),
        "chosen_weight": {"edges": weight_edges.tolist(), "counts": weight_counts.astype(int).tolist()},
    }


def _edges(values: np.ndarray) -> np.ndarray:
    """[NUM_BINS + 1] edges over nearly all values; of some width even where all are equal."""
    low, high = np.quantile(values, _SHOWN)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, NUM_BINS + 1)


def _means(mi: np.ndarray, weights: np.ndarray) -> dict[str, float | int]:
    return {
        "pairs": len(mi),
        "chosen_mi": float(mi[:, 0].mean()),
        "rejected_mi": float(mi[:, 1].mean()),
        "chosen_weight": float(weights[:, 0].mean()),
        "rejected_weight": float(weights[:, 1].mean()),
        "chosen_higher": float((mi[:, 0] > mi[:, 1]).mean()),
    }
