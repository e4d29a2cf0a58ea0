"""Answers that people labelled, read from files. What a judge makes of them is in calibration.py."""

import dataclasses
from pathlib import Path

from jaxalign.data.files import read_records
from jaxalign.data.records import Record, shown, without_skip
from jaxalign.data.schema import RESERVED_NAMES, DataError, Message
from jaxalign.data.settings import SourceConfig


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One answer with its label. `category` is None where the file has none."""

    prompt: tuple[Message, ...]
    response: str
    unsafe: bool
    category: str | None


def read_labelled(file: Path) -> list[Labelled]:
    """Rows with `prompt`, `response`, `unsafe` (0 or 1, true or false) and perhaps `category`.

    Any file that data may come in will do. Raises DataError naming the first row that is wrong.
    """
    try:
        return [_labelled(record) for record in read_records(SourceConfig(format="plain", path=str(file)))]
    except DataError as error:
        raise without_skip(error) from None


def _labelled(record: Record | DataError) -> Labelled:
    if isinstance(record, DataError):
        raise record
    if "response" not in record.values:
        got = f"only the fields {sorted(map(str, record.values))}"
        remedy = "name the columns prompt, response, unsafe and, if there is one, category"
        raise record.error("missing field", "response", got=got, expected="a text", remedy=remedy)
    found = record.values["response"]
    response = "" if found is None else found  # models give empty answers, and csv has null for them
    if not isinstance(response, str):
        raise record.error("wrong type", "response", got=shown(response), expected="a text")
    record.check_unicode(response, "response")
    category = record.text("category").strip() if record.has("category") else None
    if category in RESERVED_NAMES:
        expected = "another name: rows of tables are so called"
        raise record.error("reserved name", "category", got=category, expected=expected)
    return Labelled((Message("user", record.text("prompt")),), response, _label(record), category)


def _label(record: Record) -> bool:
    value = record.get("unsafe", "0 or 1")
    words = {"0": False, "1": True, "false": False, "true": True}
    word = str(value).strip().lower()
    if not isinstance(value, bool | int | str) or word not in words:
        raise record.error("wrong type", "unsafe", got=shown(value), expected="0 or 1, true or false")
    return words[word]
