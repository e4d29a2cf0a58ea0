"""Batches of a run in rows of one shape, the same global batch on every host. No devices here."""

import copy

import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.layout import RowLayout
from jaxalign.data.packing import RowShape
from jaxalign.data.sampling import SamplingConfig, SamplingState
from jaxalign.data.schedule import PairSchedule
from jaxalign.data.settings import RowsConfig


class PairLoader:
    """Serves the batches of a run, whose micro-batches are stacked; see PairSchedule for which pairs come when.

    All rows of a run have one shape: the smallest for which every micro-batch finds room. With `alone`, batches
    also have rows of the responses after the empty prompt. Raises ValueError, before anything is served, for a
    pair longer than a row or without a prompt and for options that do not fit together.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        batch_size: int,
        rows: RowsConfig,
        num_micro_batches: int = 1,
        num_groups: int = 1,
        multiple: int = 32,
        num_steps: int | None = None,
        num_epochs: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        sampling: SamplingConfig | None = None,
        alone: bool = False,
    ) -> None:
        lengths = dataset.lengths.astype(np.int64)
        self.dataset = dataset
        self._response_lengths = lengths[:, 1:].astype(np.int32)
        # Rows cost by all of their tokens, the head by those of responses. The same for all layouts: so that the
        # layout decides nothing about which pairs come together.
        sizes = np.stack([lengths.sum(axis=1), lengths[:, 1:].sum(axis=1)], axis=1)
        self._schedule = PairSchedule(
            sizes,
            dataset.categories,
            batch_size=batch_size,
            num_micro_batches=num_micro_batches,
            num_steps=num_steps,
            num_epochs=num_epochs,
            seed=seed,
            shuffle=shuffle,
            sampling=sampling,
        )
        self.steps_per_epoch = self._schedule.steps_per_epoch
        self.num_steps = self._schedule.num_steps
        self.needs_state = self._schedule.needs_state
        self.sampling = sampling
        size = batch_size // num_micro_batches
        known = None if self.needs_state else self._all_micro_batches(size)

        def layout(part: TokenizedDataset) -> RowLayout:
            return RowLayout(part, rows, known, size, num_groups=num_groups, multiple=multiple)

        self._layout = layout(dataset)
        self._alone = layout(dataset.without_prompts()) if alone else None

    @property
    def shape(self) -> RowShape:
        """The shape of the rows of every micro-batch."""
        return self._layout.shape

    @property
    def alone_shape(self) -> RowShape | None:
        """The shape of the rows of responses alone; None without `alone`."""
        return None if self._alone is None else self._alone.shape

    @property
    def padding(self) -> float | None:
        """The share of row tokens that are padding, over the whole run; None if its pairs depend on a state."""
        return self._layout.padding

    @property
    def longest(self) -> tuple[str, int]:
        """The pair with the most tokens in a row: where it is from, and how many."""
        return self._layout.longest

    def over(self, dataset: TokenizedDataset) -> "PairLoader":
        """The same batches of a data set that has other figures (reference_logps, mi, scores) beside the same pairs."""
        other = copy.copy(self)
        other.dataset = dataset
        return other

    def indices(self, step: int, state: SamplingState | None = None) -> np.ndarray:
        """The pairs of the micro-batches of a step, [M, B] int32, -1 for padding; raises as PairSchedule does."""
        return self._schedule.indices(step, state)

    def batch(self, step: int, state: SamplingState | None = None) -> PairBatch:
        """The global batch of a step, as numpy arrays [M, ...]. Raises as `indices` does."""
        index = self.indices(step, state)
        data = self.dataset
        weight = (index >= 0).astype(np.float32)

        def of_pairs(array: np.ndarray | None) -> np.ndarray:
            if array is None:
                return np.zeros((*index.shape, 2), np.float32)
            real = weight.reshape(*index.shape, *[1] * (array.ndim - 1)) > 0
            return np.where(real, array[index], array.dtype.type(0))

        return PairBatch(
            rows=self._layout.rows(index),
            alone=None if self._alone is None else self._alone.rows(index),
            lengths=of_pairs(self._response_lengths),
            categories=of_pairs(data.categories),
            chosen_unsafe=of_pairs(data.chosen_unsafe),
            rejected_unsafe=of_pairs(data.rejected_unsafe),
            weight=weight,
            reference_logps=of_pairs(data.reference_logps),
            mi=of_pairs(data.mi),
            scores=of_pairs(data.scores),
            index=index,
        )

    def _all_micro_batches(self, size: int) -> np.ndarray:
        """The pairs of every micro-batch of the run, [X, B]."""
        return np.concatenate([self.indices(step) for step in range(self.num_steps)]).reshape(-1, size)
