"""Batches as a pure function of (seed, step), the same global batch on every host. No devices here.

Sampling by violation rates makes it one of (seed, step, state).
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.ordering import permutation
from jaxalign.data.sampling import GroupSampler, SamplingConfig, SamplingState


def padded_length(datasets: Iterable[TokenizedDataset], multiple: int = 16) -> int:
    """The shortest row length that holds every pair of all data sets and is a multiple."""
    longest = max(int(dataset.row_lengths.max()) for dataset in datasets)
    return -(-longest // multiple) * multiple


class PairLoader:
    """Serves padded batches of a data set; step counts from 0 over all epochs.

    Each epoch is one permutation of all pairs, drawn from (seed, epoch); unshuffled, the order of the data
    set. Its last batch is filled up with pairs of weight 0. With `sampling`, every batch is full, its pairs are
    drawn by category, and an epoch is just that number of steps. Raises ValueError if a pair is longer than a row.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        *,
        batch_size: int,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        num_epochs: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> None:
        if batch_size < 1 or (num_epochs is not None and num_epochs < 1):
            raise ValueError(f"batch_size={batch_size} and num_epochs={num_epochs} must be at least 1")
        if sampling is not None and not shuffle:
            raise ValueError(
                "shuffle=False has no effect with sampling, which draws the pairs; give one of them"
            )
        row_lengths = dataset.row_lengths
        longest = int(row_lengths.argmax())
        if row_lengths[longest] > length:
            raise ValueError(
                f"pair {dataset.origins[longest]} has {row_lengths[longest]} tokens, but length={length}; "
                "raise the length or lower data.max_prompt_length and data.max_response_length"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.num_epochs = num_epochs
        self.sampling = sampling
        self._order = lru_cache(maxsize=2)(self._compute_order)
        self._sampler = (
            GroupSampler(sampling, dataset.categories, batch_size=batch_size, seed=seed) if sampling else None
        )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the partial one included."""
        return -(-len(self.dataset) // self.batch_size)

    @property
    def num_steps(self) -> int | None:
        """Batches in all epochs, None if they never end."""
        return None if self.num_epochs is None else self.num_epochs * self.steps_per_epoch

    @property
    def needs_state(self) -> bool:
        """Whether batches depend on a SamplingState: under strategy margin alone."""
        return self.sampling is not None and self.sampling.strategy == "margin"

    def indices(self, step: int, state: SamplingState | None = None) -> np.ndarray:
        """The rows of the data set in a batch, [B] int32, -1 for padding.

        Raises IndexError past the end, ValueError for a state where none is read or none where one is.
        """
        if step < 0 or (self.num_steps is not None and step >= self.num_steps):
            raise IndexError(f"step {step} is outside the {self.num_steps} steps of {self.num_epochs} epochs")
        if self._sampler is not None:
            return self._sampler.rows(step, state)
        if state is not None:
            raise ValueError("without sampling no state is read, but got one; leave it out, or give sampling")
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[position * self.batch_size :][: self.batch_size]
        return np.pad(rows, (0, self.batch_size - len(rows)), constant_values=-1).astype(np.int32)

    def batch(self, step: int, state: SamplingState | None = None) -> PairBatch:
        """The global batch of a step, as numpy arrays. Raises as `indices` does."""
        return pad_batch(self.dataset, self.indices(step, state), self.length)

    def _compute_order(self, epoch: int) -> np.ndarray:
        return (
            permutation(len(self.dataset), self.seed, epoch) if self.shuffle else np.arange(len(self.dataset))
        )


def pad_batch(dataset: TokenizedDataset, index: np.ndarray, length: int) -> PairBatch:
    """The pairs of an index, [B] int32, in rows of `length` tokens; -1 gives an empty pair of weight 0."""
    tokens = np.full((len(index), 2, length), dataset.pad_id, np.int32)
    response_mask = np.zeros((len(index), 2, length), bool)
    for b, row in enumerate(index.tolist()):
        if row < 0:
            continue
        prompt = dataset.prompt_ids[row]
        for branch, response in enumerate((dataset.chosen_ids[row], dataset.rejected_ids[row])):
            end = len(prompt) + len(response)
            tokens[b, branch, :end] = np.concatenate([prompt, response])
            response_mask[b, branch, len(prompt) : end] = True
    weight = (index >= 0).astype(np.float32)

    def values(array: np.ndarray | None) -> np.ndarray:
        if array is None:
            return np.zeros((len(index), 2), np.float32)
        return np.where(weight[:, None] > 0, array[index], 0.0).astype(np.float32)

    return PairBatch(
        tokens=tokens,
        response_mask=response_mask,
        categories=dataset.categories[index] * weight[:, None],
        chosen_unsafe=dataset.chosen_unsafe[index] * weight,
        rejected_unsafe=dataset.rejected_unsafe[index] * weight,
        weight=weight,
        reference_logps=values(dataset.reference_logps),
        mi=values(dataset.mi),
        scores=values(dataset.scores),
        index=index,
    )
