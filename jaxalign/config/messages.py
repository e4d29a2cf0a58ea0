"""What a validation error says: the key, what was given, what is allowed, and the nearest known name."""

import difflib
from collections.abc import Sequence
from typing import Any

from jaxalign.config.schema import Config
from jaxalign.training.objective import LOSSES


def explain(item: Any) -> str:
    """One line for one of pydantic's errors."""
    location = [str(part) for part in item["loc"]]
    if len(location) > 1 and location[0] == "loss" and location[1] in LOSSES:
        del location[1]
    key = ".".join(location) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(location)}"
    if item["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return f"{key}: {message}{shown}"


def _suggestion(location: Sequence[str]) -> str:
    node: Any = Config.model_json_schema()
    definitions = node["$defs"]
    for part in location[:-1]:
        node = _resolve(node.get("properties", {}).get(part, {}), definitions)
    known = sorted(node.get("properties", {}))
    if location[0] == "loss":
        options = {
            ref["properties"]["name"]["const"]: ref["properties"] for ref in _loss_schemas(definitions)
        }
        owners = [name for name, properties in options.items() if location[-1] in properties]
        if owners:
            return f" of this loss; it is an option of {', '.join(owners)}"
    close = difflib.get_close_matches(location[-1], known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", [])):
        if "$ref" in option:
            return definitions[option["$ref"].rsplit("/", 1)[-1]]
    return node


def _loss_schemas(definitions: dict[str, Any]) -> list[dict[str, Any]]:
    return [d for d in definitions.values() if "const" in d.get("properties", {}).get("name", {})]
