"""The sample set: deterministic, in the full schema, long-tailed, split by goals, sensible sizes."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jaxalign.data.check import check_data
from jaxalign.data.sample import write_sample
from jaxalign.data.schema import PKU_CATEGORIES, DataError
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import load_pairs

Rows = list[dict[str, Any]]


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sample(tmp_path_factory.mktemp("sample") / "new")


@pytest.fixture(scope="module")
def splits(paths: tuple[Path, Path]) -> tuple[Rows, Rows]:
    return read(paths[0]), read(paths[1])


@pytest.fixture(scope="module")
def rows(splits: tuple[Rows, Rows]) -> Rows:
    return splits[0] + splits[1]


def categories(row: dict[str, Any]) -> set[str]:
    labels = [row[f"response_{i}_harm_category"] for i in (0, 1)]
    return {name for label in labels for name, value in label.items() if value}


def unsafe(row: dict[str, Any]) -> list[bool]:
    return [not row[f"is_response_{i}_safe"] for i in (0, 1)]


def test_same_seed_gives_the_same_bytes(paths: tuple[Path, Path], tmp_path: Path) -> None:
    again, other = write_sample(tmp_path / "a", seed=0), write_sample(tmp_path / "b", seed=1)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    assert other[0].read_bytes() != again[0].read_bytes()


def test_files_of_others_are_not_overwritten(paths: tuple[Path, Path], tmp_path: Path) -> None:
    write_sample(tmp_path)
    write_sample(tmp_path)  # the same content: nothing to refuse
    mine = tmp_path / "heldout.jsonl"
    mine.write_text("mine")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"heldout\.jsonl: file exists: got other content.*another directory"):
        write_sample(tmp_path)
    assert mine.read_text() == "mine"
    assert not (tmp_path / "train.jsonl").exists()


def test_row_has_the_full_schema(rows: Rows) -> None:
    each = ("", "_source", "_harm_category", "_severity_level", "_sha256")
    fields = {f"response_{i}{field}" for i in (0, 1) for field in each}
    fields |= {"prompt", "prompt_source", "is_response_0_safe", "is_response_1_safe"}
    fields |= {"better_response_id", "safer_response_id"}
    for row in rows:
        assert set(row) == fields
        for i in (0, 1):
            assert tuple(row[f"response_{i}_harm_category"]) == PKU_CATEGORIES
            digest = hashlib.sha256(row[f"response_{i}"].encode()).hexdigest()
            assert row[f"response_{i}_sha256"] == digest


def test_labels_of_a_row_agree(rows: Rows) -> None:
    for row in rows:
        severity = [row[f"response_{i}_severity_level"] for i in (0, 1)]
        for i in (0, 1):
            harmful = any(row[f"response_{i}_harm_category"].values())
            assert harmful == unsafe(row)[i] == (severity[i] > 0)
        safer = row["safer_response_id"]
        assert severity[safer] <= severity[1 - safer]


def test_all_kinds_of_rows_are_there(rows: Rows) -> None:
    kinds = Counter(sum(unsafe(row)) for row in rows)
    assert len(rows) == 1200
    assert kinds[2] >= 50  # both unsafe
    assert kinds[0] >= 100  # benign, or two refusals
    assert sum(row["better_response_id"] != row["safer_response_id"] for row in rows) >= 120
    assert sum(len(categories(row)) > 1 for row in rows) >= 250
    assert {row[f"response_{i}_severity_level"] for row in rows for i in (0, 1)} == {0, 1, 2, 3}
    better = Counter(row["better_response_id"] for row in rows)
    assert abs(better[0] - better[1]) < 120  # the position says nothing


def test_categories_are_many_and_long_tailed(rows: Rows) -> None:
    counts = Counter(name for row in rows for name in categories(row))
    assert len(counts) == 15
    assert max(counts.values()) > 5 * min(counts.values())
    assert min(counts.values()) >= 25


@pytest.mark.parametrize("seed", range(3))
def test_every_category_is_held_out_often_enough(tmp_path: Path, seed: int) -> None:
    train, heldout = map(read, write_sample(tmp_path, seed=seed))
    counts = Counter(name for row in heldout for name in categories(row))
    assert set(counts) == {name for row in train for name in categories(row)}
    assert min(counts.values()) >= 8
    assert 0.15 <= len(heldout) / (len(train) + len(heldout)) <= 0.2


def test_prompts_are_distinct_and_goals_disjoint(splits: tuple[Rows, Rows]) -> None:
    prompts = [[row["prompt"] for row in split] for split in splits]
    assert len(set(prompts[0] + prompts[1])) == 1200
    assert not any("the neighbor's dog" in prompt for prompt in prompts[0])
    assert any("the neighbor's dog" in prompt for prompt in prompts[1])


def test_texts_are_short_and_whole(rows: Rows) -> None:
    for row in rows:
        assert 8 <= len(row["prompt"].split()) <= 28
        for i in (0, 1):
            text = row[f"response_{i}"]
            assert 10 <= len(text.split()) <= 42
            assert text[0].isupper()
            assert text[-1] in ".!?"
            assert not set("{}|") & set(text + row["prompt"])
            assert " my " not in text  # the assistant speaks of the person's things as "your"


def test_sample_passes_its_own_check(paths: tuple[Path, Path], tiny_tokenizer: Any) -> None:
    sources = [[{"format": "pku", "path": str(path)}] for path in paths]
    config = DataConfig(train=sources[0], heldout=sources[1], safety_transform=True)
    check = check_data(config, tiny_tokenizer)
    assert check.errors == []
    assert check.warnings == []


@pytest.mark.parametrize("view", ["better", "safer", "safe_better", "safedpo"])
def test_every_view_reads_the_sample(paths: tuple[Path, Path], view: str) -> None:
    pairs, report = load_pairs(
        DataConfig(train=[{"format": "pku", "path": str(paths[0]), "view": view}]), "train"
    )
    assert len(pairs) + report.sources[0].num_dropped + report.sources[0].skipped.total() == 960
