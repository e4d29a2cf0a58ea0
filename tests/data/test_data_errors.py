"""Bad input: the error names file, row, field, what was got, expected and the remedy; skipping counts by reason."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxalign.data.schema import DataError
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import load_pairs

Write = Callable[..., str]
GOOD = {"prompt": "Ask?", "chosen": "No.", "rejected": "Yes."}
HUMAN = "\n\nHuman: Hi\n\nAssistant:"


def without(row: dict, field: str) -> dict:
    return {key: value for key, value in row.items() if key != field}


PLAIN_ROWS = {
    "missing field": (without(GOOD, "chosen"), "field 'chosen': missing field: got only the fields"),
    "null field": (GOOD | {"rejected": None}, "field 'rejected': missing field: got null, expected a text"),
    "wrong type": (GOOD | {"prompt": 3}, "field 'prompt': wrong type: got int 3, expected a text"),
    "empty response": (GOOD | {"rejected": " \n"}, "field 'rejected': empty text"),
    "identical responses": (GOOD | {"rejected": "No. "}, "identical responses: got str 'No.'"),
    "unknown category": (
        GOOD | {"categories": ["Theft"]},
        r"unknown category: got \['Theft'\], expected names of",
    ),
    "category not text": (GOOD | {"categories": [1]}, "field 'categories': wrong type"),
    "unknown among known": (GOOD | {"categories": ["Drugs", "drugs"]}, r"got \['drugs'\]"),
    "flag not bool": (
        GOOD | {"chosen_unsafe": 1},
        "'chosen_unsafe': wrong type: got int 1, expected true or",
    ),
    "flag null": (GOOD | {"chosen_unsafe": None}, "field 'chosen_unsafe': missing field: got null"),
    "not an object": (["a"], r"wrong type: got list \['a'\], expected a JSON object"),
}


def source(path: str, format_: str = "plain", **options: Any) -> dict[str, Any]:
    return {"format": format_, "path": path, **options}


def check_bad_row(path: str, row: int, message: str, **options: Any) -> None:
    """Raises with file, row and message under raise; drops that row alone and counts it under skip."""
    train = [source(path, **options)]
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(DataConfig(train=train), "train")
    assert str(caught.value).startswith(f"{path}:{row}: ")
    assert "set data.on_error: skip" in str(caught.value)
    pairs, report = load_pairs(DataConfig(train=train, on_error="skip"), "train")
    assert len(pairs) == report.num_pairs == 2
    assert report.errors == {caught.value.reason: 1}


@pytest.mark.parametrize("case", PLAIN_ROWS)
def test_bad_plain_row(write_rows: Write, case: str) -> None:
    row, message = PLAIN_ROWS[case]
    check_bad_row(write_rows([GOOD, row, GOOD]), 2, message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "Ask?", "chosen": ', "broken JSON: got Expecting value at column 30"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8: got byte 0xe9 at position 15"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "broken JSON: got Exceeds the limit"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "broken JSON: got too deep nesting"),
        (
            b'{"prompt": "Ask?", "chosen": "a \\ud800 b", "rejected": "c"}',
            r"'chosen': lone surrogate: got str",
        ),
    ],
)
def test_bad_line(write_rows: Write, line: bytes, message: str) -> None:
    good = json.dumps(GOOD).encode()
    check_bad_row(write_rows(b"\n".join([good, line, good])), 2, message)


def test_bad_csv_row(write_rows: Write) -> None:
    content = b"prompt,chosen,rejected\nAsk?,No.,Yes.\nAsk?,No,yes,maybe\nAsk?,No.,Yes.\n"
    check_bad_row(write_rows(content, "a.csv"), 3, "broken CSV: got another number, expected the 3 columns")


def test_long_csv_cell_is_read(write_rows: Write) -> None:
    content = b"prompt,chosen,rejected\nAsk?,No.," + b"x" * 200_000 + b"\n"
    (pair,), _ = load_pairs(DataConfig(train=[source(write_rows(content, "a.csv"))]), "train")
    assert len(pair.rejected) == 200_000


PKU_FIELDS = {
    "prompt": (None, "'prompt': missing field"),
    "response_1": (["text"], "'response_1': wrong type: got list"),
    "is_response_0_safe": ("yes", "'is_response_0_safe': wrong type: got str 'yes', expected true or false"),
    "better_response_id": (2, "'better_response_id': wrong type: got int 2, expected the integer 0 or 1"),
    "response_0_severity_level": (4, "'response_0_severity_level': wrong type: got int 4"),
    "response_1_harm_category": ({"Theft": True}, r"unknown category: got \['Theft'\], expected the keys"),
    "response_0_harm_category": ({}, "missing field: got no key"),
}


@pytest.mark.parametrize("field", PKU_FIELDS)
def test_bad_pku_field(write_rows: Write, pku_row: Callable, field: str) -> None:
    value, message = PKU_FIELDS[field]
    check_bad_row(write_rows([pku_row(), pku_row(**{field: value}), pku_row()]), 2, message, format_="pku")


def test_bad_pku_category_value(write_rows: Write, pku_row: Callable) -> None:
    row = pku_row()
    row["response_1_harm_category"]["Drugs"] = "yes"
    message = "'response_1_harm_category.Drugs': wrong type: got str 'yes'"
    check_bad_row(write_rows([pku_row(), row, pku_row()]), 2, message, format_="pku")


def test_pku_category_outside_the_configured_list(write_rows: Write, pku_row: Callable) -> None:
    train = [source(write_rows([pku_row()]), "pku")]
    with pytest.raises(
        DataError, match=r"unknown category: got \['Violence'\], expected names of data.categories"
    ):
        load_pairs(DataConfig(train=train, categories=["Drugs"]), "train")


def test_bad_beavertails_row(write_rows: Write, beaver_row: Callable) -> None:
    good, bad = beaver_row("good"), beaver_row("bad", "self_harm")
    path = write_rows([good, bad, beaver_row("other") | {"is_safe": 1}])
    train = [source(path, "beavertails")]
    with pytest.raises(DataError, match=f"{path}:3: field 'is_safe': wrong type"):
        load_pairs(DataConfig(train=train, categories="beavertails"), "train")
    pairs, report = load_pairs(DataConfig(train=train, categories="beavertails", on_error="skip"), "train")
    assert (len(pairs), dict(report.errors)) == (1, {"wrong type": 1})


HH_ROWS = {
    "no transcript": ({"chosen": "No.", "rejected": "Yes."}, "no transcript: got str 'No.'"),
    "no answer": ({"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"}, "that ends with an answer"),
    "empty answer": ({"chosen": HUMAN + " ", "rejected": HUMAN + " Yes."}, "field 'chosen': empty text"),
    "other prompt": (
        {"chosen": HUMAN + " No.", "rejected": "\n\nHuman: Ho\n\nAssistant: Yes."},
        "no shared prompt: got another conversation",
    ),
    "turns": (
        {"chosen": "\n\nHuman: a" + HUMAN + " No.", "rejected": "\n\nHuman: a" + HUMAN + " Yes."},
        "turns out of order: got the turns Human, Human",
    ),
    "empty turn": (
        {"chosen": "\n\nHuman: \n\nAssistant: No.", "rejected": "\n\nHuman: \n\nAssistant: Yes."},
        "empty text: got a turn without text",
    ),
}


@pytest.mark.parametrize("case", HH_ROWS)
def test_bad_hh_row(write_rows: Write, case: str) -> None:
    good = {"chosen": HUMAN + " No.", "rejected": HUMAN + " Yes."}
    row, message = HH_ROWS[case]
    check_bad_row(write_rows([good, row, good]), 2, message, format_="hh")


def turn(role: str, content: object = "text") -> dict[str, object]:
    return {"role": role, "content": content}


TRL_ROWS = {
    "no shared beginning": ({"chosen": "No.", "rejected": "Yes."}, "missing field: got no common beginning"),
    "no shared messages": (
        {"chosen": [turn("assistant")], "rejected": [turn("assistant", "b")]},
        "no common",
    ),
    "role": (
        {"chosen": [turn("user"), turn("bot")], "rejected": [turn("user")]},
        r"'chosen\[1\]': wrong type",
    ),
    "content": ({"chosen": [turn("user", 1)], "rejected": [turn("user")]}, r"'chosen\[0\]': wrong type"),
    "surrogate": ({"chosen": [turn("user", "\ud800")], "rejected": [turn("user")]}, "lone surrogate"),
    "blank": ({"chosen": [turn("user", " ")], "rejected": [turn("user")]}, r"'chosen\[0\]': empty text"),
    "mixed": ({"chosen": [turn("user")], "rejected": "text"}, "'rejected': wrong type: got str 'text'"),
    "ends with assistant": (
        {
            "prompt": [turn("assistant")],
            "chosen": [turn("assistant", "a")],
            "rejected": [turn("assistant", "b")],
        },
        "turns out of order: got a last message of role assistant",
    ),
    "two answers": (
        {"prompt": "Ask?", "chosen": [turn("assistant"), turn("user")], "rejected": [turn("assistant")]},
        "expected one assistant message after the prompt",
    ),
    "prefix of the other": ({"chosen": "The sky", "rejected": "The sky is"}, "field 'chosen': empty text"),
}


@pytest.mark.parametrize("case", TRL_ROWS)
def test_bad_trl_row(write_rows: Write, case: str) -> None:
    row, message = TRL_ROWS[case]
    check_bad_row(write_rows([GOOD, row, GOOD]), 2, message, format_="trl")


def test_field_named_in_the_config_must_be_in_every_row(write_rows: Write) -> None:
    rows = [GOOD | {"kind": "Drugs"}, GOOD, GOOD | {"kind": None}]
    check_bad_row(write_rows(rows), 2, "field 'kind': missing field", fields={"categories": "kind"})
    rows = [GOOD | {"bad": True}, GOOD, GOOD | {"bad": False}]
    check_bad_row(write_rows(rows), 2, "field 'bad': missing field", fields={"rejected_unsafe": "bad"})


@pytest.mark.parametrize("score", ["high", True, float("nan"), [1], 10**400])
def test_score_must_be_a_finite_number(write_rows: Write, score: object) -> None:
    rows = [GOOD | {"rejected_unsafe": value} for value in (0.1, score, "0.9")]
    check_bad_row(write_rows(rows), 2, "wrong type: got .* expected a finite number", unsafe_threshold=0.5)


FILES = {
    "no file": (None, "missing.jsonl", "no file: got no such file"),
    "empty file": (b"", "a.jsonl", "empty file: got no rows"),
    "blank file": (b"\n \n", "a.jsonl", "empty file: got no rows"),
    "file type": (b"{}", "a.txt", "unknown file type: got a.txt, expected one of .jsonl"),
    "not gzip": (b"", "a.jsonl.gz", "empty file"),
    "broken array": (b'[{"prompt": ]', "a.json", "a.json:1: broken JSON: got Expecting value at column 13"),
    "array not UTF-8": (b'["\xff"]', "a.json", "not UTF-8: got byte 0xff"),
    "csv not UTF-8": (b"prompt\n\xff\n", "a.csv", "not UTF-8: got byte 0xff"),
    "csv quotes": (b'prompt\n"a" b\n', "a.csv", "broken CSV: got"),
    "csv header": (
        b"prompt,chosen,chosen\na,b,c\n",
        "a.csv",
        r"broken CSV: got columns named alike: \['chosen'\]",
    ),
    "csv header quotes": (b'"prompt" b\n', "a.csv", "broken CSV: got"),
    "huge number": (b"[" + b"9" * 5000 + b"]", "a.json", "a.json: broken JSON: got Exceeds the limit"),
    "deep array": (b"[" * 100_000, "a.json", "a.json: broken JSON: got too deep nesting"),
    "parquet": (b"PAR1 not", "a.parquet", "unreadable file"),
}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("case", FILES)
def test_unreadable_file_is_an_error_in_both_modes(
    write_rows: Write, tmp_path: Path, case: str, on_error: str
) -> None:
    content, name, message = FILES[case]
    path = str(tmp_path / name) if content is None else write_rows(content, name)
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(DataConfig(train=[source(path)], on_error=on_error), "train")
    assert path in str(caught.value)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_truncated_gzip_is_an_error_in_both_modes(write_rows: Write, on_error: str) -> None:
    path = Path(write_rows([GOOD] * 50, "a.jsonl.gz"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"unreadable file: .*fetch the file again"):
        load_pairs(DataConfig(train=[source(str(path))], on_error=on_error), "train")


def test_folder_without_data_files(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(DataError, match="no file: got a folder without such files"):
        load_pairs(DataConfig(train=[source(str(tmp_path))]), "train")


def test_unknown_named_data_set(tmp_path: Path) -> None:
    named = {"format": "plain", "name": str(tmp_path / "nothing")}
    with pytest.raises(DataError, match=r"no data set: .*check name, subset, data_dir, split and revision"):
        load_pairs(DataConfig(train=[named]), "train")


def test_no_pair_left_is_an_error_that_says_why(write_rows: Write) -> None:
    train = [source(write_rows([GOOD | {"prompt": 1}] * 3))]
    with pytest.raises(DataError, match=r"no pairs left: .*3 bad rows skipped \(wrong type\)"):
        load_pairs(DataConfig(train=train, on_error="skip"), "train")


def test_skipped_rows_are_in_the_log_by_reason(write_rows: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write_rows([GOOD, GOOD | {"chosen": ""}, GOOD | {"chosen": "Yes."}, GOOD | {"prompt": ""}])
    with caplog.at_level(logging.WARNING):
        load_pairs(DataConfig(train=[source(path)], on_error="skip"), "train")
    assert "2 bad rows skipped (empty text), 1 bad rows skipped (identical responses)" in caplog.text
