"""Draws of the categories' true rates with the noise of measuring them taken out, for figures that noise inflates."""

import numpy as np

_GRID = 0.5 * (np.arange(1, 401) / 400) ** 2  # deviations between rates in [0, 1]; finer near 0


def shrunken_draws(rates: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws [R, K] of the true rates, given rates [K] and their draws under resampling [R, K].

    Resampled rates scatter around the observed ones, which scatter around the true ones: their gap holds the
    noise twice. Here the true rates are normal around a mean, both parameters unknown (Rubin 1981, flat priors),
    and every rate is drawn towards that mean as its noise demands. Without true differences the draws agree.
    """
    noise = draws - draws.mean(axis=0)
    variance = noise.var(axis=0)
    total = variance + _GRID[:, None] ** 2  # [T, K]
    mean_variance = 1.0 / (1.0 / total).sum(axis=1)
    mean = mean_variance * (rates / total).sum(axis=1)
    log_density = 0.5 * np.log(mean_variance) - 0.5 * np.log(total).sum(axis=1)
    log_density -= 0.5 * ((rates - mean[:, None]) ** 2 / total).sum(axis=1)
    mass = np.exp(log_density - log_density.max()) * np.gradient(_GRID)
    at = rng.choice(len(_GRID), size=len(draws), p=mass / mass.sum())
    centre = mean[at] + np.sqrt(mean_variance[at]) * rng.standard_normal(len(draws))
    kept = _GRID[at, None] ** 2 / total[at]
    return np.clip(kept * rates + (1.0 - kept) * centre[:, None] + np.sqrt(kept) * noise, 0.0, 1.0)
