"""Laws of the loader: a pure function of (seed, step), every pair once an epoch, padding that counts nowhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.batch import PairBatch
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.sampling import SamplingConfig
from jaxalign.data.settings import DataConfig, RowsConfig
from jaxalign.data.tokenize import tokenize_pairs
from tests.data.rows import LAYOUTS, long_tailed, make_dataset

NUM = 10


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer: Any, make_pairs: Callable) -> TokenizedDataset:
    config = DataConfig(train=[{"format": "plain", "path": "unused.jsonl"}])
    return tokenize_pairs(make_pairs(NUM), tiny_tokenizer, config)


def make_loader(dataset: TokenizedDataset, **options: Any) -> PairLoader:
    defaults = {"batch_size": 4, "rows": RowsConfig(), "seed": 5}
    if "num_steps" not in options:
        defaults["num_epochs"] = 3
    return PairLoader(dataset, **(defaults | options))


def epoch_of(loader: PairLoader, epoch: int) -> np.ndarray:
    """The pairs of all steps of an epoch, [steps, M, B]."""
    first = epoch * loader.steps_per_epoch
    return np.array([loader.indices(first + step) for step in range(loader.steps_per_epoch)])


# Which pairs come when


@pytest.mark.parametrize(("layout", "share"), LAYOUTS)
def test_batch_depends_on_seed_and_step_alone(dataset: TokenizedDataset, layout: str, share: bool) -> None:
    rows = RowsConfig(layout=layout, share_prefix=share)
    first, second = (make_loader(dataset, rows=rows, num_micro_batches=2) for _ in range(2))
    batches = [first.batch(step) for step in range(9)]
    for step in (7, 0, 8, 3, 3):  # in any order, by a loader that has served nothing before
        chex.assert_trees_all_equal(second.batch(step), batches[step])


def test_order_differs_between_seeds(dataset: TokenizedDataset) -> None:
    first, second = (epoch_of(make_loader(dataset, seed=seed), 0) for seed in (5, 6))
    assert (first != second).any()


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 40),
    size=st.integers(1, 6),
    num_micro_batches=st.integers(1, 3),
    seed=st.integers(0, 99),
    shuffle=st.booleans(),
)
def test_epoch_holds_every_pair_once_in_even_batches(
    num: int, size: int, num_micro_batches: int, seed: int, shuffle: bool
) -> None:
    batch_size = size * num_micro_batches
    loader = make_loader(
        make_dataset(long_tailed(num)),
        batch_size=batch_size,
        num_micro_batches=num_micro_batches,
        seed=seed,
        shuffle=shuffle,
        num_epochs=2,
    )
    assert loader.steps_per_epoch == -(-num // batch_size)
    assert loader.num_steps == 2 * loader.steps_per_epoch
    for epoch in range(2):
        index = epoch_of(loader, epoch)
        assert index.shape == (loader.steps_per_epoch, num_micro_batches, size)
        assert sorted(index[index >= 0].tolist()) == list(range(num))
        counts = (index >= 0).sum(axis=-1)
        assert counts.max() - counts.min() <= 1


def test_epochs_have_new_orders() -> None:
    loader = make_loader(make_dataset(long_tailed(60)), batch_size=8)
    epochs = [epoch_of(loader, epoch) for epoch in range(3)]
    first, *others = [{frozenset(batch.ravel().tolist()) for batch in epoch} for epoch in epochs]
    assert not first.intersection(*others)


def test_same_pairs_come_together_in_every_layout_and_on_any_number_of_devices() -> None:
    dataset = make_dataset(long_tailed(50))
    loaders = [
        make_loader(dataset, rows=RowsConfig(layout=layout, share_prefix=share), num_groups=groups)
        for layout, share in LAYOUTS
        for groups in (1, 4)
    ]
    for loader in loaders[1:]:
        for epoch in range(3):
            np.testing.assert_array_equal(epoch_of(loader, epoch), epoch_of(loaders[0], epoch))


@pytest.mark.parametrize("sampling", [None, SamplingConfig(strategy="uniform")])
def test_pairs_of_an_update_do_not_depend_on_the_micro_batches(sampling: SamplingConfig | None) -> None:
    pairs = make_dataset(long_tailed(57))
    whole, parted = (
        make_loader(pairs, batch_size=12, num_micro_batches=num, num_steps=7, sampling=sampling)
        for num in (1, 4)
    )
    for step in range(7):
        assert sorted(whole.indices(step).ravel()) == sorted(parted.indices(step).ravel())
        sizes = (parted.indices(step) >= 0).sum(axis=1)
        assert sizes.max() - sizes.min() <= 1


def test_longer_run_begins_with_the_same_pairs() -> None:
    dataset = make_dataset(long_tailed(30))
    short, long = make_loader(dataset, num_steps=5), make_loader(dataset, num_steps=50)
    for step in range(5):
        np.testing.assert_array_equal(short.indices(step), long.indices(step))


def test_micro_batches_have_nearly_the_same_tokens() -> None:
    dataset = make_dataset(long_tailed(300))
    lengths = np.concatenate([dataset.lengths, np.zeros((1, 3), np.int32)])  # the last one for -1
    tokens = lengths[epoch_of(make_loader(dataset, batch_size=32, num_micro_batches=2), 0)].sum(axis=2)
    assert (tokens.sum(axis=-1).max() <= 1.02 * tokens.sum(axis=-1).mean()).all()
    responses = tokens[..., 1:].sum(axis=-1)
    assert responses.max() <= 1.02 * responses.mean()


def test_unshuffled_batches_keep_the_order(dataset: TokenizedDataset) -> None:
    loader = make_loader(dataset, shuffle=False)
    assert epoch_of(loader, 1).tolist() == [[[0, 1, 2, 3]], [[4, 5, 6, -1]], [[7, 8, 9, -1]]]


# What is in a batch


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_padding_counts_nowhere(dataset: TokenizedDataset, num_micro_batches: int) -> None:
    loader = make_loader(dataset, batch_size=16, num_micro_batches=num_micro_batches, alone=True)
    batch = loader.batch(0)
    assert batch.weight.sum() == NUM
    padding = batch.weight == 0
    assert (batch.index[padding] == -1).all()
    for name in (
        "lengths",
        "categories",
        "chosen_unsafe",
        "rejected_unsafe",
        "reference_logps",
        "mi",
        "scores",
    ):
        assert not getattr(batch, name)[padding].any(), name
    for rows in (batch.rows, batch.alone):
        for m in range(num_micro_batches):
            pairs = np.flatnonzero(batch.weight[m])
            assert set((rows.response[m] // 2).ravel().tolist()) == {-1, *pairs.tolist()}


def test_labels_and_figures_come_out_with_their_pairs() -> None:
    dataset = dataclasses.replace(make_dataset(long_tailed(20)), scores=np.ones((20, 2), np.float32))
    batch = make_loader(dataset, batch_size=10, num_micro_batches=2).batch(1)
    assert (batch.index >= 0).all()
    for name in ("categories", "chosen_unsafe", "rejected_unsafe", "reference_logps", "mi", "scores"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(dataset, name)[batch.index], name)
    np.testing.assert_array_equal(batch.lengths, dataset.lengths[batch.index][..., 1:])


def test_figures_that_are_not_known_are_zero(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset).batch(0)
    for name in ("reference_logps", "mi", "scores"):
        assert getattr(batch, name).shape == (1, 4, 2)
        assert not getattr(batch, name).any()


def test_batch_has_the_types_of_pair_batch(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset).batch(0)
    whole = {"rows", "alone"}
    fields = [field.name for field in dataclasses.fields(PairBatch) if field.name not in whole]
    types = {name: getattr(batch, name).dtype for name in fields}
    assert types.pop("lengths") == types.pop("index") == np.int32
    assert set(types.values()) == {np.dtype(np.float32)}
    assert batch.categories.shape == (1, 4, 19)
    assert batch.alone is None


def test_end_of_sequence_is_predicted_and_padding_of_the_same_id_is_not(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset).batch(0)
    rows = batch.rows
    for response in range(2 * int(batch.weight.sum())):
        assert (rows.target[rows.response == response] == dataset.pad_id).sum() == 1  # pad is also the end


# Errors


def test_step_outside_the_run_is_an_error(dataset: TokenizedDataset) -> None:
    loader = make_loader(dataset, num_epochs=2)
    assert loader.num_steps == 6
    loader.batch(5)
    for step in (6, -1):
        with pytest.raises(IndexError, match=f"step {step} is outside the 6 steps of the run"):
            loader.batch(step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_epochs": 0}, "num_epochs=0 must be at least 1"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"num_micro_batches": 0}, "num_micro_batches=0 must be at least 1"),
        ({"num_micro_batches": 3}, "batch_size=4 is not divisible by num_micro_batches=3"),
        ({"num_steps": 3, "num_epochs": 3}, "got num_steps=3 and num_epochs=3, expected exactly one"),
        ({"num_epochs": None}, "got num_steps=None and num_epochs=None, expected exactly one"),
    ],
)
def test_numbers_that_do_not_fit_are_errors(dataset: TokenizedDataset, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(dataset, **options)


def test_empty_data_set_is_an_error(dataset: TokenizedDataset) -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        make_loader(dataset.select(np.arange(0)))


@pytest.mark.parametrize(("key", "value"), [("layout", "ragged"), ("share_prefix", 1), ("length", 0)])
def test_rows_config_refuses_option(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        RowsConfig(**{key: value})
