"""Laws of rows: in every layout they hold exactly the pairs, and say which place predicts which response token."""

from collections.abc import Sequence

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.loader import PairLoader
from jaxalign.data.settings import RowsConfig
from tests.data.rows import LAYOUTS, assert_holds_pairs, long_tailed, make_dataset, micro_batch

lengths_of_pairs = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=25
)


def make_loaders(lengths: Sequence, **options: object) -> list[PairLoader]:
    """A loader of each layout."""
    dataset = make_dataset(lengths)
    configs = [RowsConfig(layout=layout, share_prefix=share) for layout, share in LAYOUTS]
    settings_ = {"batch_size": 4, "multiple": 8, "num_epochs": 1} | options
    return [PairLoader(dataset, rows=config, **settings_) for config in configs]


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_of_pairs,
    size=st.integers(1, 5),
    num_micro_batches=st.integers(1, 3),
    num_groups=st.sampled_from([1, 2, 4]),
    num_epochs=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_rows_hold_exactly_the_same_pairs_in_all_layouts(
    lengths: list, size: int, num_micro_batches: int, num_groups: int, num_epochs: int, seed: int
) -> None:
    loaders = make_loaders(
        lengths,
        batch_size=size * num_micro_batches,
        num_micro_batches=num_micro_batches,
        num_groups=num_groups,
        num_epochs=num_epochs,
        seed=seed,
        alone=True,
    )
    seen = []
    for step in range(loaders[0].num_steps):
        for loader in loaders:
            batch, shape, alone = loader.batch(step), loader.shape, loader.alone_shape
            assert alone is not None
            assert batch.alone is not None
            np.testing.assert_array_equal(batch.index, loaders[0].indices(step))
            for rows, size_ in ((batch.rows, shape), (batch.alone, alone)):
                assert rows.tokens.shape == (num_micro_batches, size_.num_rows, size_.length)
                assert rows.target.shape == (num_micro_batches, num_groups, size_.num_targets)
            for m, index in enumerate(batch.index):
                assert_holds_pairs(micro_batch(batch.rows, m), loader.dataset, index, shape)
                without = loader.dataset.without_prompts()
                assert_holds_pairs(micro_batch(batch.alone, m), without, index, alone)
        seen.append(loaders[0].indices(step).ravel())
    together = np.concatenate(seen)
    counts = np.bincount(together[together >= 0], minlength=len(lengths))
    assert (counts == num_epochs).all()


@pytest.mark.parametrize("share", [True, False])
def test_padded_rows_stand_in_the_order_of_the_pairs(share: bool) -> None:
    loader = PairLoader(
        make_dataset(long_tailed(12)),
        rows=RowsConfig(layout="padded", share_prefix=share),
        batch_size=4,
        num_groups=2,
        num_epochs=1,
    )
    batch = loader.batch(0)
    assert loader.shape.num_rows == (4 if share else 8)
    for pair, number in enumerate(batch.index[0].tolist()):
        prompt, *responses = (
            part[number]
            for part in (loader.dataset.prompt_ids, loader.dataset.chosen_ids, loader.dataset.rejected_ids)
        )
        expected = (
            [[*prompt, *responses[0], *responses[1]]] if share else [[*prompt, *each] for each in responses]
        )
        for i, tokens in enumerate(expected):
            row = batch.rows.tokens[0, len(expected) * pair + i]
            assert row[: len(tokens)].tolist() == tokens


def test_padded_rows_are_filled_up_to_the_groups() -> None:
    (*_, loader) = make_loaders(long_tailed(9), batch_size=3, num_groups=4)
    assert loader.shape.num_rows == 8
    assert not loader.batch(0).rows.places.segment[0, 6:].any()


def test_segments_count_from_one_within_a_row() -> None:
    loader = make_loaders(long_tailed(40), batch_size=16)[0]
    for row in loader.batch(0).rows.places.segment[0]:
        assert np.array_equal(np.unique(row[row > 0]), np.arange(1, row.max() + 1))
        assert (np.diff(row[row > 0]) >= 0).all()


def test_arrays_have_the_types_of_rows() -> None:
    rows = make_loaders(long_tailed(9))[0].batch(0).rows
    arrays = jax.tree.leaves(rows)
    assert len(arrays) == 7
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


@pytest.mark.parametrize("share", [True, False])
def test_unfolded_length_holds_a_prompt_for_each_response(share: bool) -> None:
    lengths = long_tailed(60)
    loader = PairLoader(
        make_dataset(lengths), rows=RowsConfig(share_prefix=share), batch_size=16, num_epochs=2
    )
    needed = []
    for step in range(loader.num_steps):
        places = loader.batch(step).rows.places
        prompt_of_pair = (places.segment > 0) & (places.branch == 0)
        tokens = (places.segment > 0).sum(axis=-1) + share * prompt_of_pair.sum(axis=-1)
        needed.append(tokens.max())
    assert places.unfolded_length == loader.shape.unfolded_length
    if share:
        assert loader.shape.length < loader.shape.unfolded_length
        assert max(needed) <= loader.shape.unfolded_length < max(needed) + 32
    else:
        assert loader.shape.unfolded_length == loader.shape.length


def test_shared_prompts_are_told_from_whole_sequences_by_the_unfolded_length() -> None:
    """Even where unfolded rows would need no more places than there are."""
    lengths = [(1, 1, 1), (1, 1, 1), (1, 9, 9)]
    loader = PairLoader(make_dataset(lengths), rows=RowsConfig(layout="padded"), batch_size=3, num_epochs=1)
    assert (loader.shape.length, loader.shape.unfolded_length) == (32, 64)
