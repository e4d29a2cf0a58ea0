"""What `data check` finds and shows."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from jaxalign.data.check import DataCheck, check_data, word_overlap
from jaxalign.data.settings import DataConfig

Write = Callable[..., str]


def plain(path: str) -> dict:
    return {"format": "plain", "path": path}


def rows(num: int, prompt: str = "ask", **fields: Any) -> list[dict]:
    return [
        {"prompt": f"{prompt} {i}", "chosen": f"no {i}", "rejected": f"yes {i}"} | fields for i in range(num)
    ]


def shown(check: DataCheck) -> str:
    console = Console(file=io.StringIO(), width=100)
    check.render(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_sound_data_pass(write_rows: Write, tiny_tokenizer: Any) -> None:
    check = check_data(DataConfig(train=[plain(write_rows(rows(20)))], heldout_fraction=0.3), tiny_tokenizer)
    assert check.ok
    assert "data are sound: 0 errors" in shown(check)


def test_table_counts_by_category(write_rows: Write, tiny_tokenizer: Any, pku_row: Callable) -> None:
    data = [pku_row(), pku_row(better=1), pku_row(unsafe=(True, True)), pku_row(unsafe=(False, False))]
    config = DataConfig(train=[{"format": "pku", "path": write_rows(data)}], safety_transform=True)
    check = check_data(config, tiny_tokenizer)
    assert check.ok
    lines = [line.split() for line in shown(check).splitlines()]
    assert ["Drugs", "3", "2", "1", "1", "1", "0"] in lines  # labels and transform
    assert ["Drugs", "2", "1", "1", "0", "9.0", "9.0", "50%", "0/0/0"] in lines  # texts


def test_shared_prompt_of_train_and_heldout_is_an_error(write_rows: Write, tiny_tokenizer: Any) -> None:
    train = write_rows(rows(5))
    heldout = write_rows([*rows(3, "other"), rows(1)[0] | {"prompt": " ASK  0"}], "heldout.jsonl")
    check = check_data(DataConfig(train=[plain(train)], heldout=[plain(heldout)]), tiny_tokenizer)
    assert not check.ok
    (error,) = check.errors
    assert error.startswith("1 prompts are in train and in heldout")
    assert f"{heldout}:4 and {train}:1" in error


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_bad_rows_are_errors_unless_skipped(write_rows: Write, tiny_tokenizer: Any, on_error: str) -> None:
    bad = [rows(1)[0] | {"chosen": value} for value in (3, "yes 0", "yes 0")]
    train = write_rows([*rows(6), *bad])
    config = DataConfig(train=[plain(train)], heldout_fraction=0.4, on_error=on_error)
    check = check_data(config, tiny_tokenizer)
    assert check.ok == (on_error == "skip")
    found = check.errors if on_error == "raise" else check.warnings
    assert [message for message in found if f"{train}:7" in message and "1 rows with wrong type" in message]
    assert sum("2 rows with identical responses" in message for message in found) == 1  # once for both splits


def test_unreadable_source_is_an_error_not_a_crash(tiny_tokenizer: Any, tmp_path: Any) -> None:
    config = DataConfig(train=[plain(str(tmp_path / "missing.jsonl"))], heldout_fraction=0.5)
    check = check_data(config, tiny_tokenizer)
    assert len(check.errors) == 1
    assert "no file" in check.errors[0]
    assert "data are not fit for training: 1 errors" in shown(check)


def test_unfit_tokenizer_is_an_error(write_rows: Write, bos_tokenizer: Any) -> None:
    check = check_data(DataConfig(train=[plain(write_rows(rows(3)))]), bos_tokenizer)
    assert "set data.prompt_format: raw" in check.errors[0]


def test_pairs_that_cannot_be_tokenised_are_errors(write_rows: Write, tiny_tokenizer: Any) -> None:
    data = rows(3) + rows(5, chosen="<|eos|>")
    check = check_data(DataConfig(train=[plain(write_rows(data))]), tiny_tokenizer)
    assert len(check.errors) == 4
    assert "empty response" in check.errors[0]
    assert check.errors[-1] == "train: 2 more pairs that cannot be tokenised"


def test_warnings_name_what_training_would_not_say(write_rows: Write, tiny_tokenizer: Any) -> None:
    long = "one two three four five six seven eight nine ten"
    data = [
        rows(1, "a", chosen=long, rejected=f"{long} eleven")[0],
        rows(1, "b", categories=["Drugs"])[0],
        rows(1, "c", rejected_unsafe=True)[0],
        rows(1, "d", chosen_unsafe=True, categories=["Drugs"])[0],
    ]
    check = check_data(DataConfig(train=[plain(write_rows(data))], max_response_length=50), tiny_tokenizer)
    expected = [
        "1 pairs are near-identical (word overlap of at least 0.9)",
        "1 pairs have a category though both responses are safe",
        "1 pairs have an unsafe response and no category",
        "1 pairs prefer an unsafe response to a safe one",
        "1 responses are cut at data.max_response_length",
        "the chosen response is the longer one in 0% of pairs",
    ]
    assert check.ok
    assert len(check.warnings) == len(expected)
    for warning, text in zip(check.warnings, expected, strict=True):
        assert warning.startswith(f"train: {text}")


def test_repeated_rows_are_a_warning_with_their_number(write_rows: Write, tiny_tokenizer: Any) -> None:
    data = rows(3, categories=["Drugs"]) * 5 + rows(1, "other")
    check = check_data(DataConfig(train=[plain(write_rows(data))]), tiny_tokenizer)
    expected = "train: 12 pairs repeat an earlier one (the same prompt, chosen and rejected response)"
    assert expected in check.warnings
    lines = [line.split()[:4] for line in shown(check).splitlines()]
    assert ["all", "16", "4", "12"] in lines
    assert ["Drugs", "15", "3", "12"] in lines
    assert ["(none)", "1", "1", "0"] in lines


def test_repeats_by_weight_are_no_repeated_rows(write_rows: Write, tiny_tokenizer: Any) -> None:
    small, large = write_rows(rows(2)), write_rows(rows(6, "other"), "b.jsonl")
    sources = [plain(small) | {"weight": 1.0}, plain(large) | {"weight": 1.0}]
    check = check_data(DataConfig(train=sources), tiny_tokenizer)
    texts = check.splits[0].texts[""]
    assert (texts.pairs, texts.prompts, texts.repeated) == (12, 8, 0)
    twice = DataConfig(train=[plain(small), plain(small)])
    assert check_data(twice, tiny_tokenizer).splits[0].texts[""].repeated == 2


def test_all_columns_leave_out_what_cannot_be_tokenised(write_rows: Write, tiny_tokenizer: Any) -> None:
    bad = rows(3, "bad", chosen="<|eos|>", categories=["Drugs"])
    data = [*bad, *rows(2, categories=["Drugs"])]
    texts = check_data(DataConfig(train=[plain(write_rows(data))]), tiny_tokenizer).splits[0].texts
    for name in ("", "Drugs"):
        assert (texts[name].pairs, texts[name].prompts, texts[name].near_identical) == (2, 2, 0)


def test_category_without_heldout_pairs_is_a_warning(write_rows: Write, tiny_tokenizer: Any) -> None:
    train, heldout = rows(2, categories=["Drugs"]), rows(2, "other")
    config = DataConfig(train=[plain(write_rows(train))], heldout=[plain(write_rows(heldout, "b.jsonl"))])
    assert (
        "no held-out pair of Drugs: no figure can be given for these"
        in check_data(config, tiny_tokenizer).warnings
    )


def test_markup_in_the_data_is_shown_as_it_is(write_rows: Write, tiny_tokenizer: Any) -> None:
    name = "[red]kind[/]"
    config = DataConfig(train=[plain(write_rows(rows(2, categories=[name])))], categories=[name])
    assert name in shown(check_data(config, tiny_tokenizer))


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [("a b c", "A B C", 1.0), ("a b", "c d", 0.0), ("a a b", "a b b", 0.5), ("a b c d", "a b c", 0.75)],
)
def test_word_overlap_is_the_jaccard_index_of_words(first: str, second: str, overlap: float) -> None:
    assert word_overlap(first, second) == overlap
