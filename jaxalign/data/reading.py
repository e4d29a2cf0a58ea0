"""From the rows of a source to pairs: each row through its format, then the checks that all formats share."""

from collections.abc import Iterable, Iterator

from jaxalign.data.formats import beavertails, hh, pku, plain, trl
from jaxalign.data.records import REMEDY, Record, shown
from jaxalign.data.schema import IDENTICAL, DataError, Pair, Skipped
from jaxalign.data.settings import DataConfig, PlainFields, SourceConfig


def to_pairs(
    records: Iterable[Record | DataError], source: SourceConfig, config: DataConfig
) -> Iterator[Pair | Skipped | DataError]:
    """Pairs, rows left out by rule, and bad rows as errors that are yielded, not raised."""
    by_prompt = source.format == "beavertails"
    items = beavertails.to_pairs(records) if by_prompt else _row_by_row(records, source, config)
    for item in items:
        yield (_problem(item, config.category_names) or item) if isinstance(item, Pair) else item


def _row_by_row(
    records: Iterable[Record | DataError], source: SourceConfig, config: DataConfig
) -> Iterator[Pair | Skipped | DataError]:
    for record in records:
        try:
            yield record if isinstance(record, DataError) else _to_pair(record, source, config)
        except DataError as error:
            yield error


def _to_pair(record: Record, source: SourceConfig, config: DataConfig) -> Pair | Skipped:
    match source.format:
        case "pku":
            return pku.to_pair(record, source.view or "better")
        case "hh":
            return hh.to_pair(record, config.prompt_format)
        case "trl":
            return trl.to_pair(record)
        case "plain":
            return plain.to_pair(record, source.fields or PlainFields(), source.unsafe_threshold)
        case _:
            raise AssertionError(f"{source.format} is not read row by row")


def _problem(pair: Pair, vocabulary: tuple[str, ...]) -> DataError | None:
    """What is wrong with a pair, whatever its format."""
    for field, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not text.strip():
            return _error(pair, "empty text", field, shown(text), "a response that is not blank")
    if pair.chosen.strip() == pair.rejected.strip():
        expected = "two responses of which one can be preferred"
        return _error(pair, IDENTICAL, "chosen, rejected", shown(pair.chosen), expected)
    unknown = [name for name in pair.categories if name not in vocabulary]
    if unknown:
        expected = f"names of data.categories, {list(vocabulary)}"
        return _error(pair, "unknown category", "categories", str(unknown), expected)
    return None


def _error(pair: Pair, reason: str, field: str, got: str, expected: str) -> DataError:
    return DataError(
        reason,
        origin=pair.origin,
        field=field,
        got=got,
        expected=expected,
        remedy=REMEDY,
        categories=pair.categories,
    )
