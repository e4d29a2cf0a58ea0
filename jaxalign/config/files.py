"""Configuration files: YAML with `extends`, overrides from the command line, and the way back to YAML."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from jaxalign.config.messages import explain
from jaxalign.config.schema import Config, ConfigError
from jaxalign.settings import Settings

S = TypeVar("S", bound=Settings)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run in a YAML file. Raises ConfigError."""
    return load_settings(Config, path, overrides)


def load_settings(kind: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply `a.b=value` overrides and validate. Raises ConfigError.

    `extends: other.yaml` (relative to the file) is read first, and the file laid over it.
    """
    raw = _read(path, ())
    for override in overrides:
        _set(raw, override)
    return _parse(kind, raw, str(path))


def parse_config(raw: Mapping[str, Any], origin: str) -> Config:
    """Validate plain values. Raises ConfigError listing every wrong key; `origin` says where they came from."""
    return _parse(Config, raw, origin)


def _parse(kind: type[S], raw: Mapping[str, Any], origin: str) -> S:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = explain(_causes(error.errors(include_url=False)), kind)
        raise ConfigError(f"{origin}:\n  " + "\n  ".join(lines)) from error


def _causes(errors: list[Any]) -> list[Any]:
    """Without the errors of a list that only follow from errors within it."""
    within = {item["loc"][:end] for item in errors for end in range(len(item["loc"]))}
    return [item for item in errors if item["type"] != "too_short" or item["loc"] not in within]


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path} extends itself: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}; save it as UTF-8") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: expected the name of one file, got {base!r}")
    return _merge(_read(path.parent / base, (*seen, path)), raw)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-6 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} given twice{node.start_mark}")
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """1e3 is the whole number 1000, which may be a count of steps; 1000.0 is not."""
        value = self.construct_yaml_float(node)
        whole = "e" in node.value.lower() and value.is_integer()
        return int(value) if whole else value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _set(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override!r}: expected section.key=value, such as optimizer.learning_rate=1e-6"
        )
    section = raw
    for key in keys[:-1]:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, dict) else {}
        section = section[key]
    try:
        section[keys[-1]] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
