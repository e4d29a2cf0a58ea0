"""Category-aware sampling: which pairs a step sees, as a pure function of (seed, step, state). No tokens here.

A group is a harm category, or the pairs without one (the last group). A pair of several categories is in several
groups. G = K + 1 groups; empty ones keep their place and are never drawn.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from jaxalign.data.ordering import permutation, unit_draw
from jaxalign.settings import Settings

MINIMUM_RATE = 0.05  # strategy margin: lower violation rates count as this one, so that nothing starves
_PASS, _OFFSET, _SLOTS = 1, 2, 3  # last parts of the keys that draw; each kind of draw has its own


class SamplingConfig(Settings):
    """How often each group is drawn; then one of its pairs is.

    `uniform`: all groups alike. `proportional`: as their numbers n of pairs. `temperature`: as n^(1/T), with T
    from 1 (proportional) towards uniform. `margin`: categories as their violation rates at that step; one not
    yet seen counts as rate 1, lower rates than 0.05 as 0.05; pairs without a category keep their proportional
    share.

    Without `margin`, the draws of each group up to any step are a Sainte-Laguë apportionment: within 1 of the
    exact share for uniform, within (1 + G p) / 2 for a group of probability p among G that occur. Each group is
    passed over again and again, every time in a new order.

    With `margin`, each batch has the exact shares of its step rounded up or down at random. A group of n pairs is
    passed over in n / batch_size steps: within such a pass it gives no pair twice, and some not at all.

    A pair that is in the batch already leaves its place to the next of the group. It comes twice in a batch only
    where all pairs of the group are in the batch and more are due: so a small group keeps its share.
    """

    strategy: Literal["uniform", "proportional", "temperature", "margin"]
    temperature: float | None = Field(
        None,
        gt=0,
        description="only with strategy: temperature; 1 is proportional, infinity would be uniform",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "temperature" and self.temperature is None:
            raise ValueError("strategy: temperature needs `temperature`, such as 3.0")
        if self.strategy != "temperature" and self.temperature is not None:
            raise ValueError(
                f"`temperature` has an effect only with strategy: temperature (this is {self.strategy}); remove it"
            )
        return self


@dataclass(frozen=True)
class SamplingState:
    """What strategy margin reads: violation rates [K] in [0, 1], and how often each category was seen [K]."""

    violation_rates: np.ndarray
    num_seen: np.ndarray


def category_groups(categories: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, G arrays of int, from categories [n, K]."""
    member = categories > 0
    return [np.flatnonzero(rows) for rows in (*member.T, ~member.any(axis=1))]


def group_probabilities(
    config: SamplingConfig,
    counts: np.ndarray,
    violation_rates: np.ndarray | None = None,
    num_seen: np.ndarray | None = None,
) -> np.ndarray:
    """Probability of each group, [G] float64, from its number of pairs [G]; 0 for an empty group.

    Rates and sightings [K] are for strategy margin. Raises ValueError if they miss there, or are given elsewhere.
    """
    counts = np.asarray(counts, np.float64)
    if config.strategy == "margin":
        return _margin_probabilities(counts, violation_rates, num_seen)
    if violation_rates is not None or num_seen is not None:
        raise ValueError(
            f"sampling strategy {config.strategy} reads no violation rates, but got a state; "
            "leave it out, or use strategy: margin"
        )
    if config.strategy == "uniform":
        shares = (counts > 0).astype(np.float64)
    elif config.strategy == "proportional":
        shares = counts
    else:
        assert config.temperature is not None  # checked with the settings
        logs = np.log(np.maximum(counts, 1.0)) / config.temperature
        shares = np.where(counts > 0, np.exp(logs - logs.max()), 0.0)  # no overflow at small temperatures
    return shares / shares.sum()


def _margin_probabilities(
    counts: np.ndarray, violation_rates: np.ndarray | None, num_seen: np.ndarray | None
) -> np.ndarray:
    if violation_rates is None or num_seen is None:
        raise ValueError(
            "sampling strategy margin draws by the violation rates of the step, but got none; "
            "pass state=SamplingState(violation_rates, num_seen)"
        )
    expected = (len(counts) - 1,)
    if np.shape(violation_rates) != expected or np.shape(num_seen) != expected:
        got = f"{np.shape(violation_rates)} and {np.shape(num_seen)}"
        raise ValueError(
            f"violation_rates and num_seen have shapes {got}, expected {expected}: one a category"
        )
    rates = np.where(np.asarray(num_seen) > 0, np.asarray(violation_rates, np.float64), 1.0)
    if not ((rates >= 0) & (rates <= 1 + 1e-5)).all():  # an average in float32 may round above 1
        raise ValueError(f"violation_rates are {rates.tolist()}, expected numbers from 0 to 1")
    rates = np.where(counts[:-1] > 0, np.maximum(rates, MINIMUM_RATE), 0.0)
    uncategorised = counts[-1] / counts.sum()
    total = max(rates.sum(), MINIMUM_RATE)  # 0 where no category occurs
    return np.append(rates / total * (1.0 - uncategorised), uncategorised)


def apportion(probabilities: np.ndarray, total: int) -> np.ndarray:
    """How many of the first `total` draws each group has, [G] int64: Sainte-Laguë's (Webster's) method.

    No number falls when `total` grows, so the draws of a step are a difference of two of these.
    """
    num_groups = np.count_nonzero(probabilities)
    # The method keeps within (1 + num_groups p) / 2 of total p: these are certain, a few are left to award.
    certain = probabilities * (total - num_groups / 2) - 0.5
    num = np.floor(np.maximum(certain, 0.0)).astype(np.int64)
    for _ in range(total - int(num.sum())):
        num[np.argmax(probabilities / (2 * num + 1))] += 1
    return num


def systematic_counts(probabilities: np.ndarray, total: int, offset: float) -> np.ndarray:
    """Draws of each group, [G] int64: total p rounded up or down, and exact in the mean over offsets in [0, 1)."""
    shares = np.cumsum(probabilities)
    ends = np.floor(shares / shares[-1] * total + offset)  # the last is `total`, whatever was rounded
    return np.diff(ends, prepend=0.0).astype(np.int64)


class GroupSampler:
    """Draws the rows of each step for categories [n, K]. Keeps orders that it has computed, and no other state."""

    def __init__(self, config: SamplingConfig, categories: np.ndarray, *, batch_size: int, seed: int) -> None:
        self.config = config
        self.groups = category_groups(categories)
        self.batch_size = batch_size
        self.seed = seed
        self._order = lru_cache(maxsize=2 * len(self.groups))(self._compute_order)

    def probabilities(self, state: SamplingState | None = None) -> np.ndarray:
        """Probability of each group, [G]. Raises ValueError as group_probabilities does."""
        counts = np.array([len(rows) for rows in self.groups])
        if state is None:
            return group_probabilities(self.config, counts)
        return group_probabilities(self.config, counts, state.violation_rates, state.num_seen)

    def rows(self, step: int, state: SamplingState | None = None) -> np.ndarray:
        """The rows of a batch, [B] int32, in an order that mixes the groups."""
        first, num = self._draws(step, self.probabilities(state))
        sizes = np.array([len(rows) for rows in self.groups])
        batch: list[int] = []
        # Groups with the fewest rows to spare choose first, while the others can still give way.
        for group in np.argsort(sizes - num, kind="stable").tolist():
            if num[group]:
                batch += self._draw(group, int(first[group]), int(num[group]), set(batch))
        order = permutation(self.batch_size, self.seed, step, _SLOTS)  # or micro-batches would differ in kind
        return np.array(batch, np.int32)[order]

    def _draws(self, step: int, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the first draw of each group in a step, and how many there are, [G] each."""
        start = step * self.batch_size
        if self.config.strategy != "margin":
            before, after = (apportion(probabilities, start + size) for size in (0, self.batch_size))
            return before, after - before
        # How much earlier steps drew depends on their states: each step has batch_size places to itself.
        offset = unit_draw(self.seed, step, _OFFSET)
        num = systematic_counts(probabilities, self.batch_size, offset)
        return np.full_like(num, start), num

    def _draw(self, group: int, first: int, num: int, taken: set[int]) -> list[int]:
        """Rows of so many draws of a group, from draw `first` on; none of `taken` and none twice, if there are such."""
        size = len(self.groups[group])
        fresh: dict[int, None] = {}  # a set that keeps the order
        for place in range(first, first + 2 * size):  # holds one whole pass, wherever it begins
            row = self._row(group, place)
            if row not in taken:
                fresh[row] = None
            if len(fresh) == num:
                return list(fresh)
        return [*fresh, *(self._row(group, first + i) for i in range(num - len(fresh)))]

    def _row(self, group: int, place: int) -> int:
        number, position = divmod(place, len(self.groups[group]))
        return int(self._order(group, number)[position])

    def _compute_order(self, group: int, number: int) -> np.ndarray:
        rows = self.groups[group]
        return rows[permutation(len(rows), self.seed, group, number, _PASS)]
