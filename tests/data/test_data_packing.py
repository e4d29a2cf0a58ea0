"""Laws of packing: nothing is lost, rows are never too full, and a whole run has one shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.data.loader import PairLoader
from jaxalign.data.packing import best_fit, even_groups, sum_by_row
from jaxalign.data.sampling import SamplingConfig, SamplingState
from jaxalign.data.settings import RowsConfig
from jaxalign.data.shape import RowTooShortError, fewest_rows, fits, shortest_length
from tests.data.rows import LAYOUTS, long_tailed, make_dataset

sizes_of_items = st.tuples(st.integers(1, 5), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 50))
)


def make_loader(num: int = 200, **options: object) -> PairLoader:
    defaults = {"rows": RowsConfig(), "batch_size": 16, "num_epochs": 1, "multiple": 8}
    return PairLoader(make_dataset(long_tailed(num)), **(defaults | options))


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    tokens = np.array([[3, 6, 5, 4, 2]])
    assert best_fit(tokens, 2, 10).tolist() == [[1, 0, 1, 0, 1]]
    assert best_fit(tokens, 2, 9).tolist() == [[0, 0, 1, 1, -1]]


@settings(max_examples=100, deadline=None)
@given(tokens=sizes_of_items, num_rows=st.integers(1, 4), length=st.integers(50, 120))
def test_no_row_is_overfull(tokens: np.ndarray, num_rows: int, length: int) -> None:
    rows = best_fit(tokens, num_rows, length)
    for row, size in zip(rows, tokens, strict=True):
        load = np.bincount(row[row >= 0], weights=size[row >= 0], minlength=num_rows)
        assert (load <= length).all()
        assert all(load.min() + size[item] > length for item in np.flatnonzero(row < 0))


@settings(max_examples=100, deadline=None)
@given(tokens=sizes_of_items, num_groups=st.integers(1, 3))
def test_shapes_are_the_least_that_hold_every_micro_batch(tokens: np.ndarray, num_groups: int) -> None:
    num_rows = fewest_rows(tokens, 50, num_groups)
    assert num_rows % num_groups == 0
    assert fits(tokens, num_rows, 50)
    assert num_rows == num_groups or not fits(tokens, num_rows - num_groups, 50)
    length = shortest_length(tokens, num_rows, 8, 4)
    assert length % 4 == 0
    assert fits(tokens, num_rows, length)
    assert length == 8 or not fits(tokens, num_rows, length - 4)


def test_item_longer_than_a_row_ends_the_search_for_rows() -> None:
    with pytest.raises(RowTooShortError, match="an item has 30 tokens, but a row 20; make rows longer"):
        fewest_rows(np.array([[3, 30]]), 20, 1)


def test_micro_batches_are_packed_each_by_itself() -> None:
    tokens = np.random.default_rng(0).integers(0, 40, (20, 9))
    together = best_fit(tokens, 5, 60)
    for alone, size in zip(together, tokens, strict=True):
        np.testing.assert_array_equal(best_fit(size[None], 5, 60)[0], alone)


def test_groups_of_rows_are_renumbered_whole_and_evenly() -> None:
    rows = np.arange(8).repeat(2)[None]
    responses = np.array([[9, 9, 8, 8, 7, 7, 6, 6, 1, 1, 2, 2, 3, 3, 4, 4]])
    dealt = even_groups(rows, responses, 8, 2)
    assert sorted(dealt[0, ::2]) == list(range(8))
    np.testing.assert_array_equal(dealt[0, ::2], dealt[0, 1::2])
    assert np.ptp(sum_by_row(dealt // 4, responses, 2)) <= 2


def test_response_tokens_are_dealt_evenly_to_groups() -> None:
    loader = make_loader(400, batch_size=64, num_groups=4, num_epochs=2)
    real = np.array(
        [(loader.batch(step).rows.response >= 0).sum(axis=-1) for step in range(loader.num_steps)]
    )
    assert real.max() <= loader.shape.num_targets < real.max() + 8
    assert real.mean() > 0.9 * loader.shape.num_targets


@pytest.mark.parametrize(("layout", "share"), LAYOUTS)
def test_one_shape_serves_the_whole_run(layout: str, share: bool) -> None:
    loader = make_loader(
        50, rows=RowsConfig(layout=layout, share_prefix=share), num_epochs=3, num_micro_batches=2
    )
    shapes = set()
    for step in range(loader.num_steps):
        rows = loader.batch(step).rows
        shapes.add((rows.tokens.shape, rows.target.shape))
    expected = (2, loader.shape.num_rows, loader.shape.length), (2, 1, loader.shape.num_targets)
    assert shapes == {expected}


def test_padding_is_what_the_rows_of_the_run_waste() -> None:
    loader = make_loader(100, num_epochs=2)
    used = [(loader.batch(step).rows.places.segment > 0).mean() for step in range(loader.num_steps)]
    assert loader.padding == pytest.approx(1 - np.mean(used))
    assert loader.padding <= 0.05


def test_packing_wastes_less_than_padding() -> None:
    waste = [
        make_loader(rows=RowsConfig(layout=layout, share_prefix=share)).padding for layout, share in LAYOUTS
    ]
    assert max(waste[:2]) <= 0.05
    assert min(waste[2:]) >= 0.4


def test_given_length_is_used_and_rows_follow() -> None:
    loader = make_loader(rows=RowsConfig(length=160), num_groups=2)
    assert loader.shape.length == 160
    assert loader.shape.num_rows % 2 == 0
    assert loader.shape.num_rows > make_loader(rows=RowsConfig(length=320), num_groups=2).shape.num_rows
    padded = make_loader(rows=RowsConfig(layout="padded", length=160))
    assert padded.batch(0).rows.tokens.shape == (1, 16, 160)


def test_rows_without_a_given_length_are_short_but_not_wasteful() -> None:
    loader = make_loader(2000, batch_size=64)
    longest = int(loader.dataset.lengths.sum(axis=1).max())
    assert longest <= loader.shape.length <= 2 * longest
    assert loader.padding <= 0.05


@pytest.mark.parametrize(("share", "tokens"), [(True, 66), (False, 45)])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_pair_longer_than_a_row_is_an_error_at_start(layout: str, share: bool, tokens: int) -> None:
    dataset = make_dataset([(3, 4, 5), (20, 21, 25), (3, 3, 3)])
    rows = RowsConfig(layout=layout, share_prefix=share, length=40)
    message = (
        rf"pair test:2 has {tokens} tokens, but rows\.length=40; raise rows\.length or lower data\.max_prompt"
    )
    with pytest.raises(ValueError, match=message):
        PairLoader(dataset, rows=rows, batch_size=2, num_epochs=1, multiple=8)


def test_pair_without_a_prompt_is_an_error_at_start() -> None:
    with pytest.raises(ValueError, match="pair test:2 has a prompt of 0 tokens, expected at least 1"):
        PairLoader(make_dataset([(1, 1, 1), (0, 1, 1)]), rows=RowsConfig(), batch_size=2, num_epochs=1)


@pytest.mark.parametrize(("length", "nearest"), [(100, "96 or 128$"), (20, "32$")])
def test_length_that_is_no_multiple_is_an_error(length: int, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"rows.length={length} is not a multiple of 32.*nearest: {nearest}"):
        make_loader(rows=RowsConfig(length=length), multiple=32)


def test_group_numbers_below_one_are_errors() -> None:
    for options in ({"num_groups": 0}, {"multiple": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            make_loader(**options)


# Pairs that depend on the state of training


MARGIN = SamplingConfig(strategy="margin")


def test_packed_rows_of_pairs_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"margin draws pairs .* set rows\.layout: padded, or another"):
        make_loader(sampling=MARGIN)


def test_padded_rows_hold_any_pairs() -> None:
    lengths = [(2, 3, 4), (2, 30, 30), (2, 2, 2)]
    loader = PairLoader(
        make_dataset(lengths),
        rows=RowsConfig(layout="padded"),
        batch_size=8,
        num_groups=2,
        num_steps=4,
        sampling=MARGIN,
    )
    assert loader.padding is None
    assert loader.shape.num_targets == 4 * 60  # the longest pair in every place
    state = SamplingState(np.array([0.9, 0.1]), np.array([1, 1]))
    for step in range(4):
        rows = loader.batch(step, state).rows
        assert rows.response.shape == (1, 2, 240)
