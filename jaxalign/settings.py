"""The base of every settings class. Each layer keeps its settings beside its code; no option is defined here."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Strict

LaxPath = Annotated[Path, Strict(False)]
"""A path, which may also be given as text."""


class Settings(BaseModel):
    """A typed, frozen group of options. Unknown keys, NaN and infinity are refused.

    Types are strict: no text or bool for a number, no number for a bool; an integer is a fine float. What YAML
    has no type for says so: `LaxPath` for paths, `strict=False` on tuples, which come as lists.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, strict=True
    )
