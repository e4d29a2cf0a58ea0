"""The base of every settings class: frozen, unknown keys are errors. Each layer keeps its settings beside its code."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A typed, frozen group of options. Unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
