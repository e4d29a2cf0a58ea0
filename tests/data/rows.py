"""Data sets of given lengths, and what lies in rows, read back token by token. No tests here."""

from typing import Any

import jax
import numpy as np

from jaxalign.batch import CHOSEN, PROMPT, Rows
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.packing import RowShape

LAYOUTS = [(layout, share) for layout in ("packed", "padded") for share in (True, False)]


def make_dataset(lengths: Any, num_categories: int = 2, seed: int = 0) -> TokenizedDataset:
    """Pairs of lengths [n, 3] (prompt, chosen, rejected) with random tokens, labels and reference figures."""
    lengths = np.asarray(lengths)
    rng = np.random.default_rng(seed)
    num = len(lengths)
    parts = [tuple(rng.integers(2, 1000, n).astype(np.int32) for n in part) for part in lengths.T.tolist()]
    labels = rng.integers(0, 2, (num, num_categories + 2)).astype(np.float32)
    return TokenizedDataset(
        prompt_ids=parts[0],
        chosen_ids=parts[1],
        rejected_ids=parts[2],
        categories=labels[:, 2:],
        chosen_unsafe=labels[:, 0],
        rejected_unsafe=labels[:, 1],
        category_names=tuple(f"category {k}" for k in range(num_categories)),
        pad_id=1,
        empty_prompt_ids=np.array([7, 8], np.int32),
        origins=tuple(f"test:{i + 1}" for i in range(num)),
        num_cut=np.zeros((num, 3), np.int32),
        skipped=(),
        reference_logps=rng.normal(size=(num, 2)).astype(np.float32),
        mi=rng.normal(size=(num, 2)).astype(np.float32),
    )


def long_tailed(num: int, seed: int = 0, longest: int = 60) -> np.ndarray:
    """Lengths [num, 3] of which most are small."""
    drawn = np.random.default_rng(seed).lognormal(2, 0.8, (num, 3))
    return np.clip(drawn, 1, longest).astype(int)


def micro_batch(rows: Rows, m: int) -> Rows:
    """One micro-batch of stacked rows."""
    return jax.tree.map(lambda array: array[m], rows)


def said(rows: Rows, shape: RowShape) -> dict[int, list[tuple[int, int, int]]]:
    """(row, column of the predictor, target) of each response 2 * pair + branch, of one micro-batch, in order."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for group, slot in zip(*np.nonzero(rows.response >= 0), strict=True):
        row, column = divmod(int(rows.predictor[group, slot]), shape.length)
        row += group * (shape.num_rows // shape.num_groups)
        entry = (row, column, int(rows.target[group, slot]))
        found.setdefault(int(rows.response[group, slot]), []).append(entry)
    return found


def followed(rows: Rows, row: int, column: int, branch: int) -> tuple[list[int], list[int]]:
    """The tokens of the segment at a place that `branch` sees, and their positions."""
    segment = rows.places.segment[row]
    branches = rows.places.branch[row]
    seen = (segment == segment[column]) & ((branches == PROMPT) | (branches == branch))
    return rows.tokens[row][seen].tolist(), rows.places.position[row][seen].tolist()


def assert_holds_pairs(rows: Rows, dataset: TokenizedDataset, index: np.ndarray, shape: RowShape) -> None:
    """The rows of a micro-batch hold exactly the pairs of `index` [B], and say how each response token is predicted."""
    found = said(rows, shape)
    total = 0
    for pair, number in enumerate(index.tolist()):
        if number < 0:
            assert not {2 * pair, 2 * pair + 1} & set(found)
            continue
        prompt = dataset.prompt_ids[number]
        ends = set()
        for branch, response in enumerate((dataset.chosen_ids[number], dataset.rejected_ids[number])):
            entries = found[2 * pair + branch]
            row, column, _ = entries[0]
            tokens, positions = followed(rows, row, column, CHOSEN + branch)
            assert tokens == [*prompt, *response]
            assert positions == list(range(len(tokens)))
            assert [target for *_, target in entries] == response.tolist()
            predicted = [(r, rows.places.position[r, c]) for r, c, _ in entries]
            assert predicted == [(row, len(prompt) - 1 + i) for i in range(len(response))]
            ends.add((row, column))
            total += len(response)
        total += len(prompt) * len(ends)  # one end of the prompt for both responses, where it is shared
    assert (rows.places.segment > 0).sum() == total
    padding = rows.places.segment == 0
    assert (rows.tokens[padding] == dataset.pad_id).all()
    assert not rows.places.branch[padding].any()
    assert not rows.places.position[padding].any()
