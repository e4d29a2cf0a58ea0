"""HH-RLHF rows: two transcripts that share everything but the last answer. They carry no safety labels."""

import re

from jaxalign.data.records import Record, shown
from jaxalign.data.schema import Message, Pair
from jaxalign.data.settings import PromptFormat

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def to_pair(record: Record, prompt_format: PromptFormat) -> Pair:
    """The pair of one row: no categories, both responses taken as safe. Raises DataError.

    chat: the shared turns become messages. raw: the transcript up to the last "Assistant:" stays one text.
    """
    prompt, chosen = _split(record, "chosen")
    rejected_prompt, rejected = _split(record, "rejected")
    if prompt != rejected_prompt:
        expected = "transcripts that differ in the last answer only"
        raise record.error("no shared prompt", "rejected", got="another conversation", expected=expected)
    if prompt_format == "raw":
        messages: tuple[Message, ...] = (Message("user", prompt),)
    else:
        messages = _turns(record, prompt.removesuffix("\n\nAssistant:"))
        chosen, rejected = chosen.strip(), rejected.strip()
    return Pair(messages, chosen, rejected, (), False, False, record.origin)


def _split(record: Record, field: str) -> tuple[str, str]:
    """Transcript up to and with the last "Assistant:", and the answer after it."""
    transcript = record.text(field)
    turns = list(_TURN.finditer(transcript))
    if len(turns) < 2 or turns[0].start() != 0 or turns[-1][1] != "Assistant":
        expected = 'a transcript "\\n\\nHuman: ... \\n\\nAssistant: ..." that ends with an answer'
        raise record.error("no transcript", field, got=shown(transcript), expected=expected)
    end = turns[-1].end()
    return transcript[:end], transcript[end:]


def _turns(record: Record, transcript: str) -> tuple[Message, ...]:
    parts = _TURN.split(transcript)[1:]  # speaker, text, speaker, text, ...
    speakers, texts = parts[::2], [text.strip() for text in parts[1::2]]
    if (
        speakers[::2].count("Human") + speakers[1::2].count("Assistant") < len(speakers)
        or speakers[-1] != "Human"
    ):
        got = f"the turns {', '.join(speakers)}"
        raise record.error("turns out of order", "chosen", got=got, expected="Human and Assistant in turn")
    if not all(texts):
        raise record.error("empty text", "chosen", got="a turn without text", expected="a text in every turn")
    return tuple(Message(_ROLES[speaker], text) for speaker, text in zip(speakers, texts, strict=True))
