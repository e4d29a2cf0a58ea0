"""Which pairs each step sees, and in which micro-batches: a pure function of (seed, step) and of the pairs' lengths.

Sampling by violation rates makes it one of (seed, step, state). No tokens here.
"""

from functools import lru_cache

import numpy as np

from jaxalign.data.balance import balanced_batches
from jaxalign.data.sampling import GroupSampler, SamplingConfig, SamplingState

_MICRO_BATCHES = 4  # last part of the key that deals the pairs of a step to micro-batches


class PairSchedule:
    """The pairs of each step; steps count from 0 over all epochs.

    Each epoch holds every pair once. It has ceil(n / batch_size) steps, and all of its micro-batches have equal
    numbers of pairs (or one less) and nearly equal numbers of tokens: which pairs come together is drawn from
    (seed, epoch). Unshuffled, the pairs keep their order. With `sampling`, every batch is full, its pairs are
    drawn by category, and an epoch is just that number of steps.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        categories: np.ndarray,
        *,
        batch_size: int,
        num_micro_batches: int = 1,
        num_steps: int | None = None,
        num_epochs: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        sampling: SamplingConfig | None = None,
    ) -> None:
        """Pairs of sizes [n, D], tokens first, and categories [n, K]. Raises ValueError for numbers that do not fit."""
        _check(batch_size, num_micro_batches, num_steps, num_epochs)
        if sampling is not None and not shuffle:
            raise ValueError(
                "shuffle=False has no effect with sampling, which draws the pairs; give one of them"
            )
        if len(sizes) == 0:
            raise ValueError("the data set is empty; a schedule needs at least one pair")
        self.steps_per_epoch = -(-len(sizes) // batch_size)
        self.num_steps = num_steps or self.steps_per_epoch * (num_epochs or 1)
        self.sampling = sampling
        self._sizes, self._shuffle, self._seed = sizes, shuffle, seed
        self._shape = (num_micro_batches, batch_size // num_micro_batches)
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)
        self._sampler = (
            GroupSampler(sampling, categories, batch_size=batch_size, seed=seed) if sampling else None
        )

    @property
    def needs_state(self) -> bool:
        """Whether batches depend on a SamplingState: under strategy margin alone."""
        return self.sampling is not None and self.sampling.strategy == "margin"

    def indices(self, step: int, state: SamplingState | None = None) -> np.ndarray:
        """The pairs of the micro-batches of a step, [M, B] int32, -1 for padding.

        Raises IndexError past the end, ValueError for a state where none is read or none where one is.
        """
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside the {self.num_steps} steps of the run")
        if self._sampler is not None:
            return self._dealt(self._sampler.rows(step, state), step)
        if state is not None:
            raise ValueError("without sampling no state is read, but got one; leave it out, or give sampling")
        epoch, step = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[step]

    def _dealt(self, rows: np.ndarray, step: int) -> np.ndarray:
        """The pairs of a step, [*], in micro-batches [M, B]: how many of these there are changes no update."""
        num_micro_batches, size = self._shape
        rows = rows[rows >= 0]
        if num_micro_batches == 1:
            parts = np.arange(len(rows))[None]
        elif self._shuffle:
            parts = balanced_batches(self._sizes[rows], num_micro_batches, self._seed, step, _MICRO_BATCHES)
        else:
            parts = np.full((num_micro_batches, -(-len(rows) // num_micro_batches)), -1)
            for part, numbers in zip(
                parts, np.array_split(np.arange(len(rows)), num_micro_batches), strict=True
            ):
                part[: len(numbers)] = numbers
        pairs = np.where(parts < 0, -1, rows[parts])
        return np.pad(pairs, ((0, 0), (0, size - parts.shape[1])), constant_values=-1).astype(np.int32)

    def _compute_epoch(self, epoch: int) -> np.ndarray:
        """All steps of an epoch, [steps, M, B] int32."""
        steps = self.steps_per_epoch
        if self._shuffle:
            updates = list(balanced_batches(self._sizes, steps, self._seed, epoch))
        else:
            updates = np.array_split(np.arange(len(self._sizes)), steps)
        return np.stack([self._dealt(rows, epoch * steps + step) for step, rows in enumerate(updates)])


def _check(batch_size: int, num_micro_batches: int, num_steps: int | None, num_epochs: int | None) -> None:
    if (num_steps is None) == (num_epochs is None):
        raise ValueError(
            f"got num_steps={num_steps} and num_epochs={num_epochs}, expected exactly one of them: "
            "the shape of the rows depends on the whole run"
        )
    numbers = {
        "batch_size": batch_size,
        "num_micro_batches": num_micro_batches,
        "num_steps": num_steps,
        "num_epochs": num_epochs,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
    if batch_size % num_micro_batches:
        raise ValueError(f"batch_size={batch_size} is not divisible by num_micro_batches={num_micro_batches}")
