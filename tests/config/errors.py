"""The message about wrong settings."""

import pytest

from jaxalign.config import ConfigError, parse_config


def error_of(settings, *, without=(), **sections) -> str:
    """The message about these settings with sections laid over them (`loss` is replaced)."""
    changed = {name: part for name, part in settings.items() if name not in without}
    for name, part in sections.items():
        keep = name != "loss" and isinstance(part, dict)
        changed[name] = {**changed.get(name, {}), **part} if keep else part
    with pytest.raises(ConfigError) as error:
        parse_config(changed, "run.yaml")
    assert str(error.value).startswith("run.yaml:\n  ")
    return str(error.value)
