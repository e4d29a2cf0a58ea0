"""BeaverTails rows: single answers with a safety label. Pairs match safe and unsafe answers to one prompt."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jaxalign.data.records import Record
from jaxalign.data.schema import BEAVERTAILS_CATEGORIES, DataError, Message, Pair, Skipped


@dataclass(slots=True)
class _Answer:
    """One answer with all the annotations that it got."""

    text: str
    origin: str
    votes: list[bool] = field(default_factory=list)  # True: unsafe
    categories: set[str] = field(default_factory=set)

    @property
    def unsafe(self) -> bool:
        return 2 * sum(self.votes) >= len(self.votes)  # a tie is unsafe: the careful reading


def to_pairs(records: Iterable[Record | DataError]) -> Iterator[Pair | Skipped | DataError]:
    """Pairs of a safe (chosen) and an unsafe (rejected) answer; every answer with a partner is used.

    Several annotations of one answer are merged first: unsafe where at least half of them say so, with every
    category that an annotation as unsafe names. With 2 safe and 3 unsafe answers a prompt yields 3 pairs, the
    safe ones taken in turn. Answers without a partner are yielded as Skipped.
    """
    prompts: dict[str, dict[str, _Answer]] = {}
    for record in records:
        if isinstance(record, DataError):
            yield record
            continue
        try:
            merged = _add(prompts, record)
        except DataError as error:
            yield error
            continue
        if merged:
            yield Skipped(record.origin, "a further annotation of the same answer")
    for prompt, answers in prompts.items():
        yield from _match(prompt, list(answers.values()))


def _add(prompts: dict[str, dict[str, _Answer]], record: Record) -> bool:
    """Enter one row; True if its answer was there before."""
    prompt, response = record.text("prompt"), record.text("response")
    categories = record.true_keys("category", BEAVERTAILS_CATEGORIES)
    unsafe = not record.flag("is_safe")
    answers = prompts.setdefault(prompt, {})
    seen = response.strip() in answers
    answer = answers.setdefault(response.strip(), _Answer(response, record.origin))
    answer.votes.append(unsafe)
    answer.categories.update(categories if unsafe else ())
    return seen


def _match(prompt: str, answers: list[_Answer]) -> Iterator[Pair | Skipped]:
    safe = [answer for answer in answers if not answer.unsafe]
    unsafe = [answer for answer in answers if answer.unsafe]
    if not safe or not unsafe:
        missing = "unsafe" if safe else "safe"
        yield from (Skipped(answer.origin, f"no {missing} answer to the same prompt") for answer in answers)
        return
    for i in range(max(len(safe), len(unsafe))):
        chosen, rejected = safe[i % len(safe)], unsafe[i % len(unsafe)]
        yield Pair(
            prompt=(Message("user", prompt),),
            chosen=chosen.text,
            rejected=rejected.text,
            categories=tuple(name for name in BEAVERTAILS_CATEGORIES if name in rejected.categories),
            chosen_unsafe=False,
            rejected_unsafe=True,
            origin=rejected.origin,
        )
