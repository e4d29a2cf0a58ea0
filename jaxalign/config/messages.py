"""What a validation error says: the key, what was given, what is allowed, and the nearest known name."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from jaxalign.settings import Settings
from jaxalign.training.loss_table import LOSSES

UNION_MEMBER = re.compile(r"int|float|str|(literal|tuple|dict|constrained-)\W.*")
CHOICES = {"loss": "name", "judge": "kind"}
"""Sections of several kinds, by the key that tells which."""


def explain(errors: Sequence[Any], kind: type[Settings]) -> list[str]:
    """One line for each key that pydantic complains of; the alternatives of a union are joined by "or"."""
    schema = kind.model_json_schema()
    messages: dict[str, list[str]] = {}
    for item in errors:
        key, message = _explain_one(item, schema)
        messages.setdefault(key, []).append(message)
    return [f"{key}: {' or '.join(found)}" for key, found in messages.items()]


def _explain_one(item: Any, schema: dict[str, Any]) -> tuple[str, str]:
    location = [str(part) for part in item["loc"]]
    choice = CHOICES.get(location[0], "") if location else ""
    options = _options(schema["$defs"], choice) if choice else {}
    chosen = location.pop(1) if len(location) > 1 and location[1] in options else None
    if location and UNION_MEMBER.fullmatch(location[-1]):
        location.pop()
    key = ".".join(location) or "configuration"
    if item["type"] == "extra_forbidden":
        return key, f"unknown key{_suggestion(location, schema, options, chosen)}"
    if item["type"] == "missing":
        return key, "missing, and it has no default"
    if item["type"] == "union_tag_not_found":
        return f"{key}.{choice}", f"missing; one of {', '.join(options)}"
    if item["type"] == "union_tag_invalid":
        given = item["ctx"]["tag"]
        close = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(given, options, n=1))
        return f"{key}.{choice}", f"{close}got {given!r}, one of {', '.join(options)}"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return key, f"{message}{shown}"


def _suggestion(
    location: Sequence[str], schema: dict[str, Any], options: dict[str, list[str]], chosen: str | None
) -> str:
    owners = [name for name, keys in options.items() if chosen is not None and location[-1] in keys]
    if owners:
        return f" of this {location[0]}; it is an option of {', '.join(owners)}"
    known = _keys_beside(location, schema) if chosen is None else options[chosen]
    close = difflib.get_close_matches(location[-1], known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _keys_beside(location: Sequence[str], schema: dict[str, Any]) -> list[str]:
    node = schema
    for part in location[:-1]:
        inner = node["items"] if "items" in node else node.get("properties", {}).get(part, {})
        node = _resolve(inner, schema["$defs"])
    return sorted(node.get("properties", {}))


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", [])):
        if "$ref" in option:
            return definitions[option["$ref"].rsplit("/", 1)[-1]]
    return node


def _options(definitions: dict[str, Any], choice: str) -> dict[str, list[str]]:
    """The keys of every kind of a section; losses in the order of their table."""
    options: dict[str, list[str]] = {}
    for definition in definitions.values():
        properties = definition.get("properties", {})
        name = properties.get(choice, {})
        names = name.get("enum", [name["const"]] if "const" in name else [])
        options |= {tag: sorted(properties) for tag in names}
    # Other things have names too; losses come in the order of their table.
    return {name: options[name] for name in LOSSES} if choice == CHOICES["loss"] else options
