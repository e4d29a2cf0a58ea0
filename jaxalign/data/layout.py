"""How the pairs of a data set lie in rows over a whole run: checked at start, one shape, then rows by index."""

from typing import Any

import numpy as np

from jaxalign.batch import Rows
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.packing import place
from jaxalign.data.rows import build_rows, pair_items
from jaxalign.data.settings import RowsConfig
from jaxalign.data.shape import any_shape, run_shape


class RowLayout:
    """Rows of one shape for all micro-batches [X, B] of a run; -1 for no pair.

    Where these are not known beforehand (None), rows must be padded, and hold any micro-batch of B pairs. Raises
    ValueError for options that do not fit together, and for a pair that is longer than a row or has no prompt.
    """

    def __init__(
        self,
        dataset: TokenizedDataset,
        config: RowsConfig,
        micro_batches: np.ndarray | None,
        micro_batch_size: int,
        *,
        num_groups: int,
        multiple: int,
    ) -> None:
        if num_groups < 1 or multiple < 1:
            raise ValueError(f"num_groups={num_groups} and multiple={multiple} must be at least 1")
        if micro_batches is None and config.layout == "packed":
            raise ValueError(
                "sampling strategy margin draws pairs that nobody knows beforehand, and packed rows are planned for "
                "the whole run; set rows.layout: padded, or another data.sampling.strategy"
            )
        self.config = config
        self._dataset = dataset
        self._items = pair_items(dataset.lengths, share_prefix=config.share_prefix)
        self._check_prompts()
        self.padding: float | None = None  # share of the run's row tokens that are padding, where it is known
        origin, tokens = self.longest
        sizes: dict[str, Any] = {
            "num_groups": num_groups,
            "multiple": multiple,
            "length": config.length,
            "longest": tokens,
            "name": f"pair {origin}",
        }
        if micro_batches is None:
            self.shape = any_shape(self._items, micro_batch_size, **sizes)
        else:
            items = self._items.select(micro_batches)
            self.shape = run_shape(items, config.layout, **sizes)
            places = len(micro_batches) * self.shape.num_rows * self.shape.length
            self.padding = 1.0 - float(items.tokens.sum()) / places

    @property
    def longest(self) -> tuple[str, int]:
        """The pair with the most tokens in a row: where it is from, and how many."""
        tokens = self._items.tokens.max(axis=1)
        pair = int(tokens.argmax())
        return self._dataset.origins[pair], int(tokens[pair])

    def rows(self, index: np.ndarray) -> Rows:
        """The rows of micro-batches of pairs `index` [M, B], stacked."""
        items = self._items.select(index)
        return build_rows(
            self._dataset, index, items, place(items, self.config.layout, self.shape), self.shape
        )

    def _check_prompts(self) -> None:
        empty = np.flatnonzero(self._items.parts[:, 0, 0] == 0)
        if empty.size:
            raise ValueError(
                f"pair {self._dataset.origins[empty[0]]} has a prompt of 0 tokens, expected at least 1 to predict "
                "the first response token; use a tokenizer with a first token, or drop the pair"
            )
