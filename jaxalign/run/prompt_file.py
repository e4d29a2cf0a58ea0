"""Prompts for `jaxalign generate`, from a file or from standard input, in order and none left out."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from jaxalign.data.files import SUFFIXES, read_records
from jaxalign.data.records import Record, shown, without_skip
from jaxalign.data.schema import DataError, Message
from jaxalign.data.settings import SourceConfig

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for an answer, as it was `given`, with its "file:row" and the id of its row."""

    messages: tuple[Message, ...]
    given: Any
    origin: str
    id: str | None = None


def read_prompt_file(source: str) -> list[Prompt]:
    """Prompts of a file, folder or glob of jsonl, json, csv or parquet, of lines of text, or of "-", standard input.

    A row has a column `prompt`, a text or a list of messages, and may have an `id`. Any other file holds one prompt a
    line; blank lines are no prompts. Raises DataError.
    """
    path = Path(source).expanduser()
    origin = "standard input" if source == "-" else source
    if source == "-":
        prompts = _of_lines(sys.stdin.buffer.read(), origin)
    elif path.is_file() and not path.name.endswith(SUFFIXES):
        prompts = _of_lines(path.read_bytes(), origin)
    else:
        try:
            prompts = [
                _of_record(record) for record in read_records(SourceConfig(format="plain", path=source))
            ]
        except DataError as error:
            raise without_skip(error) from None
    if not prompts:
        raise DataError(
            "no prompts", origin=origin, got="no line with text", expected="at least one", remedy="give some"
        )
    return prompts


def _of_lines(content: bytes, origin: str) -> list[Prompt]:
    try:
        lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(
            "not UTF-8",
            origin=origin,
            got=f"byte 0x{content[error.start]:02x} at position {error.start}",
            expected="text in UTF-8, one prompt a line",
            remedy="convert the text, for example with iconv -t UTF-8",
        ) from error
    prompts = [
        Prompt((Message("user", line),), line, f"{origin}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if prompts and _is_row(prompts[0].given):
        raise DataError(
            "a row where a text is read",
            origin=prompts[0].origin,
            got=shown(prompts[0].given),
            expected="lines of text, a prompt each",
            remedy="give rows as a file whose name ends in .jsonl",
        )
    return prompts


def _is_row(line: str) -> bool:
    """Whether the line is an object of JSON with a prompt."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and "prompt" in found


def _of_record(record: Record | DataError) -> Prompt:
    if isinstance(record, DataError):
        raise record
    given = record.get("prompt", "a text or a list of messages")
    id_ = str(record.values["id"]) if record.has("id") else None
    record.check_unicode(id_ or "", "id")
    if isinstance(given, str):
        return Prompt((Message("user", record.text("prompt")),), given, record.origin, id_)
    expected = (
        f"a text, or messages with a role ({', '.join(ROLES)}) and a text, none blank, the last by the user"
    )
    sound = isinstance(given, list) and given and all(_is_message(message) for message in given)
    if not sound or given[-1]["role"] != "user":
        raise record.error(
            "wrong type", "prompt", got=shown(given), expected=expected, remedy="correct the row"
        )
    # With the keys of messages: all is written out.
    record.check_unicode(json.dumps(given, ensure_ascii=False), "prompt")
    return Prompt(
        tuple(Message(message["role"], message["content"]) for message in given), given, record.origin, id_
    )


def _is_message(given: object) -> bool:
    if not isinstance(given, dict) or given.get("role") not in ROLES:
        return False
    return isinstance(given.get("content"), str) and bool(given["content"].strip())
