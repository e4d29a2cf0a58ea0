"""Plain rows: prompt, chosen, rejected as texts; optional categories, safety labels and scores. Any field names."""

from jaxalign.data.records import Record, shown
from jaxalign.data.schema import Message, Pair
from jaxalign.data.settings import PlainFields


def to_pair(record: Record, fields: PlainFields, unsafe_threshold: float | None) -> Pair:
    """The pair of one row; without labels, no categories, two safe responses, no scores. Raises DataError."""
    chosen_field = fields.chosen_unsafe or "chosen_unsafe"
    rejected_field = fields.rejected_unsafe or "rejected_unsafe"
    chosen_score, rejected_score = record.scores(
        fields.chosen_score or "chosen_score",
        fields.rejected_score or "rejected_score",
        required=fields.chosen_score is not None or fields.rejected_score is not None,
    )
    return Pair(
        prompt=(Message("user", record.text(fields.prompt)),),
        chosen=record.text(fields.chosen),
        rejected=record.text(fields.rejected),
        categories=_categories(record, fields.categories),
        chosen_unsafe=_unsafe(record, chosen_field, fields.chosen_unsafe is not None, unsafe_threshold),
        rejected_unsafe=_unsafe(record, rejected_field, fields.rejected_unsafe is not None, unsafe_threshold),
        origin=record.origin,
        chosen_score=chosen_score,
        rejected_score=rejected_score,
    )


def category_names(record: Record, field: str) -> tuple[str, ...]:
    """One name, several separated by ";", a list of names, or a mapping from name to boolean. Raises DataError."""
    value = record.values.get(field)
    if value is None:  # no such field, or it says: none
        return ()
    if isinstance(value, dict):
        return record.true_keys(field, tuple(value))
    names = value.split(";") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise record.error(
            "wrong type", field, got=shown(value), expected="a category name or a list of them"
        )
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _categories(record: Record, named: str | None) -> tuple[str, ...]:
    if named is not None and named not in record.values:
        record.get(named, "category names")  # raises: the config names this field
    return category_names(record, named or "categories")


def _unsafe(record: Record, field: str, required: bool, threshold: float | None) -> bool:
    if not required and field not in record.values:
        return False
    if threshold is not None:
        return record.number(field) >= threshold
    return record.flag(field)
