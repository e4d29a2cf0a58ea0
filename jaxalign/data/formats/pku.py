"""PKU-SafeRLHF rows: two answers with safety labels, seen through one of several views."""

from jaxalign.data.records import Record, shown
from jaxalign.data.schema import PKU_CATEGORIES, Message, Pair, Skipped
from jaxalign.data.settings import View


def to_pair(record: Record, view: View) -> Pair | Skipped:
    """The pair of one row. Raises DataError.

    `better` and `safedpo` choose the more helpful response, `safer` the safer one; `safe_better` is `better`
    without the rows whose chosen response is unsafe. The categories are those of the unsafe response(s). The
    score of a response is -severity_level: 0 for no harm, -3 for severe harm.
    """
    prompt = record.text("prompt")
    responses = [record.text(f"response_{i}") for i in (0, 1)]
    unsafe = [not record.flag(f"is_response_{i}_safe") for i in (0, 1)]
    labels = [record.true_keys(f"response_{i}_harm_category", PKU_CATEGORIES) for i in (0, 1)]
    scores = [_score(record, f"response_{i}_severity_level") for i in (0, 1)]
    chosen = record.response_id("safer_response_id" if view == "safer" else "better_response_id")
    if view == "safe_better" and unsafe[chosen]:
        return Skipped(record.origin, "chosen response is unsafe (view: safe_better)")
    harms = {name for i in (0, 1) if unsafe[i] for name in labels[i]}
    return Pair(
        prompt=(Message("user", prompt),),
        chosen=responses[chosen],
        rejected=responses[1 - chosen],
        categories=tuple(name for name in PKU_CATEGORIES if name in harms),
        chosen_unsafe=unsafe[chosen],
        rejected_unsafe=unsafe[1 - chosen],
        origin=record.origin,
        chosen_score=scores[chosen],
        rejected_score=scores[1 - chosen],
    )


def _score(record: Record, field: str) -> float:
    level = record.get(field, "an integer from 0 to 3")
    if isinstance(level, bool) or level not in (0, 1, 2, 3):
        raise record.error("wrong type", field, got=shown(level), expected="an integer from 0 to 3")
    return 0.0 - level  # and not -level, which makes -0.0 of 0.0
