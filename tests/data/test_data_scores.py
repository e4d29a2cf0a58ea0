"""Scores of responses: read from every format that has them, swapped with them, refused where they are bad."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxalign.data.check import check_data
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.schema import DataError, Pair
from jaxalign.data.settings import DataConfig, RowsConfig
from jaxalign.data.sources import load_pairs, safety_transform
from jaxalign.data.tokenize import tokenize_pairs

Write = Callable[..., str]
ROW = {"prompt": "Ask?", "chosen": "No.", "rejected": "Yes."}
SCORED = {"chosen_score": 2.5, "rejected_score": -1}
CONFIG = DataConfig(train=[{"format": "plain", "path": "unused.jsonl"}])


def load(path: str, format_: str = "plain", **options: Any) -> list[Pair]:
    return load_pairs(DataConfig(train=[{"format": format_, "path": path, **options}]), "train")[0]


def scores(pair: Pair) -> tuple[float | None, float | None]:
    return pair.chosen_score, pair.rejected_score


@pytest.fixture
def dataset(tiny_tokenizer: Any, make_pairs: Callable) -> TokenizedDataset:
    pairs = [
        dataclasses.replace(pair, chosen_score=float(i), rejected_score=-0.5 * i)
        for i, pair in enumerate(make_pairs(5))
    ]
    return tokenize_pairs(pairs, tiny_tokenizer, CONFIG)


@pytest.mark.parametrize(
    ("format_", "fields"),
    [
        ("plain", SCORED),
        ("trl", SCORED),
        ("trl", {"score_chosen": 2.5, "score_rejected": -1}),
        ("plain", {"chosen_score": "2.5", "rejected_score": " -1"}),  # csv cells are texts
    ],
)
def test_scores_are_read_where_a_row_has_them(write_rows: Write, format_: str, fields: dict) -> None:
    assert [scores(pair) for pair in load(write_rows([ROW | fields]), format_)] == [(2.5, -1.0)]


def test_plain_scores_under_other_names(write_rows: Write) -> None:
    path = write_rows([ROW | {"good": 1, "bad": 0} | SCORED])
    (pair,) = load(path, fields={"chosen_score": "good", "rejected_score": "bad"})
    assert scores(pair) == (1.0, 0.0)


@pytest.mark.parametrize("fields", [{}, dict.fromkeys(SCORED)], ids=["absent", "null in both"])
@pytest.mark.parametrize("format_", ["plain", "trl"])
def test_row_without_scores_has_none(write_rows: Write, format_: str, fields: dict) -> None:
    assert scores(load(write_rows([ROW | fields]), format_)[0]) == (None, None)


@pytest.mark.parametrize(("view", "expected"), [("better", (-2.0, 0.0)), ("safedpo", (0.0, -2.0))])
def test_pku_score_is_minus_the_severity(
    write_rows: Write, pku_row: Callable, view: str, expected: tuple[float, float]
) -> None:
    (pair,) = load(write_rows([pku_row(better=1)]), "pku", view=view)  # answer 1 is unsafe, of severity 2
    assert scores(pair) == expected
    assert not any(np.signbit(score) for score in expected if score == 0)


def test_safety_transform_swaps_scores_with_the_responses() -> None:
    swapped = safety_transform(Pair((), "a", "b", (), True, False, "x:1", 1.0, 3.0))
    assert swapped is not None
    assert (swapped.chosen, *scores(swapped)) == ("b", 3.0, 1.0)


@pytest.mark.parametrize(
    ("format_", "fields", "message"),
    [
        ("plain", {"chosen_score": 1.0}, "'rejected_score': missing field: got only the fields"),
        ("trl", {"score_rejected": 1.0}, "'score_chosen': missing field: got only the fields"),
        (
            "trl",
            SCORED | {"chosen_score": None},
            "'chosen_score': missing field: got null, expected a number",
        ),
        ("trl", SCORED | {"score_chosen": 1.0}, "scores twice: got scores under two names"),
        ("plain", SCORED | {"chosen_score": True}, "wrong type: got bool True, expected a finite number"),
        ("plain", SCORED | {"chosen_score": "good"}, "wrong type: got str 'good', expected a finite number"),
        ("plain", SCORED | {"chosen_score": float("nan")}, "wrong type: got float nan"),
        ("trl", SCORED | {"rejected_score": float("-inf")}, "wrong type: got float -inf"),
        (
            "plain",
            SCORED | {"rejected_score": -1e39},
            r"score too large: got -1e\+39, expected a score within",
        ),
    ],
)
def test_bad_score_names_row_and_field(write_rows: Write, format_: str, fields: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf":2: field .*{message}"):
        load(write_rows([ROW, ROW | fields]), format_)


def test_score_field_that_the_config_names_must_be_in_every_row(write_rows: Write) -> None:
    path = write_rows([ROW | {"good": 1, "rejected_score": 0}, ROW])
    with pytest.raises(DataError, match=":2: field 'good': missing field"):
        load(path, fields={"chosen_score": "good"})


def test_data_set_has_scores_only_if_every_pair_has(
    dataset: TokenizedDataset, tiny_tokenizer: Any, make_pairs: Callable
) -> None:
    assert dataset.scores is not None
    assert (dataset.scores.dtype, dataset.num_unscored) == (np.float32, 0)
    assert dataset.scores.tolist() == [[i, -0.5 * i] for i in range(5)]
    mixed = tokenize_pairs(
        make_pairs(2) + make_pairs(1, chosen_score=1.0, rejected_score=0.0), tiny_tokenizer, CONFIG
    )
    assert (mixed.scores, mixed.num_unscored) == (None, 2)


def test_scores_follow_their_pairs(dataset: TokenizedDataset) -> None:
    assert dataset.scores is not None
    part = dataset.select(np.array([3, 1]))
    assert part.scores is not None
    assert part.scores.tolist() == dataset.scores[[3, 1]].tolist()
    batch = PairLoader(dataset, batch_size=3, rows=RowsConfig(), num_epochs=1, shuffle=False).batch(1)
    assert (batch.index[0] >= 0).tolist() == [True, True, False]  # one pair of padding
    assert batch.scores.dtype == np.float32
    assert batch.scores[0].tolist() == [*dataset.scores[batch.index[0, :2]].tolist(), [0.0, 0.0]]


def test_batch_without_scores_holds_zeros(dataset: TokenizedDataset) -> None:
    unscored = dataclasses.replace(dataset, scores=None)
    batch = PairLoader(unscored, batch_size=3, rows=RowsConfig(), num_epochs=1).batch(0)
    assert (batch.scores.shape, batch.scores.any()) == ((1, 3, 2), False)


def test_fingerprint_sees_scores_where_there_are_any(dataset: TokenizedDataset) -> None:
    assert dataset.scores is not None
    others = [dataclasses.replace(dataset, scores=scores) for scores in (None, dataset.scores + 1)]
    assert len({data.fingerprint() for data in (dataset, *others)}) == 3


def test_scored_rows_pass_the_data_check(write_rows: Write, tiny_tokenizer: Any) -> None:
    rows = [ROW | SCORED | {"prompt": f"Ask {i}?"} for i in range(3)]
    config = DataConfig(train=[{"format": "plain", "path": write_rows(rows)}])
    assert check_data(config, tiny_tokenizer).ok
