"""TRL preference rows: prompt, chosen, rejected as texts or lists of messages; an implicit prompt too."""

from jaxalign.data.records import Record, shown
from jaxalign.data.schema import Message, Pair

_ROLES = ("system", "user", "assistant")
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


def to_pair(record: Record) -> Pair:
    """The pair of one row: no categories, both responses taken as safe. Raises DataError.

    Scores are read where a row has them: `score_chosen` and `score_rejected`, or `chosen_score` and
    `rejected_score`.
    """
    if isinstance(record.get("chosen", "a text or a list of messages"), list):
        prompt, chosen, rejected = _conversation(record)
    elif record.has("prompt"):
        prompt = (Message("user", record.text("prompt")),)
        chosen, rejected = record.text("chosen"), record.text("rejected")
    else:
        text, chosen, rejected = _shared_prefix(record)
        prompt = (Message("user", text),)
    return Pair(prompt, chosen, rejected, (), False, False, record.origin, *_scores(record))


def _scores(record: Record) -> tuple[float, float] | tuple[None, None]:
    named = [fields for fields in _SCORES if any(record.has(field) for field in fields)]
    if len(named) > 1:
        got, expected = "scores under two names", f"one of {_SCORES[0]} and {_SCORES[1]}"
        raise record.error("scores twice", ", ".join(named[1]), got=got, expected=expected)
    return record.scores(*named[0]) if named else (None, None)


def _shared_prefix(record: Record) -> tuple[str, str, str]:
    """An implicit string prompt: the longest common prefix that splits no word."""
    chosen, rejected = record.text("chosen"), record.text("rejected")
    same = (a == b for a, b in zip(chosen, rejected, strict=False))
    end = next((i for i, equal in enumerate(same) if not equal), min(len(chosen), len(rejected)))
    if not (_at_word_end(chosen, end) and _at_word_end(rejected, end)):
        end = max(chosen.rfind(" ", 0, end), chosen.rfind("\n", 0, end), 0)
    end = len(chosen[:end].rstrip(" "))  # the space belongs to the response, as tokenizers have it
    if not chosen[:end].strip():
        raise _no_prompt(record)
    return chosen[:end], chosen[end:], rejected[end:]


def _at_word_end(text: str, end: int) -> bool:
    return end == len(text) or text[end].isspace() or text[end - 1 : end].isspace()


def _no_prompt(record: Record) -> Exception:
    expected = "a `prompt`, or `chosen` and `rejected` that begin with the same prompt"
    return record.error("missing field", "prompt", got="no common beginning", expected=expected)


def _conversation(record: Record) -> tuple[tuple[Message, ...], str, str]:
    chosen, rejected = _messages(record, "chosen"), _messages(record, "rejected")
    if isinstance(record.values.get("prompt"), list):
        prompt = _messages(record, "prompt")
    elif record.has("prompt"):
        prompt = (Message("user", record.text("prompt")),)
    else:
        prompt = chosen[:-1]
        if not prompt or rejected[:-1] != prompt:
            raise _no_prompt(record)
    if prompt[-1].role != "user":
        got = f"a last message of role {prompt[-1].role}"
        raise record.error(
            "turns out of order", "prompt", got=got, expected="a prompt that ends with a user turn"
        )
    return (
        prompt,
        _response(record, "chosen", prompt, chosen),
        _response(record, "rejected", prompt, rejected),
    )


def _response(record: Record, field: str, prompt: tuple[Message, ...], messages: tuple[Message, ...]) -> str:
    """The text of the one answer; the messages may repeat the prompt in front of it."""
    answer = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if len(answer) != 1 or answer[0].role != "assistant":
        got = f"the roles {[message.role for message in answer]}"
        raise record.error(
            "turns out of order", field, got=got, expected="one assistant message after the prompt"
        )
    return answer[0].content


def _messages(record: Record, field: str) -> tuple[Message, ...]:
    value = record.get(field, "a list of messages")
    expected = f"messages {{role, content}} with a role of {_ROLES} and a text that is not blank"
    if not isinstance(value, list) or not value:
        raise record.error("wrong type", field, got=shown(value), expected=expected)
    for i, message in enumerate(value):
        if not (
            isinstance(message, dict)
            and message.get("role") in _ROLES
            and isinstance(message.get("content"), str)
        ):
            raise record.error("wrong type", f"{field}[{i}]", got=shown(message), expected=expected)
        if not message["content"].strip():
            raise record.error("empty text", f"{field}[{i}]", got=shown(message), expected=expected)
        record.check_unicode(message["content"], f"{field}[{i}]")
    return tuple(Message(message["role"], message["content"]) for message in value)
