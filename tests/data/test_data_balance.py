"""Laws of balance: every item once, equal counts, nearly equal sizes, another dealing for another key."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.balance import balanced_batches, deal
from tests.data.rows import long_tailed


def sizes_of(num: int, seed: int = 0) -> np.ndarray:
    lengths = long_tailed(num, seed, longest=500)
    return np.stack([lengths.sum(axis=1), lengths[:, 1:].sum(axis=1)], axis=1)


def totals(batches: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([sizes, np.zeros_like(sizes[:1])])[batches].sum(axis=1)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=60),
    num_batches=st.integers(1, 20),
    key=st.integers(0, 99),
)
def test_every_item_is_in_one_batch_and_counts_are_equal(sizes: list, num_batches: int, key: int) -> None:
    batches = balanced_batches(np.array(sizes), num_batches, key)
    assert batches.shape == (num_batches, -(-len(sizes) // num_batches))
    assert sorted(batches[batches >= 0].tolist()) == list(range(len(sizes)))
    counts = (batches >= 0).sum(axis=1)
    assert counts.max() - counts.min() <= 1
    for batch, count in zip(batches, counts, strict=True):
        assert (batch[:count] >= 0).all()  # none comes last


@pytest.mark.parametrize(
    ("num", "num_batches", "spread"), [(641, 20, 0.01), (640, 80, 0.1), (5000, 80, 0.01)]
)
def test_all_kinds_of_sizes_are_nearly_equal(num: int, num_batches: int, spread: float) -> None:
    sizes = sizes_of(num)
    load = totals(balanced_batches(sizes, num_batches, 1, 2), sizes)
    assert (load.max(axis=0) <= (1 + spread) * load.mean(axis=0)).all()


def test_dealing_depends_on_the_key_alone() -> None:
    sizes = sizes_of(100)
    first = balanced_batches(sizes, 7, 5, 1)
    np.testing.assert_array_equal(first, balanced_batches(sizes, 7, 5, 1))
    for key in ((5, 2), (6, 1)):
        assert (first != balanced_batches(sizes, 7, *key)).any()


def test_who_comes_together_is_nearly_random() -> None:
    """Two epochs repeat hardly more couples than independent ones would."""
    num, num_batches = 640, 10
    sizes = sizes_of(num)
    together = []
    for epoch in range(4):
        batch_of = np.empty(num, int)
        for number, batch in enumerate(balanced_batches(sizes, num_batches, 0, epoch)):
            batch_of[batch] = number
        together.append((batch_of[:, None] == batch_of) & ~np.eye(num, dtype=bool))
    rate = np.mean([each.mean() for each in together])
    repeated = np.mean([(a & b).mean() for a, b in itertools.pairwise(together)])
    assert repeated < 1.1 * rate**2


def test_place_of_an_item_says_nothing_about_its_size() -> None:
    sizes = sizes_of(4000)
    batches = np.concatenate([balanced_batches(sizes, 500, 3, epoch) for epoch in range(4)])
    by_place = sizes[batches, 0].mean(axis=0)
    assert np.ptp(by_place) < 0.2 * by_place.mean()


def test_largest_of_a_stratum_goes_to_the_emptiest_batch() -> None:
    assert deal(np.array([[[9, 5, 1], [1, 2, 3], [4, 4, 4]]])).tolist() == [
        [[0, 1, 2], [0, 1, 2], [2, 1, 0]],
    ]


def test_problems_are_dealt_each_by_itself() -> None:
    sizes = np.random.default_rng(0).integers(0, 50, (6, 4, 3))
    together = deal(sizes)
    for alone, one in zip(together, sizes, strict=True):
        np.testing.assert_array_equal(deal(one[None])[0], alone)
