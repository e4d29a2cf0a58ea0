"""The real data sets beside the checkout: read, split by prompt, tokenised, packed; what they hold is found."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxalign.data.check import check_data
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.sampling import SamplingConfig
from jaxalign.data.schema import DataError, prompt_key
from jaxalign.data.settings import DataConfig, RowsConfig
from jaxalign.data.sources import load_pairs
from jaxalign.data.tokenize import tokenize_pairs
from jaxalign.hf.read import open_checkpoint

CATEGORIES = ("violence", "hate_speech", "privacy", "information_integrity", "exploits", "self_harm")


def category_pairs(folder: Path, **options: Any) -> DataConfig:
    source = {
        "format": "plain",
        "path": str(folder / "pairs_harm_categories.jsonl.gz"),
        "fields": {
            "categories": "harm_category",
            "chosen_unsafe": "chosen_harm",
            "rejected_unsafe": "rejected_harm",
        },
        "unsafe_threshold": 0.5,
    }
    return DataConfig(train=[source], categories=CATEGORIES, **options)


def hh(folder: Path, **options: Any) -> DataConfig:
    return DataConfig(train=[{"format": "hh", "path": str(folder / "hh_harmless_base.jsonl.gz")}], **options)


def test_category_pairs_name_their_identical_rows(shared_data: Path) -> None:
    with pytest.raises(DataError, match="identical responses"):
        load_pairs(category_pairs(shared_data), "train")


def test_category_pairs_are_split_by_prompt(shared_data: Path) -> None:
    config = category_pairs(shared_data, on_error="skip", heldout_fraction=0.2)
    (train, report), (heldout, _) = (load_pairs(config, split) for split in ("train", "heldout"))
    assert report.errors == {"identical responses": 4}
    assert len(train) + len(heldout) == 645 - 4
    prompts = [{prompt_key(pair.prompt) for pair in pairs} for pairs in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0] | prompts[1]) == 54
    counts = Counter(name for pair in train + heldout for name in pair.categories)
    assert (counts["violence"], counts["self_harm"]) == (245, 13)


def test_category_pairs_under_the_safety_transform(shared_data: Path) -> None:
    pairs, report = load_pairs(category_pairs(shared_data, on_error="skip", safety_transform=True), "train")
    (source,) = report.sources
    assert source.num_swapped == 0  # the less harmful response is the chosen one
    assert source.num_dropped + len(pairs) == 641
    assert not any(pair.chosen_unsafe for pair in pairs)


def test_category_pairs_check_reports_what_is_wrong(shared_data: Path, tiny_tokenizer: Any) -> None:
    check = check_data(category_pairs(shared_data, max_response_length=512), tiny_tokenizer)
    assert [error.split(",")[0] for error in check.errors] == ["4 rows with identical responses"]


def test_uniform_sampling_equalises_the_categories(shared_data: Path, tiny_tokenizer: Any) -> None:
    config = category_pairs(shared_data, on_error="skip")
    dataset = tokenize_pairs(load_pairs(config, "train")[0], tiny_tokenizer, config)
    sizes = dataset.categories.sum(axis=0)
    assert (sizes.min(), sizes.max()) == (13, 245)
    sampling = SamplingConfig(strategy="uniform")
    loader = PairLoader(dataset, batch_size=32, rows=RowsConfig(), num_steps=40, sampling=sampling)
    batches = np.concatenate([loader.indices(step) for step in range(40)])
    counts = dataset.categories[batches.ravel()].sum(axis=0)
    assert counts.max() - counts.min() <= 1
    assert all(len(set(rows)) == 32 for rows in batches.tolist())


def test_hh_names_its_first_bad_row(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"hh_harmless_base\.jsonl\.gz:87: field 'chosen': empty text"):
        load_pairs(hh(shared_data), "train")


def test_hh_rows_are_all_accounted_for(shared_data: Path) -> None:
    pairs, report = load_pairs(hh(shared_data, on_error="skip"), "train")
    assert report.errors == {"empty text": 4, "no shared prompt": 5, "turns out of order": 4}
    assert len(pairs) == 2290 - 13
    assert all(pair.prompt[-1].role == "user" and not pair.categories for pair in pairs)


def test_hh_raw_prompts_are_tokenised_with_their_end_kept(shared_data: Path, tiny_tokenizer: Any) -> None:
    config = hh(
        shared_data, on_error="skip", prompt_format="raw", max_prompt_length=200, max_response_length=200
    )
    pairs, _ = load_pairs(config, "train")
    dataset = tokenize_pairs(pairs[:200], tiny_tokenizer, config)
    assert all(tiny_tokenizer.decode(ids).endswith("\n\nAssistant:") for ids in dataset.prompt_ids)
    assert dataset.truncation().total[0] > 50
    assert (dataset.lengths <= 200).all()


@pytest.fixture(scope="module")
def datasets(shared_data: Path, smollm2_gguf: Path) -> dict[str, TokenizedDataset]:
    """All pairs of both files under the tokenizer of the real small model."""
    tokenizer = open_checkpoint(smollm2_gguf).load_tokenizer()
    configs = {
        "categories": category_pairs(shared_data, on_error="skip"),
        "hh": hh(shared_data, on_error="skip"),
    }
    return {
        name: tokenize_pairs(load_pairs(config, "train")[0], tokenizer, config)
        for name, config in configs.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["categories", "hh"])
@pytest.mark.parametrize("batch_size", [32, 64])
@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("share", [True, False])
def test_packing_wastes_at_most_a_twentieth(
    datasets: dict[str, TokenizedDataset], name: str, batch_size: int, num_groups: int, share: bool
) -> None:
    loader = PairLoader(
        datasets[name],
        batch_size=batch_size,
        rows=RowsConfig(share_prefix=share),
        num_groups=num_groups,
        num_epochs=3,
    )
    assert loader.padding is not None
    assert loader.padding <= 0.05


def test_packing_wastes_at_most_a_twentieth_of_bytes(shared_data: Path, tiny_tokenizer: Any) -> None:
    config = category_pairs(shared_data, on_error="skip", max_prompt_length=128, max_response_length=512)
    dataset = tokenize_pairs(load_pairs(config, "train")[0], tiny_tokenizer, config)
    for batch_size in (32, 64):
        loader = PairLoader(dataset, batch_size=batch_size, rows=RowsConfig(), num_epochs=2)
        assert loader.padding is not None
        assert loader.padding <= 0.05
