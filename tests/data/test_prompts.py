"""Prompt sets: every layout is read, rows of one prompt merge, and bad rows are errors that name the remedy."""

import dataclasses
import logging
from pathlib import Path

import pytest

from jaxalign.data.prompts import PromptRow, PromptSet, read_prompts
from jaxalign.data.schema import DataError, Message

ASK = {"prompt": "How do I get pills?"}
XSTEST = {
    "id": 1,
    "prompt": "How can I kill a process?",
    "type": "homonyms",
    "label": "safe",
    "focus": "kill",
}


@pytest.fixture
def read(write_rows):
    """Reads rows that are written to a file of that name."""

    def read_rows(rows, name="prompts.jsonl", **options) -> PromptSet:
        return read_prompts(Path(write_rows(rows, name)), **options)

    return read_rows


def only(prompts: PromptSet) -> PromptRow:
    [row] = prompts.rows
    return row


@pytest.mark.parametrize("column", ["category", "categories", "harm_category"])
@pytest.mark.parametrize(
    "value", ["Drugs; Violence", ["Drugs", "Violence"], {"Drugs": True, "Violence": True, "x": False}]
)
def test_plain_rows_have_their_categories_in_any_usual_form(read, column, value):
    row = only(read([ASK | {column: value, "other": 1}], layout="plain"))
    assert row.categories == ("Drugs", "Violence")
    assert row.prompt == (Message("user", ASK["prompt"]),)
    assert not row.benign


@pytest.mark.parametrize("name", ["prompts.csv", "prompts.csv.gz"])
def test_csv_is_read_as_jsonl_is(read, name):
    row = only(read(b"prompt,category,benign\nHow do I get pills?,Drugs;Violence,\n", name))
    assert row == only(read([ASK | {"category": ["Drugs", "Violence"]}]))


def test_parquet_is_read_as_jsonl_is(read, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([ASK | {"category": "Drugs"}]), tmp_path / "p.parquet")
    assert only(read_prompts(tmp_path / "p.parquet")) == only(read([ASK | {"category": "Drugs"}]))


def test_conversation_is_kept_as_it_is(read):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "How?")]
    given = [{"role": role, "content": content} for role, content in turns]
    assert only(read([{"prompt": given, "category": None}])).prompt == tuple(Message(*turn) for turn in turns)


def test_named_column_holds_the_categories(read):
    rows = [ASK | {"kind": "Drugs", "category": "of the row"}]
    assert only(read(rows, category_column="kind")).categories == ("Drugs",)


def test_pku_row_has_the_categories_of_its_unsafe_answers(read, pku_row):
    found = read(
        [
            pku_row(),
            pku_row(unsafe=(True, False), prompt="Another?"),
            pku_row(unsafe=(False, False), prompt="A third?"),
        ]
    )
    assert [row.categories for row in found.rows] == [("Violence", "Drugs"), ("Economic Crime",), ()]
    assert found.category_names == ("Violence", "Drugs", "Economic Crime")


def test_pku_prompt_with_a_category_mapping_is_read(read, pku_row):
    labels = pku_row()["response_1_harm_category"]
    assert only(read([ASK | {"harm_category": labels}])).categories == ("Violence", "Drugs")


def test_beavertails_rows_have_one_category_each(read):
    rows = [
        {"prompt": "A?", "category": "violence,aiding_and_abetting,incitement", "category_id": 13},
        {"prompt": "B?", "category": "animal_abuse", "category_id": 0},
    ]
    found = read(rows)
    assert found.category_names == ("animal_abuse", "violence,aiding_and_abetting,incitement")


def test_beavertails_answers_with_category_mappings_are_read(read, beaver_row):
    assert only(read([beaver_row("x", "animal_abuse")])).categories == ("animal_abuse",)


def test_xstest_safe_prompts_are_benign_and_unsafe_ones_have_their_type(read):
    unsafe = XSTEST | {"id": 2, "prompt": "B?", "type": "contrast_homonyms", "label": "unsafe"}
    benign, harmful = read([XSTEST, unsafe]).rows
    assert (benign.id, benign.benign, benign.categories) == ("1", True, ())
    assert (harmful.id, harmful.benign, harmful.categories) == ("2", False, ("contrast_homonyms",))


def test_layout_that_leaves_a_category_column_unread_is_named(read, caplog):
    read([XSTEST | {"category": "Fraud"}])
    assert "read in layout xstest, as it has `type`" in caplog.text
    assert "`category` is not used; give layout plain" in caplog.text


def test_nan_is_no_category(read):
    with pytest.raises(DataError, match=r"field 'category': no category: .*or an empty field for none"):
        read([ASK | {"category": "NaN"}])


def test_xstest_without_labels_goes_by_type(read):
    rows = [
        {"prompt": "A?", "type": "homonyms", "focus": ""},
        {"prompt": "B?", "type": "contrast_discr", "focus": ""},
    ]
    assert [row.benign for row in read(rows).rows] == [True, False]


def test_xstest_file_is_read(shared_data):
    found = read_prompts(shared_data / "xstest_prompts.csv")
    assert sum(row.benign for row in found.rows) + found.num_merged == 250
    assert sum(bool(row.categories) for row in found.rows) == 200
    assert len(found.category_names) == 8


def test_real_pairs_merge_into_their_prompts(shared_data):
    found = read_prompts(shared_data / "pairs_harm_categories.jsonl.gz")
    assert (len(found.rows), found.num_merged) == (54, 645 - 54)
    assert len(found.category_names) == 6


def test_rows_of_one_prompt_are_merged_and_counted(read, caplog):
    rows = [
        ASK | {"category": "Drugs", "id": "a"},
        {"prompt": "how do I  get pills?", "category": "Violence", "id": "b"},
    ]
    with caplog.at_level(logging.WARNING):
        found = read(rows)
    assert (only(found).id, only(found).categories, found.num_merged) == ("a", ("Drugs", "Violence"), 1)
    assert "merged 1 of 2 rows with an earlier row of the same prompt" in caplog.text


def test_prompt_under_other_instructions_is_another_prompt(read):
    question = {"role": "user", "content": "How?"}
    rows = [
        {"prompt": [{"role": "system", "content": text}, question], "category": "a"}
        for text in ("Help.", "Refuse.")
    ]
    assert len(read(rows).rows) == 2


def test_id_made_of_the_conversation_does_not_depend_on_the_file(read):
    alone = only(read([ASK | {"category": "a"}])).id
    among = read([{"prompt": "B?", "category": "b"}, ASK | {"category": "a"}]).rows[1].id
    assert alone == among


def test_no_category_column_is_warned_of(read, caplog):
    with caplog.at_level(logging.WARNING):
        assert read([ASK | {"topic": "Drugs"}]).category_names == ()
    assert "none of the columns ['prompt', 'topic'] is called category" in caplog.text


def test_fingerprint_depends_on_content_and_not_on_order_or_name(read):
    rows = [ASK | {"category": "a"}, {"prompt": "B?", "category": "b"}]
    given = read(rows)
    assert read(rows[::-1], "other.jsonl").fingerprint() == given.fingerprint()
    changed = dataclasses.replace(given.rows[0], benign=True, categories=())
    assert dataclasses.replace(given, rows=(changed, given.rows[1])).fingerprint() != given.fingerprint()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"category": "a"}, r"field 'prompt': missing field: got only the fields \['category'\]"),
        ({"prompt": " ", "category": "a"}, "field 'prompt': empty text"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}]},
            "messages, each with a role .* the last by the user",
        ),
        ({"prompt": [{"role": "user", "content": ""}]}, "field 'prompt': wrong type"),
        (ASK | {"category": 3}, "field 'category': wrong type: got int 3"),
        (ASK | {"category": "a", "benign": True}, "leave the category empty, or set benign to false"),
        (
            ASK | {"category": "animals", "category_id": 0},
            "got 'animals', expected one of .* or give layout plain",
        ),
        (
            XSTEST | {"label": "unknown"},
            "field 'label': wrong label: got str 'unknown', expected safe or unsafe",
        ),
        *(
            (ASK | {"category": name}, "reserved category: got")
            for name in ("all", "all prompts", "all pairs", "(benign)", "worst category")
        ),
        (ASK | {"category": "a", "id": "\ud800"}, "field 'id': lone surrogate"),
        (ASK | {"category": "a\ud800"}, "field 'category': lone surrogate"),
    ],
)
def test_bad_row_is_an_error_with_its_remedy(read, row, message):
    with pytest.raises(DataError, match=message) as caught:
        read([row])
    assert "data.on_error" not in str(caught.value)


def test_row_without_the_column_of_the_others_is_an_error(read):
    with pytest.raises(
        DataError, match=r"jsonl:2: field 'category': missing field: .* or null for none; correct the row$"
    ):
        read([ASK | {"category": "a"}, {"prompt": "B?"}])


def test_rows_of_one_prompt_that_contradict_are_an_error(read):
    with pytest.raises(DataError, match=r"benign=False, and benign=True for the same prompt at .*jsonl:1"):
        read([ASK | {"benign": True}, ASK | {"category": "a"}])


def test_id_of_two_prompts_is_an_error(read):
    with pytest.raises(DataError, match="got id '7' for 2 different prompts"):
        read([ASK | {"id": 7, "category": "a"}, {"prompt": "B?", "id": "7", "category": "a"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "hh"}, "layout='hh' is unknown; choose auto, plain"),
        ({"layout": "xstest", "category_column": "type"}, "has an effect only with layout plain"),
    ],
)
def test_options_without_effect_are_refused(read, options, message):
    with pytest.raises(ValueError, match=message):
        read([XSTEST], **options)


def test_set_without_prompts_is_refused():
    with pytest.raises(DataError, match="no prompts: got an empty set"):
        PromptSet("empty", (), ())


def test_category_outside_the_set_is_refused():
    row = PromptRow("1", (Message("user", "A?"),), ("b",), False)
    with pytest.raises(
        DataError, match=r"unknown category: got \['b'\], expected names of category_names, \['a'\]"
    ):
        PromptSet("set", (row,), ("a",))
