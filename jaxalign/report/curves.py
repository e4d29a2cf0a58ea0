"""Values over steps made ready to be drawn: running means, fewer points, stretches without holes. Nothing is drawn."""

import numpy as np


def running_mean(values: np.ndarray, rate: float | None = None) -> np.ndarray:
    """[n] exponential running mean; a missing value leaves it as it is, and it is missing before the first one.

    Without a rate it is 10 / n, but at least 0.1: the curves of a few steps are left as they are.
    """
    rate = min(1.0, max(0.1, 10 / max(len(values), 1))) if rate is None else rate
    means = np.full(len(values), np.nan)
    mean = np.nan
    for place, value in enumerate(values):
        if np.isfinite(value):
            mean = value if np.isnan(mean) else (1 - rate) * mean + rate * value
        means[place] = mean
    return means


def last_finite(values: np.ndarray) -> float | None:
    """The newest value that is not missing."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else None


def thinned(steps: np.ndarray, values: np.ndarray, most: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a long curve: means of neighbours, NaN where all of them are."""
    if len(steps) <= most:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), most)
    seen = [values[part][np.isfinite(values[part])] for part in parts]
    means = np.array([part.mean() if part.size else np.nan for part in seen])
    return np.array([steps[part].mean() for part in parts]), means


def unbroken(steps: np.ndarray, values: np.ndarray) -> list[list[tuple[float, float]]]:
    """The stretches of a curve without missing values, as (step, value)."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if np.isfinite(value):
            stretches[-1].append((float(step), float(value)))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]
