"""Random weights of prompts, the source of every interval, and figures with intervals. No figure's own rule is here."""

import dataclasses

import numpy as np

PROMPTS, PRIOR, JUDGE, EQUAL, SHRUNKEN = range(5)  # first parts of the keys of draws: each kind has its own
CHUNK = 4_000_000  # random numbers held at a time


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval; the bounds are None where a single prompt tells nothing about others."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Resampling:
    """How intervals are made: R draws, decided by the seed, of which the central part is the interval.

    Raises ValueError for fewer than 100 draws, which have no tails, and for a confidence that is no probability.
    """

    num_resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_resamples < 100:
            raise ValueError(
                f"num_resamples={self.num_resamples} is too few for an interval; give at least 100"
            )
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence={self.confidence} must be between 0 and 1, such as 0.95")

    def generator(self, *key: int) -> np.random.Generator:
        """Random numbers that the seed and the key decide."""
        return np.random.default_rng([self.seed, *key])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums [R, C] of values [n, C] under random weights of the n prompts, the same weights in every call.

        The weights are Exp(1), as in Rubin's Bayesian bootstrap. Unlike counts of draws with replacement they leave
        no category empty, however few prompts it has.
        """
        rng = self.generator(PROMPTS)
        sums = np.empty((self.num_resamples, values.shape[1]))
        size = max(1, CHUNK // len(values))
        for start in range(0, self.num_resamples, size):
            weights = rng.standard_exponential((min(size, self.num_resamples - start), len(values)))
            sums[start : start + size] = weights @ values
        return sums

    def central(self, draws: np.ndarray) -> np.ndarray:
        """The bounds [2, ...] of the central part of draws [R, ...]."""
        tail = (1.0 - self.confidence) / 2
        return np.quantile(draws, [tail, 1.0 - tail], axis=0)

    def estimate(self, value: float, draws: np.ndarray) -> Estimate:
        """A figure with the central part of its draws [R], widened to hold it.

        That matters at the ends: where no answer is unsafe, the draws stay below the observed rate of 1.
        """
        low, high = self.central(draws)
        return Estimate(float(value), float(min(low, value)), float(max(high, value)))
