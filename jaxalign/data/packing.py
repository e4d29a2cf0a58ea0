"""Which row each item of a micro-batch lies in, and the one shape of rows for a whole run. Lengths only, no tokens.

X micro-batches of I items each. An item is what stays together in a row: a pair, or one prompt with one response.
"""

from dataclasses import dataclass

import numpy as np

from jaxalign.data.balance import deal


@dataclass(frozen=True)
class RowShape:
    """The shape of the rows of every micro-batch of a run.

    num_targets counts the response tokens of a group of rows. unfolded_length is what a row would need if each
    response had a prompt of its own; it is `length` where that is so already.
    """

    num_rows: int
    length: int
    num_groups: int
    num_targets: int
    unfolded_length: int


@dataclass(frozen=True)
class Items:
    """Tokens of items, int64 arrays of one shape: prompt, chosen and rejected last, [..., 3]; 0 where it has none."""

    parts: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each item."""
        return self.parts.sum(axis=-1)

    @property
    def responses(self) -> np.ndarray:
        """Response tokens of each item."""
        return self.parts[..., 1:].sum(axis=-1)

    @property
    def unfolded(self) -> np.ndarray:
        """Tokens of each item if each response had a prompt of its own."""
        both = (self.parts[..., 1:] > 0).all(axis=-1)
        return self.tokens + both * self.parts[..., 0]

    def select(self, index: np.ndarray) -> "Items":
        """The items [X, B * k, 3] of micro-batches of pairs, [X, B], from items [n, k, 3]; no tokens for pair -1."""
        parts = np.where(index[..., None, None] < 0, 0, self.parts[index])
        return Items(parts.reshape(len(index), -1, 3))


def best_fit(tokens: np.ndarray, num_rows: int, length: int) -> np.ndarray:
    """The row of each item, [X, I] int64: longest first into the fullest row that has room; -1 where none has."""
    num, num_items = tokens.shape
    space = np.full((num, num_rows), length, np.int64)
    rows = np.full((num, num_items), -1)
    every = np.arange(num)
    for item in np.argsort(-tokens, axis=1, kind="stable").T:
        left = space - tokens[every, item][:, None]
        row = np.where(left >= 0, left, length + 1).argmin(axis=1)
        fits = left[every, row] >= 0
        rows[every, item] = np.where(fits, row, -1)
        space[every[fits], row[fits]] = left[every[fits], row[fits]]
    return rows


def even_groups(rows: np.ndarray, responses: np.ndarray, num_rows: int, num_groups: int) -> np.ndarray:
    """The same rows [X, I] renumbered so that groups of neighbours hold about as many response tokens."""
    load = sum_by_row(rows, responses, num_rows)
    order = np.argsort(-load, axis=1, kind="stable")
    strata = np.take_along_axis(load, order, axis=1).reshape(len(load), -1, num_groups)
    group = deal(strata)
    depth = strata.shape[1]
    number = np.empty_like(order)
    np.put_along_axis(number, order, (group * depth + np.arange(depth)[:, None]).reshape(order.shape), axis=1)
    return np.take_along_axis(number, rows, axis=1)


def sum_by_row(rows: np.ndarray, values: np.ndarray, num_rows: int) -> np.ndarray:
    """[X, num_rows] sums of values [X, I] over the items of each row."""
    flat = rows + num_rows * np.arange(len(rows))[:, None]
    sums = np.bincount(flat.ravel(), weights=values.ravel(), minlength=len(rows) * num_rows)
    return sums.astype(np.int64).reshape(len(rows), num_rows)


def place(items: Items, layout: str, shape: RowShape) -> np.ndarray:
    """The row of each item, [X, I] int64, from items [X, I, 3]: padded, one to a row in their order; or packed."""
    if layout == "padded":
        return np.broadcast_to(np.arange(items.tokens.shape[1]), items.tokens.shape)
    rows = best_fit(items.tokens, shape.num_rows, shape.length)
    return even_groups(rows, items.responses, shape.num_rows, shape.num_groups)


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple
