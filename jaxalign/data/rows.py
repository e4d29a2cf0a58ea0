"""Builds the token rows of micro-batches from items and the row that each one lies in. Knows nothing of steps."""

import numpy as np

from jaxalign.batch import CHOSEN, PROMPT, REJECTED, Places, Rows
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.packing import Items, RowShape


def pair_items(lengths: np.ndarray, *, share_prefix: bool) -> Items:
    """The items of pairs with lengths [n, 3] (prompt, chosen, rejected): [n, 1, 3], or [n, 2, 3] without sharing."""
    parts = lengths.astype(np.int64)[:, None]
    if share_prefix:
        return Items(parts)
    return Items(parts * np.array([[1, 1, 0], [1, 0, 1]]))


def build_rows(
    dataset: TokenizedDataset, index: np.ndarray, items: Items, rows: np.ndarray, shape: RowShape
) -> Rows:
    """The rows of pairs `index` [M, B] (-1 for none) whose items [M, I, 3] lie in `rows` [M, I]; leaves [M, ...].

    Within a row items stand in their order. Items without tokens are left out.
    """
    num, num_items = rows.shape
    per_pair = num_items // index.shape[1]
    kept = np.flatnonzero(items.tokens.ravel())
    row = (rows + shape.num_rows * np.arange(num)[:, None]).ravel()[kept]
    kept, row = (array[np.argsort(row, kind="stable")] for array in (kept, row))
    parts = items.parts.reshape(-1, 3)[kept]

    start, segment = _columns(row, parts.sum(axis=1))
    sizes = parts.ravel()
    part = np.repeat(np.arange(sizes.size), sizes)
    item, branch = np.divmod(part, 3)
    within = np.arange(part.size) - (np.cumsum(sizes) - sizes)[part]
    # Where each token lies, counted over all rows of all micro-batches.
    before = np.cumsum(parts, axis=1) - parts
    place = (row * shape.length + start)[item] + before[item, branch] + within
    position = within + np.where(branch == PROMPT, 0, parts[item, 0])
    ids = np.concatenate([*_item_ids(dataset, index.ravel(), kept, per_pair), np.zeros(0, np.int32)])

    def scattered(values: np.ndarray, fill: int = 0) -> np.ndarray:
        array = np.full(num * shape.num_rows * shape.length, fill, np.int32)
        array[place] = values
        return array.reshape(num, shape.num_rows, shape.length)

    said = np.flatnonzero(branch != PROMPT)
    # The first token of either response is predicted by the last one of the prompt.
    last_of_prompt = (row * shape.length + start + parts[:, 0] - 1)[item[said]]
    predictor = np.where(within[said] == 0, last_of_prompt, place[said] - 1)
    pair = kept[item[said]] // per_pair % index.shape[1]
    return Rows(
        tokens=scattered(ids, dataset.pad_id),
        places=Places(
            scattered(segment[item]), scattered(branch), scattered(position), shape.unfolded_length
        ),
        **_grouped(predictor, ids[said], 2 * pair + branch[said] - CHOSEN, num, shape),
    )


def _columns(row: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First column and segment number (from 1) of items [N] sorted by their row [N]."""
    first = np.flatnonzero(np.diff(row, prepend=-1))
    leader = np.repeat(first, np.diff(first, append=len(row)))
    before = np.cumsum(tokens) - tokens
    return before - before[leader], np.arange(len(row)) - leader + 1


def _item_ids(
    dataset: TokenizedDataset, index: np.ndarray, kept: np.ndarray, per_pair: int
) -> list[np.ndarray]:
    """The token ids of the kept items, part by part."""
    sources = (dataset.prompt_ids, dataset.chosen_ids, dataset.rejected_ids)
    branches = [(PROMPT, CHOSEN, REJECTED)] if per_pair == 1 else [(PROMPT, CHOSEN), (PROMPT, REJECTED)]
    return [
        sources[branch][index[item // per_pair]]
        for item in kept.tolist()
        for branch in branches[item % per_pair]
    ]


def _grouped(
    predictor: np.ndarray, target: np.ndarray, response: np.ndarray, num: int, shape: RowShape
) -> dict[str, np.ndarray]:
    """Response tokens as [M, G, S] lists by group, from lists [*] in the order of the rows."""
    group, predictor = np.divmod(predictor, shape.num_rows // shape.num_groups * shape.length)
    first = np.searchsorted(group, np.arange(num * shape.num_groups))
    column = np.arange(len(group)) - first[group]

    def padded(values: np.ndarray, fill: int) -> np.ndarray:
        array = np.full((num * shape.num_groups, shape.num_targets), fill, np.int32)
        array[group, column] = values
        return array.reshape(num, shape.num_groups, shape.num_targets)

    return {
        "predictor": padded(predictor, 0),
        "target": padded(target, 0),
        "response": padded(response, -1),
    }
