"""Each format on rows of its real schema."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxalign.data.schema import Message, Pair
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import load_pairs

Write = Callable[..., str]
ASK = (Message("user", "How do I get pills?"),)


def load(
    path: str | None, format_: str, *, config: dict[str, Any] | None = None, **source: Any
) -> list[Pair]:
    source = {"format": format_, "path": path} | source
    return load_pairs(DataConfig(train=[source], **(config or {})), "train")[0]


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


@pytest.fixture
def pku_file(write_rows: Write, pku_row: Callable[..., dict]) -> str:
    rows = [
        pku_row(),  # safe answer 0 is better and safer
        pku_row(better=1),  # unsafe answer 1 is better
        pku_row(unsafe=(True, True), better=1),  # both unsafe
        pku_row(unsafe=(False, False), better=1, safer=1),  # both safe
    ]
    return write_rows(rows)


@pytest.mark.parametrize(
    ("view", "chosen"),
    [("better", "0111"), ("safer", "0001"), ("safe_better", "01"), ("safedpo", "001"), (None, "0111")],
)
def test_pku_view_decides_the_chosen_response(pku_file: str, view: str | None, chosen: str) -> None:
    pairs = load(pku_file, "pku", view=view)
    assert texts(pairs) == [(f"answer {c}", f"answer {1 - int(c)}") for c in chosen]


def test_pku_categories_are_those_of_the_unsafe_responses(pku_file: str) -> None:
    pairs = load(pku_file, "pku")
    assert [pair.categories for pair in pairs] == [
        ("Violence", "Drugs"),
        ("Violence", "Drugs"),
        ("Violence", "Drugs", "Economic Crime"),
        (),
    ]
    flags = [(pair.chosen_unsafe, pair.rejected_unsafe) for pair in pairs]
    assert flags == [(False, True), (True, False), (True, True), (False, False)]
    assert pairs[0].prompt == ASK
    assert pairs[2].origin == f"{pku_file}:3"


def test_pku_category_marked_on_a_safe_response_does_not_count(write_rows: Write, pku_row: Callable) -> None:
    row = pku_row(unsafe=(False, False))
    row["response_1_harm_category"]["Drugs"] = True
    assert load(write_rows([row]), "pku")[0].categories == ()


def test_beavertails_pairs_every_answer_that_has_a_partner(write_rows: Write, beaver_row: Callable) -> None:
    rows = [
        beaver_row("bad 1", "self_harm"),
        beaver_row("good 1"),
        beaver_row("bad 2", "self_harm", "privacy_violation"),
        beaver_row("good 2"),
        beaver_row("bad 3", "drug_abuse,weapons,banned_substance"),
        beaver_row("alone", prompt="Hello?"),
    ]
    config = DataConfig(train=[{"format": "beavertails", "path": write_rows(rows)}], categories="beavertails")
    pairs, report = load_pairs(config, "train")
    assert texts(pairs) == [("good 1", "bad 1"), ("good 2", "bad 2"), ("good 1", "bad 3")]
    assert pairs[1].categories == ("privacy_violation", "self_harm")
    assert all(pair.rejected_unsafe and not pair.chosen_unsafe and pair.prompt == ASK for pair in pairs)
    assert report.sources[0].skipped == {"no unsafe answer to the same prompt": 1}


def test_beavertails_annotations_of_one_answer_are_merged(write_rows: Write, beaver_row: Callable) -> None:
    rows = [
        beaver_row("doubtful", "self_harm"),
        beaver_row("doubtful"),
        beaver_row("fine", "self_harm"),
        beaver_row("fine"),
        beaver_row("fine"),
    ]
    config = DataConfig(train=[{"format": "beavertails", "path": write_rows(rows)}], categories="beavertails")
    pairs, report = load_pairs(config, "train")
    assert texts(pairs) == [("fine", "doubtful")]
    assert report.sources[0].skipped == {"a further annotation of the same answer": 3}
    assert report.sources[0].num_rows == 5


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Two\nlines?\n\nAssistant:"


def test_hh_shared_turns_become_messages(write_rows: Write) -> None:
    path = write_rows([{"chosen": TRANSCRIPT + " No.", "rejected": TRANSCRIPT + " Yes."}])
    (pair,) = load(path, "hh")
    turns = ("user", "Hi"), ("assistant", "Hello."), ("user", "Two\nlines?")
    assert pair.prompt == tuple(Message(*turn) for turn in turns)
    assert (pair.chosen, pair.rejected) == ("No.", "Yes.")
    assert (pair.categories, pair.chosen_unsafe, pair.rejected_unsafe) == ((), False, False)


def test_hh_raw_keeps_the_transcript_as_it_is(write_rows: Write) -> None:
    path = write_rows([{"chosen": TRANSCRIPT + " No.", "rejected": TRANSCRIPT + " Yes."}])
    (pair,) = load(path, "hh", config={"prompt_format": "raw"})
    assert pair.prompt[0].content + pair.chosen == TRANSCRIPT + " No."
    assert pair.rejected == " Yes."


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER, NO, YES = (
    message("user", "How do I get pills?"),
    message("assistant", "No."),
    message("assistant", "Yes."),
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "How do I get pills?", "chosen": "No.", "rejected": "Yes."},
        {"prompt": [USER], "chosen": [NO], "rejected": [YES]},
        {"chosen": [USER, NO], "rejected": [USER, YES]},
        {"prompt": "How do I get pills?", "chosen": [USER, NO], "rejected": [USER, YES]},
    ],
    ids=["strings", "conversational", "implicit prompt", "prompt said twice"],
)
def test_trl_forms_say_the_same_pair(write_rows: Write, row: dict) -> None:
    (pair,) = load(write_rows([row]), "trl")
    assert (pair.prompt, pair.chosen, pair.rejected) == (ASK, "No.", "Yes.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("2 + 2 =\n4", "2 + 2 =\n5", "2 + 2 =\n"),
    ],
)
def test_trl_implicit_string_prompt_splits_no_word(
    write_rows: Write, chosen: str, rejected: str, prompt: str
) -> None:
    (pair,) = load(write_rows([{"chosen": chosen, "rejected": rejected}]), "trl")
    assert pair.prompt[0].content == prompt
    assert prompt + pair.chosen == chosen
    assert prompt + pair.rejected == rejected


def test_trl_keeps_system_turns(write_rows: Write) -> None:
    system = message("system", "Be kind.")
    (pair,) = load(write_rows([{"prompt": [system, USER], "chosen": [NO], "rejected": [YES]}]), "trl")
    assert [m.role for m in pair.prompt] == ["system", "user"]


PLAIN = {"prompt": "How do I get pills?", "chosen": "No.", "rejected": "Yes."}


def test_plain_without_labels_has_no_category_and_safe_responses(write_rows: Write) -> None:
    (pair,) = load(write_rows([PLAIN]), "plain")
    assert (pair.categories, pair.chosen_unsafe, pair.rejected_unsafe) == ((), False, False)


@pytest.mark.parametrize(
    "categories",
    [["Drugs", "Violence"], "Drugs; Violence", {"Drugs": True, "Violence": True, "Cybercrime": False}],
)
def test_plain_categories_may_be_list_text_or_mapping(write_rows: Write, categories: Any) -> None:
    row = PLAIN | {"categories": categories, "chosen_unsafe": False, "rejected_unsafe": True}
    (pair,) = load(write_rows([row]), "plain")
    assert (pair.categories, pair.rejected_unsafe) == (("Drugs", "Violence"), True)


def test_plain_fields_and_scores_under_other_names(write_rows: Write) -> None:
    rows = [
        {"q": "Ask?", "good": "No.", "bad": "Yes.", "kind": "Drugs", "good_harm": low, "bad_harm": high}
        for low, high in ((0.0, 1.0), (0.5, 0.75), (0.1, 0.49))
    ]
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad", "categories": "kind"}
    fields |= {"chosen_unsafe": "good_harm", "rejected_unsafe": "bad_harm"}
    pairs = load(write_rows(rows), "plain", fields=fields, unsafe_threshold=0.5)
    flags = [(pair.chosen_unsafe, pair.rejected_unsafe) for pair in pairs]
    assert flags == [(False, True), (True, True), (False, False)]


def test_every_file_kind_gives_the_same_pairs(write_rows: Write, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        PLAIN | {"prompt": f'Say "{i}",\nplease', "categories": "Drugs", "rejected_unsafe": True}
        for i in range(3)
    ]
    names = list(rows[0])
    cells = [['"' + str(row[name]).replace('"', '""') + '"' for name in names] for row in rows]
    csv_text = "\n".join(",".join(line) for line in [names, *cells]) + "\n"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    lines = "\n\n".join(map(json.dumps, rows))  # blank lines are no rows
    paths = [
        write_rows(rows),
        write_rows(rows, "rows.jsonl.gz"),
        write_rows(b"\xef\xbb\xbf" + json.dumps(rows, indent=1).encode(), "rows.json"),
        write_rows(lines.encode(), "lines.json"),
        write_rows(csv_text.encode(), "rows.csv"),
        str(tmp_path / "rows.parquet"),
    ]
    loaded = [
        [(p.prompt, p.chosen, p.categories, p.rejected_unsafe) for p in load(path, "plain")] for path in paths
    ]
    assert len(loaded[0]) == 3
    assert all(pairs == loaded[0] for pairs in loaded)


def test_origin_is_the_line_of_the_file(write_rows: Write) -> None:
    lines = json.dumps(PLAIN).encode() + b"\n\n" + json.dumps(PLAIN).encode()
    assert [pair.origin.rpartition(":")[2] for pair in load(write_rows(lines), "plain")] == ["1", "3"]
    cells = b'prompt,chosen,rejected\n"Two\nlines",No.,Yes.\nOne,No.,Yes.\n'
    assert [p.origin.rpartition(":")[2] for p in load(write_rows(cells, "a.csv"), "plain")] == ["2", "4"]


def test_folder_and_glob_read_all_files_in_order(write_rows: Write, tmp_path: Path) -> None:
    for i in (2, 1):
        write_rows([PLAIN | {"prompt": f"Ask {i}"}], f"part{i}.jsonl")
    write_rows(b"not data", "notes.md")
    for path in (str(tmp_path), f"{tmp_path}/part*.jsonl"):
        assert [pair.prompt[0].content for pair in load(path, "plain")] == ["Ask 1", "Ask 2"]


def test_named_data_set_is_read_through_datasets(
    write_rows: Write, tmp_path: Path, pku_row: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_rows([pku_row(), pku_row(better=1)], "test.jsonl")
    pairs = load(None, "pku", name=str(tmp_path), split="test")
    assert texts(pairs) == [("answer 0", "answer 1"), ("answer 1", "answer 0")]
    assert pairs[1].origin == f"{tmp_path}[test]:2"
