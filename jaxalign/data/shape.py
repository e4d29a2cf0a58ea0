"""The one shape of rows that holds every micro-batch of a run. Lengths only, no tokens."""

import dataclasses
from itertools import count, takewhile

import numpy as np

from jaxalign.data.packing import Items, RowShape, best_fit, place, round_up, sum_by_row
from jaxalign.errors import JaxalignError

TARGET_MULTIPLE = 8  # response tokens of a group are padded to a multiple of this
MOST_PADDING = 0.04  # shorter rows are preferred as long as they waste no more than this


class RowTooShortError(JaxalignError, ValueError):
    """A pair is longer than the rows that were asked for."""


def run_shape(
    items: Items,
    layout: str,
    *,
    num_groups: int,
    longest: int,
    length: int | None,
    multiple: int,
    name: str = "the longest pair",
) -> RowShape:
    """The shape for items [X, I, 3] of all micro-batches; `longest` item of the data, `length` of rows if given.

    Raises as `check_length` does.
    """
    check_length(length, longest, multiple, name)
    tokens = items.tokens
    num_rows, shortest = round_up(tokens.shape[1], num_groups), round_up(longest, multiple)
    if layout == "padded":
        length = length or shortest
    elif length is not None:
        num_rows = fewest_rows(tokens, length, num_groups)
    else:
        num_rows, length = search(tokens, num_groups, shortest, multiple)
    shape = RowShape(num_rows, length, num_groups, 0, length)
    rows = place(items, layout, shape)
    most_targets = sum_by_row(rows // (num_rows // num_groups), items.responses, num_groups).max()
    most_unfolded = sum_by_row(rows, items.unfolded, num_rows).max()
    return _completed(shape, items, int(most_targets), int(most_unfolded), multiple)


def any_shape(
    items: Items,
    size: int,
    *,
    num_groups: int,
    longest: int,
    length: int | None,
    multiple: int,
    name: str = "the longest pair",
) -> RowShape:
    """The padded shape that holds any micro-batch of `size` of the pairs with items [n, k, 3].

    Raises as `check_length` does.
    """
    check_length(length, longest, multiple, name)
    num_items = size * items.tokens.shape[1]
    num_rows, length = round_up(num_items, num_groups), length or round_up(longest, multiple)
    shape = RowShape(num_rows, length, num_groups, 0, length)
    most_targets = min(num_items, num_rows // num_groups) * int(items.responses.max())
    return _completed(shape, items, most_targets, int(items.unfolded.max()), multiple)


def check_length(length: int | None, longest: int, multiple: int, name: str) -> None:
    """Raise ValueError for rows that the devices cannot use, RowTooShortError if the longest pair does not fit.

    `name` is what the message calls that pair.
    """
    if length is None:
        return
    if length % multiple:
        near = [n for n in (length // multiple * multiple, round_up(length, multiple)) if n]
        raise ValueError(
            f"rows.length={length} is not a multiple of {multiple}, which these devices need; nearest: "
            + " or ".join(str(n) for n in near)
        )
    if longest > length:
        raise RowTooShortError(
            f"{name} has {longest} tokens, but rows.length={length}; "
            "raise rows.length or lower data.max_prompt_length and data.max_response_length"
        )


def _completed(
    shape: RowShape, items: Items, most_targets: int, most_unfolded: int, multiple: int
) -> RowShape:
    unfolded = shape.length
    if (items.unfolded > items.tokens).any():
        # Longer than a row even where that is not needed: equal lengths say that no prompt is shared.
        unfolded = max(round_up(most_unfolded, multiple), shape.length + multiple)
    num_targets = round_up(max(most_targets, 1), TARGET_MULTIPLE)
    return dataclasses.replace(shape, num_targets=num_targets, unfolded_length=unfolded)


def fewest_rows(tokens: np.ndarray, length: int, num_groups: int) -> int:
    """The fewest rows of a length, a multiple of num_groups, that hold every micro-batch [X, I] by best fit.

    Raises RowTooShortError for an item that is longer than a row.
    """
    if tokens.max() > length:
        raise RowTooShortError(f"an item has {tokens.max()} tokens, but a row {length}; make rows longer")
    least = round_up(max(1, -(-int(tokens.sum(axis=1).max()) // length)), num_groups)
    most = round_up(tokens.shape[1], num_groups)  # enough: a row for each item
    return next(num for num in range(least, most + 1, num_groups) if fits(tokens, num, length))


def shortest_length(
    tokens: np.ndarray, num_rows: int, shortest: int, multiple: int, at_most: float = np.inf
) -> int | None:
    """The least multiple for which so many rows hold every micro-batch [X, I] by best fit; None if above `at_most`."""
    least = max(shortest, round_up(-(-int(tokens.sum(axis=1).max()) // num_rows), multiple))
    lengths = takewhile(lambda length: length <= at_most, count(least, multiple))
    return next((length for length in lengths if fits(tokens, num_rows, length)), None)


def search(tokens: np.ndarray, num_groups: int, shortest: int, multiple: int) -> tuple[int, int]:
    """Number and length of rows: about the shortest that waste at most MOST_PADDING; where none do, the least waste."""
    mean = float(tokens.sum(axis=1).mean())
    enough = mean / (1 - MOST_PADDING)
    numbers = _numbers_of_rows(max(num_groups, int(enough / shortest)), num_groups)
    for num_rows in numbers:
        length = shortest_length(tokens, num_rows, shortest, multiple, at_most=enough / num_rows)
        if length is not None:
            return num_rows, length
    best, places = (0, 0), np.inf
    for num_rows in reversed(numbers):  # few rows always serve
        length = shortest_length(tokens, num_rows, shortest, multiple, at_most=places / num_rows)
        if length is not None:
            best, places = (num_rows, length), num_rows * length
    return best


def _numbers_of_rows(most: int, num_groups: int) -> list[int]:
    """Multiples of num_groups from about `most` down to one of each, a twentieth less each time."""
    numbers = [most // num_groups]
    while numbers[-1] > 1:
        numbers.append(min(numbers[-1] - 1, numbers[-1] * 19 // 20))
    return [number * num_groups for number in numbers]


def fits(tokens: np.ndarray, num_rows: int, length: int) -> bool:
    """Whether best fit finds room for every item of every micro-batch [X, I]."""
    fullest = tokens[np.argsort(-tokens.sum(axis=1), kind="stable")[:16]]  # most trials fail here already
    return all((best_fit(part, num_rows, length) >= 0).all() for part in (fullest, tokens))
