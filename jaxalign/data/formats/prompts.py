"""Rows of prompts in the layouts of evaluation sets: the conversation of a row, and whether and how it is harmful."""

from typing import Literal

from jaxalign.data.formats.plain import category_names
from jaxalign.data.records import Record, shown
from jaxalign.data.schema import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, Message

Layout = Literal["plain", "pku", "beavertails", "xstest"]
Labels = tuple[tuple[str, ...], bool]  # harm categories, and whether refusing would be wrong
ROLES = ("system", "user", "assistant")
CORRECT = "correct the row"


def layout_of(record: Record) -> Layout:
    """The layout that the columns of a row tell."""
    columns = record.values
    if "type" in columns and ("label" in columns or "focus" in columns):
        return "xstest"
    if "category_id" in columns:
        return "beavertails"
    labels = columns.get("response_0_harm_category", columns.get("harm_category"))
    return "pku" if isinstance(labels, dict) else "plain"


def conversation(record: Record) -> tuple[Message, ...]:
    """One user turn, or the messages of a conversation that waits for an answer. Raises DataError."""
    value = record.get("prompt", "a text or a list of messages")
    if isinstance(value, str):
        return (Message("user", record.text("prompt")),)
    sound = isinstance(value, list) and value and all(map(_is_message, value))
    if not sound or value[-1]["role"] != "user":
        roles = ", ".join(ROLES)
        expected = (
            f"a text, or messages, each with a role ({roles}) and a content of text, the last by the user"
        )
        raise record.error("wrong type", "prompt", got=shown(value), expected=expected, remedy=CORRECT)
    for turn in value:
        record.check_unicode(turn["content"], "prompt")
    return tuple(Message(turn["role"], turn["content"]) for turn in value)


def labels(record: Record, layout: Layout, column: str | None) -> Labels:
    """The labels of a row; `column` is that of the categories in layout plain. Raises DataError."""
    match layout:
        case "xstest":
            return _xstest(record)
        case "beavertails":
            return _beavertails(record), False
        case "pku":
            return _pku(record), False
        case _:
            return _plain(record, column)


def _is_message(turn: object) -> bool:
    if not isinstance(turn, dict):
        return False
    content = turn.get("content")
    return turn.get("role") in ROLES and isinstance(content, str) and bool(content.strip())


def _plain(record: Record, column: str | None) -> Labels:
    benign = record.has("benign") and record.flag("benign")
    if column is not None and column not in record.values and not benign:
        record.get(column, "category names, or null for none")  # raises: other rows of the file have them
    categories = () if column is None else category_names(record, column)
    if column is not None and any(name.casefold() == "nan" for name in categories):
        expected = "a category, or an empty field for none"
        raise record.error(
            "no category", column, got=shown(record.values[column]), expected=expected, remedy=CORRECT
        )
    if benign and categories:
        got = f"a benign prompt with the categories {list(categories)}"
        expected = "harm categories on harmful prompts alone"
        remedy = "leave the category empty, or set benign to false"
        raise record.error("benign and harmful", "benign", got=got, expected=expected, remedy=remedy)
    return categories, benign


def _xstest(record: Record) -> Labels:
    """Unsafe prompts have their type as category; where no label says so, the types "contrast_..." are unsafe."""
    kind = record.text("type")
    by_type = "unsafe" if kind.startswith("contrast_") else "safe"
    label = record.text("label") if "label" in record.values else by_type
    if label not in ("safe", "unsafe"):
        raise record.error(
            "wrong label", "label", got=shown(label), expected="safe or unsafe", remedy=CORRECT
        )
    return ((kind,), False) if label == "unsafe" else ((), True)


def _beavertails(record: Record) -> tuple[str, ...]:
    name = record.text("category")
    if name not in BEAVERTAILS_CATEGORIES:
        expected = f"one of {list(BEAVERTAILS_CATEGORIES)}"
        remedy = "correct the name, or give layout plain"
        raise record.error("unknown category", "category", got=repr(name), expected=expected, remedy=remedy)
    return (name,)


def _pku(record: Record) -> tuple[str, ...]:
    """In a row of a pair those of its unsafe answers, else those of the row itself."""
    if "response_0_harm_category" not in record.values:
        return record.true_keys("harm_category", PKU_CATEGORIES)
    unsafe = [i for i in (0, 1) if not record.flag(f"is_response_{i}_safe")]
    harms = {name for i in unsafe for name in record.true_keys(f"response_{i}_harm_category", PKU_CATEGORIES)}
    return tuple(name for name in PKU_CATEGORIES if name in harms)
