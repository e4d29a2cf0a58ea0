"""Laws of the loader: a pure function of (seed, step), every pair once an epoch, padding that counts nowhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxalign.batch import PairBatch
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader, padded_length
from jaxalign.data.settings import DataConfig
from jaxalign.data.tokenize import tokenize_pairs

NUM = 10


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer: Any, make_pairs: Callable) -> TokenizedDataset:
    config = DataConfig(train=[{"format": "plain", "path": "unused.jsonl"}])
    return tokenize_pairs(make_pairs(NUM), tiny_tokenizer, config)


def make_loader(dataset: TokenizedDataset, **options: Any) -> PairLoader:
    return PairLoader(dataset, **({"batch_size": 4, "length": padded_length([dataset]), "seed": 5} | options))


def assert_equal(first: PairBatch, second: PairBatch) -> None:
    for field in dataclasses.fields(PairBatch):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), field.name)


def with_reference(dataset: TokenizedDataset, logps: np.ndarray, mi: np.ndarray) -> TokenizedDataset:
    return dataclasses.replace(dataset, reference_logps=logps.astype(np.float32), mi=mi.astype(np.float32))


def test_batch_depends_on_seed_and_step_alone(dataset: TokenizedDataset) -> None:
    first, second = make_loader(dataset), make_loader(dataset)
    batches = [first.batch(step) for step in range(9)]
    for step in (7, 0, 8, 3, 3):  # in any order, by a loader that has served nothing before
        assert_equal(second.batch(step), batches[step])
    assert (make_loader(dataset, seed=6).indices(0) != batches[0].index).any()


def test_epoch_holds_every_pair_once_in_a_new_order(dataset: TokenizedDataset) -> None:
    loader = make_loader(dataset)
    assert loader.steps_per_epoch == 3
    epochs = []
    for epoch in range(3):
        index = np.concatenate([loader.batch(3 * epoch + step).index for step in range(3)])
        assert sorted(index[index >= 0].tolist()) == list(range(NUM))
        epochs.append(index.tolist())
    assert len(set(map(tuple, epochs))) == 3


def test_last_batch_is_padded_with_pairs_that_count_nowhere(dataset: TokenizedDataset) -> None:
    values = np.arange(1.0, 2 * NUM + 1).reshape(NUM, 2)
    batch = make_loader(with_reference(dataset, values, values)).batch(2)
    assert batch.weight.tolist() == [1, 1, 0, 0]
    assert batch.index[2:].tolist() == [-1, -1]
    for name in ("response_mask", "categories", "chosen_unsafe", "rejected_unsafe", "reference_logps", "mi"):
        assert not getattr(batch, name)[2:].any(), name
    assert (batch.tokens[2:] == dataset.pad_id).all()


def test_batch_smaller_than_the_data_and_larger(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset, batch_size=16).batch(0)
    assert batch.tokens.shape == (16, 2, padded_length([dataset]))
    assert batch.weight.sum() == NUM


def test_unshuffled_batches_keep_the_order(dataset: TokenizedDataset) -> None:
    loader = make_loader(dataset, shuffle=False, num_epochs=1)
    index = np.concatenate([loader.batch(step).index for step in range(loader.num_steps or 0)])
    assert index.tolist() == [*range(NUM), -1, -1]


def test_row_is_prompt_response_padding(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset, shuffle=False).batch(0)
    for b, row in enumerate(batch.index):
        for branch, responses in enumerate((dataset.chosen_ids, dataset.rejected_ids)):
            prompt, response = dataset.prompt_ids[row], responses[row]
            end = len(prompt) + len(response)
            assert batch.tokens[b, branch, :end].tolist() == [*prompt, *response]
            assert (batch.tokens[b, branch, end:] == dataset.pad_id).all()
            assert np.flatnonzero(batch.response_mask[b, branch]).tolist() == list(range(len(prompt), end))


def test_eos_is_in_the_mask_and_padding_of_the_same_id_is_not(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset, shuffle=False).batch(0)
    masked = np.where(batch.response_mask, batch.tokens, -1)
    assert ((masked == dataset.pad_id).sum(axis=2) == 1).all()  # pad == eos: exactly one counts per response


def test_batch_has_the_types_of_pair_batch(dataset: TokenizedDataset) -> None:
    batch = make_loader(dataset).batch(0)
    types = {field.name: getattr(batch, field.name).dtype for field in dataclasses.fields(PairBatch)}
    assert types.pop("tokens") == types.pop("index") == np.int32
    assert types.pop("response_mask") == np.bool_
    assert set(types.values()) == {np.dtype(np.float32)}
    assert batch.categories.shape == (4, 19)


def test_reference_values_come_out_with_their_pairs(dataset: TokenizedDataset) -> None:
    assert not make_loader(dataset).batch(0).reference_logps.any()
    logps, mi = np.random.default_rng(0).normal(size=(2, NUM, 2))
    batch = make_loader(with_reference(dataset, logps, mi)).batch(0)
    np.testing.assert_array_equal(batch.reference_logps, logps.astype(np.float32)[batch.index])
    np.testing.assert_array_equal(batch.mi, mi.astype(np.float32)[batch.index])


def test_rows_without_prompts_hold_the_same_responses(dataset: TokenizedDataset) -> None:
    alone = dataset.without_prompts()
    batch = make_loader(alone, length=padded_length([dataset, alone]), shuffle=False).batch(0)
    whole = make_loader(dataset, shuffle=False).batch(0)
    start = len(dataset.empty_prompt_ids)
    assert (batch.tokens[:, :, :start] == dataset.empty_prompt_ids).all()
    for b, branch in np.ndindex(4, 2):
        responses = [x.tokens[b, branch][x.response_mask[b, branch]].tolist() for x in (batch, whole)]
        assert responses[0] == responses[1]


@pytest.mark.parametrize(("multiple", "expected"), [(1, 37), (16, 48), (17, 51)])
def test_padded_length_is_the_next_multiple(dataset: TokenizedDataset, multiple: int, expected: int) -> None:
    assert padded_length([dataset, dataset.without_prompts()], multiple) == expected


def test_pair_longer_than_a_row_is_an_error(dataset: TokenizedDataset) -> None:
    with pytest.raises(
        ValueError, match=r"pair test:1 has 37 tokens, but length=36; raise the length or lower"
    ):
        make_loader(dataset, length=36)


def test_step_outside_the_epochs_is_an_error(dataset: TokenizedDataset) -> None:
    loader = make_loader(dataset, num_epochs=2)
    assert loader.num_steps == 6
    loader.batch(5)
    for step in (6, -1):
        with pytest.raises(IndexError, match=f"step {step} is outside the 6 steps of 2 epochs"):
            loader.batch(step)


def test_sizes_below_one_are_errors(dataset: TokenizedDataset) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        make_loader(dataset, batch_size=0)
    with pytest.raises(ValueError, match="num_epochs=0"):
        make_loader(dataset, num_epochs=0)
