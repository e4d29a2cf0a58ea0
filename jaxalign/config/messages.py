"""What a validation error says: the key, what was given, what is allowed, and the nearest known name."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from jaxalign.config.schema import Config
from jaxalign.training.loss_table import LOSSES

UNION_MEMBER = re.compile(r"int|float|str|(literal|tuple|dict|constrained-)\W.*")


def explain(errors: Sequence[Any]) -> list[str]:
    """One line for each key that pydantic complains of; the alternatives of a union are joined by "or"."""
    messages: dict[str, list[str]] = {}
    for item in errors:
        key, message = _explain_one(item)
        messages.setdefault(key, []).append(message)
    return [f"{key}: {' or '.join(found)}" for key, found in messages.items()]


def _explain_one(item: Any) -> tuple[str, str]:
    location = [str(part) for part in item["loc"]]
    of_loss = len(location) > 1 and location[0] == "loss" and location[1] in LOSSES
    loss = location.pop(1) if of_loss else None
    if location and UNION_MEMBER.fullmatch(location[-1]):
        location.pop()
    key = ".".join(location) or "configuration"
    if item["type"] == "extra_forbidden":
        return key, f"unknown key{_suggestion(location, loss)}"
    if item["type"] == "missing":
        return key, "missing, and it has no default"
    if item["type"] == "union_tag_not_found":
        return f"{key}.name", f"missing; one of {', '.join(LOSSES)}"
    if item["type"] == "union_tag_invalid":
        given = item["ctx"]["tag"]
        close = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(given, LOSSES, n=1))
        return f"{key}.name", f"{close}got {given!r}, one of {', '.join(LOSSES)}"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return key, f"{message}{shown}"


def _suggestion(location: Sequence[str], loss: str | None) -> str:
    schema = Config.model_json_schema()
    options = _loss_options(schema["$defs"])
    owners = [name for name in LOSSES if loss is not None and location[-1] in options[name]]
    if owners:
        return f" of this loss; it is an option of {', '.join(owners)}"
    known = _keys_beside(location, schema) if loss is None else options[loss]
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


def _loss_options(definitions: dict[str, Any]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    for definition in definitions.values():
        properties = definition.get("properties", {})
        name = properties.get("name", {})
        options |= {
            loss: sorted(properties) for loss in name.get("enum", [name.get("const")]) if loss in LOSSES
        }
    return options
