"""One row of a source with typed access to its fields. Every refusal names file, row and field."""

import math
from dataclasses import dataclass
from typing import Any

from jaxalign.data.schema import DataError

OR_SKIP = ", or set data.on_error: skip to leave such rows out"
REMEDY = f"correct the row{OR_SKIP}"
MAX_SCORE = 1e30  # float32 holds it and the differences of two


def shown(value: object, limit: int = 60) -> str:
    """A value as error messages show it: its type and a short repr."""
    try:
        text = repr(value)
    except RecursionError:
        text = "of very deep nesting"
    return f"{type(value).__name__} {text if len(text) <= limit else text[:limit] + '...'}"


def without_skip(error: DataError) -> DataError:
    """The error without the remedy of skipping, where nothing skips a row."""
    error.args = (str(error).removesuffix(OR_SKIP),)
    return error


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of one row and the "file:row" that it came from."""

    origin: str
    values: dict[str, Any]

    def error(self, reason: str, field: str, *, got: str, expected: str, remedy: str = REMEDY) -> DataError:
        """A DataError about a field of this row, to be raised by the caller."""
        return DataError(reason, origin=self.origin, field=field, got=got, expected=expected, remedy=remedy)

    def has(self, field: str) -> bool:
        """Whether the field is there and is not null."""
        return self.values.get(field) is not None

    def get(self, field: str, expected: str) -> Any:
        """The value of a field. Raises DataError if it is missing or null."""
        if not self.has(field):
            got = "null" if field in self.values else f"only the fields {sorted(map(str, self.values))}"
            raise self.error("missing field", field, got=got, expected=expected)
        return self.values[field]

    def text(self, field: str) -> str:
        """A text that is not blank. Raises DataError."""
        value = self.get(field, "a text")
        if not isinstance(value, str):
            raise self.error("wrong type", field, got=shown(value), expected="a text")
        if not value.strip():
            raise self.error("empty text", field, got=shown(value), expected="a text that is not blank")
        self.check_unicode(value, field)
        return value

    def check_unicode(self, value: str, field: str) -> None:
        """Raise DataError for half a character: JSON can escape one, but no tokenizer can read it."""
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            got = f"{shown(value[error.start])} at position {error.start}"
            raise self.error(
                "lone surrogate", field, got=got, expected="a text that UTF-8 can hold"
            ) from error

    def flag(self, field: str) -> bool:
        """A boolean; the words true and false too, as csv files have them. Raises DataError."""
        value = self.get(field, "true or false")
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        if not isinstance(value, bool):
            raise self.error("wrong type", field, got=shown(value), expected="true or false")
        return value

    def number(self, field: str) -> float:
        """A finite number; its text too, as csv files have it. Raises DataError."""
        value = self.get(field, "a number")
        try:
            number = (
                float(value)
                if isinstance(value, int | float | str) and not isinstance(value, bool)
                else math.nan
            )
        except (ValueError, OverflowError):  # no number, or an integer beyond all floats
            number = math.nan
        if not math.isfinite(number):
            raise self.error("wrong type", field, got=shown(value), expected="a finite number")
        return number

    def scores(
        self, chosen_field: str, rejected_field: str, *, required: bool = False
    ) -> tuple[float, float] | tuple[None, None]:
        """The scores of both responses; unless required, (None, None) if the row has neither. Raises DataError."""
        fields = (chosen_field, rejected_field)
        if not required and not any(self.has(field) for field in fields):
            return None, None  # null is "none" here: tables that mix sources have the columns in every row
        chosen, rejected = (self.number(field) for field in fields)
        for field, score in zip(fields, (chosen, rejected), strict=True):
            if abs(score) > MAX_SCORE:
                expected = f"a score within +-{MAX_SCORE:g}"
                raise self.error("score too large", field, got=f"{score:g}", expected=expected)
        return chosen, rejected

    def response_id(self, field: str) -> int:
        """0 or 1. Raises DataError."""
        value = self.get(field, "0 or 1")
        if isinstance(value, bool) or value not in (0, 1):
            raise self.error("wrong type", field, got=shown(value), expected="the integer 0 or 1")
        return int(value)

    def true_keys(self, field: str, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        """The keys with value true of a mapping from every category of the vocabulary to a boolean."""
        value = self.get(field, "a mapping from category to true or false")
        if not isinstance(value, dict):
            raise self.error(
                "wrong type", field, got=shown(value), expected="a mapping from category to true or false"
            )
        unknown = sorted(map(str, set(value) - set(vocabulary)))
        if unknown:
            raise self.error(
                "unknown category", field, got=str(unknown), expected=f"the keys {list(vocabulary)}"
            )
        missing = [name for name in vocabulary if name not in value]
        if missing:
            raise self.error(
                "missing field", field, got=f"no key {missing}", expected=f"all {len(vocabulary)} categories"
            )
        wrong = next((name for name in vocabulary if not isinstance(value[name], bool)), None)
        if wrong is not None:
            got = shown(value[wrong])
            raise self.error("wrong type", f"{field}.{wrong}", got=got, expected="true or false")
        return tuple(name for name in vocabulary if value[name])
