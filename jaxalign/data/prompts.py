"""Sets of prompts that a model is asked to answer, read from files. Neither answers nor their statistics are here."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from jaxalign.data.files import find_files, read_records
from jaxalign.data.formats.prompts import Layout, conversation, labels, layout_of
from jaxalign.data.records import Record, without_skip
from jaxalign.data.schema import RESERVED_NAMES, VOCABULARIES, DataError, Message, prompt_key
from jaxalign.data.settings import SourceConfig

log = logging.getLogger(__name__)

CATEGORY_COLUMNS = ("category", "categories", "harm_category")  # what layout plain looks for, in this order


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt of an evaluation set.

    `id` is stable and unique: that of the file, else a hash of the conversation. `categories` are harm categories,
    none for a benign prompt or where they are unknown. Refusing a `benign` prompt would be wrong.
    """

    id: str
    prompt: tuple[Message, ...]
    categories: tuple[str, ...]
    benign: bool


@dataclass(frozen=True)
class PromptSet:
    """Prompts with distinct ids, and the categories in the order of all tables.

    `num_merged` counts the rows of the file that repeated an earlier prompt. Raises DataError for a set without
    prompts, for ids that repeat, and for categories that are not among `category_names`.
    """

    name: str
    rows: tuple[PromptRow, ...]
    category_names: tuple[str, ...]
    num_merged: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        """Check the rows against each other and against the categories."""
        if not self.rows:
            raise self._error("no prompts", "an empty set", "at least one prompt", "choose other prompts")
        [(commonest, number)] = Counter(row.id for row in self.rows).most_common(1)
        if number > 1:
            got = f"id {commonest!r} for {number} different prompts"
            raise self._error(
                "repeated id", got, "one id for each prompt", "rename the ids or leave them out"
            )
        reserved = [name for name in self.category_names if name in RESERVED_NAMES]
        if reserved:
            expected = "names that no row of a table has"
            raise self._error("reserved category", str(reserved), expected, "rename them")
        unknown = sorted({name for row in self.rows for name in row.categories} - set(self.category_names))
        if unknown:
            expected = f"names of category_names, {list(self.category_names)}"
            raise self._error("unknown category", str(unknown), expected, "add the names there")

    def _error(self, reason: str, got: str, expected: str, remedy: str) -> DataError:
        return DataError(reason, origin=self.name, got=got, expected=expected, remedy=remedy)

    def fingerprint(self) -> str:
        """SHA-256 over ids, conversations, categories and labels, whatever their order; not over the name."""
        rows = sorted(
            json.dumps([row.id, _turns(row.prompt), sorted(row.categories), row.benign]) for row in self.rows
        )
        return hashlib.sha256("\n".join([*rows, *sorted(self.category_names)]).encode()).hexdigest()


def read_prompts(
    path: Path,
    *,
    layout: Literal["auto"] | Layout = "auto",
    category_column: str | None = None,
    name: str | None = None,
) -> PromptSet:
    """The prompts of a file, folder or glob of jsonl, json, csv (each also .gz) or parquet.

    `auto` tells the layout from the columns of the first row. `category_column` is for layout plain; every row
    must have it. Rows of one prompt (but for letter case and spacing) are merged and their categories united.
    Raises DataError for unreadable files, bad rows, and rows of one prompt that disagree whether it is benign.
    """
    if layout not in ("auto", *get_args(Layout)):
        raise ValueError(f"layout={layout!r} is unknown; choose auto, {', '.join(get_args(Layout))}")
    records = list(_sound_records(path))
    told = "plain" if category_column is not None else layout_of(records[0])
    chosen: Layout = told if layout == "auto" else layout
    if category_column is not None and chosen != "plain":
        raise ValueError(
            f"category_column={category_column!r} has an effect only with layout plain (this is {chosen}); "
            "leave it out, or give layout plain"
        )
    beside = next((name for name in CATEGORY_COLUMNS if name in records[0].values), None)
    if layout == "auto" and chosen == "xstest" and beside is not None:
        log.warning(
            "%s: read in layout xstest, as it has `type` and `label` (or `focus`), so `%s` is not used; give layout "
            "plain to use it",
            path,
            beside,
        )
    column = category_column or (_category_column(records) if chosen == "plain" else None)
    rows: dict[tuple[str, ...], tuple[PromptRow, str]] = {}
    for record in records:
        _enter(rows, _to_row(record, chosen, column), record)
    num_merged = len(records) - len(rows)
    if num_merged:
        log.warning(
            "%s: merged %d of %d rows with an earlier row of the same prompt", path, num_merged, len(records)
        )
    found = {category for row, _ in rows.values() for category in row.categories}
    set_name = name or ", ".join(file.name for file in find_files(str(path)))
    return PromptSet(set_name, tuple(row for row, _ in rows.values()), in_order(found), num_merged)


def in_order(names: set[str]) -> tuple[str, ...]:
    """The categories in the order of a known vocabulary that holds them all, else sorted."""
    known = next((known for known in VOCABULARIES.values() if names <= set(known)), tuple(sorted(names)))
    return tuple(name for name in known if name in names)


def _turns(prompt: tuple[Message, ...]) -> list[list[str]]:
    return [[message.role, message.content] for message in prompt]


def _sound_records(path: Path) -> Iterator[Record]:
    for record in read_records(SourceConfig(format="plain", path=str(path))):
        if isinstance(record, DataError):
            raise without_skip(record)  # left out, it would change the figures unseen
        yield record


def _category_column(records: list[Record]) -> str | None:
    found = next((name for name in CATEGORY_COLUMNS if any(name in r.values for r in records)), None)
    if found is None:
        log.warning(
            "%s: no figures per category, as none of the columns %s is called %s; name the column of the categories",
            records[0].origin,
            sorted(map(str, records[0].values)),
            " or ".join(CATEGORY_COLUMNS),
        )
    return found


def _to_row(record: Record, layout: Layout, column: str | None) -> PromptRow:
    given = record.values.get("id")
    try:
        prompt = conversation(record)
        categories, benign = labels(record, layout, column)
        for field, text in (("id", str(given)), *(("category", name) for name in categories)):
            record.check_unicode(text, field)
    except DataError as error:
        raise without_skip(error) from None
    made = hashlib.sha256(json.dumps(_turns(prompt)).encode()).hexdigest()[:16]
    return PromptRow(made if given is None else str(given), prompt, categories, benign)


def _enter(rows: dict[tuple[str, ...], tuple[PromptRow, str]], row: PromptRow, record: Record) -> None:
    """Add a row, or unite it with the earlier row of the same prompt, whose id it takes."""
    # System turns are no part of prompt_key, but a question under other instructions is another prompt.
    key = (prompt_key(row.prompt), *(turn.content for turn in row.prompt if turn.role == "system"))
    earlier, origin = rows.get(key, (row, record.origin))
    if earlier.benign != row.benign:
        got = f"benign={row.benign}, and benign={earlier.benign} for the same prompt at {origin}"
        expected, remedy = "rows of one prompt that agree", "correct one of them"
        raise record.error("contradicting labels", "prompt", got=got, expected=expected, remedy=remedy)
    categories = tuple(dict.fromkeys(earlier.categories + row.categories))
    rows[key] = replace(earlier, categories=categories), origin
