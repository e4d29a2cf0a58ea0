"""Writes the sample preference set in the schema of PKU-SafeRLHF: made from templates, the same for one seed anywhere.

Prompts ask for harm of 15 categories in very uneven numbers, and for harmless things. Held out are whole goals (see
`sample_topics`), so no held-out prompt differs from a training prompt in its phrasing alone. Texts stay abstract.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jaxalign.data import sample_phrases as phrases
from jaxalign.data.sample_topics import TOPICS, Topic
from jaxalign.data.schema import PKU_CATEGORIES

T = TypeVar("T")
Row = dict[str, Any]

# Shares of the kinds of rows of a harmful prompt; the rest are one refusal that is both safer and better.
TEMPTING, BOTH_UNSAFE, BOTH_SAFE = 0.15, 0.08, 0.05


@dataclass(frozen=True)
class _Goal:
    verb: str
    gerund: str
    object: str
    extra: str  # further categories of a harmful goal, tips for a benign one
    heldout: bool

    def asked(self) -> dict[str, str]:
        """The goal in the words of the person who asks."""
        return {"do": f"{self.verb} {self.object}", "doing": f"{self.gerund} {self.object}"}

    def answered(self) -> dict[str, str]:
        """The goal in the words of the assistant."""
        return {form: _second_person(text) for form, text in self.asked().items()}


@dataclass(frozen=True)
class _Response:
    text: str
    categories: tuple[str, ...] = ()
    severity: int = 0


def write_sample(directory: str | Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write train.jsonl and heldout.jsonl, about 1,200 rows, and return their paths. Overwrites both."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    rows = [row for topic in TOPICS for row in _topic_rows(topic, rng)]
    rows += _benign_rows(rng)
    rows.sort(key=lambda _: rng.random())
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    for path, heldout in zip(paths, (False, True), strict=True):
        lines = [json.dumps(row) + "\n" for row, row_heldout in rows if row_heldout == heldout]
        path.write_text("".join(lines), encoding="utf-8")
    return paths


def _topic_rows(topic: Topic, rng: random.Random) -> Iterator[tuple[Row, bool]]:
    goals = _goals(topic.goals, num_heldout=2)
    for goal, prompt in _prompts(goals, topic.num_rows, phrases.REMARKS + phrases.HARMFUL_REMARKS, rng):
        further = tuple(name.strip() for name in goal.extra.split(",") if name.strip())
        harmful = (topic.category, *further)
        refusal = _refusal(topic, goal, rng)
        kind = rng.random()
        if kind < TEMPTING:  # annotators preferred the answer that they found more useful
            better, other, safer_is_better = _compliance(topic, goal, harmful, rng), refusal, False
        elif kind < TEMPTING + BOTH_UNSAFE:
            mild, full = _reluctance(topic, goal, rng), _compliance(topic, goal, harmful, rng)
            safer_is_better = rng.random() < 0.5
            better, other = (mild, full) if safer_is_better else (full, mild)
        elif kind < TEMPTING + BOTH_UNSAFE + BOTH_SAFE:
            curt = _Response(_pick(phrases.CURT_REFUSALS, rng).format(**goal.answered()))
            better, other, safer_is_better = refusal, curt, True
        else:
            tempted = rng.random() < 0.75
            unsafe = _compliance(topic, goal, harmful, rng) if tempted else _reluctance(topic, goal, rng)
            better, other, safer_is_better = refusal, unsafe, True
        yield _row(prompt, better, other, safer_is_better, rng), goal.heldout


def _benign_rows(rng: random.Random) -> Iterator[tuple[Row, bool]]:
    goals = _goals(phrases.BENIGN_GOALS, num_heldout=2)
    for goal, prompt in _prompts(goals, phrases.NUM_BENIGN_ROWS, phrases.REMARKS, rng):
        first, second = (tip.strip() for tip in goal.extra.split("|"))
        words = goal.answered() | {"first": first, "First": _sentence(first), "second": second}
        helpful = _pick(phrases.HELPFUL, rng).format(**words, cheer=_pick(phrases.HELPFUL_CHEERS, rng))
        unhelpful = _pick(phrases.UNHELPFUL, rng).format(**words)
        yield _row(prompt, _Response(helpful), _Response(unhelpful), True, rng), goal.heldout


def _goals(lines: str, num_heldout: int) -> list[_Goal]:
    rows = lines.strip().splitlines()
    goals = []
    for i, row in enumerate(rows):
        verb, gerund, thing, *extra = (part.strip() for part in row.split("|", maxsplit=3))
        goals.append(_Goal(verb, gerund, thing, "".join(extra), heldout=i >= len(rows) - num_heldout))
    return goals


def _prompts(
    goals: Sequence[_Goal], num_rows: int, remarks: Sequence[str], rng: random.Random
) -> Iterator[tuple[_Goal, str]]:
    """Goals in turn, each time in another combination of question and remark: no prompt comes twice."""
    forms = [(question, remark) for question in phrases.QUESTIONS for remark in remarks]
    orders = [sorted(forms, key=lambda _: rng.random()) for _ in goals]
    for i in range(num_rows):
        goal, (question, remark) = goals[i % len(goals)], orders[i % len(goals)][i // len(goals)]
        yield goal, remark.format(question=question.format(**goal.asked()))


def _refusal(topic: Topic, goal: _Goal, rng: random.Random) -> _Response:
    words = {"concern": _pick(topic.concerns, rng), "alternative": _pick(topic.alternatives, rng)}
    return _Response(_pick(phrases.REFUSALS, rng).format(**goal.answered(), **words))


def _compliance(topic: Topic, goal: _Goal, categories: tuple[str, ...], rng: random.Random) -> _Response:
    first, second, third = sorted(topic.methods, key=lambda _: rng.random())[:3]
    words = {"first": first, "second": second, "third": third, "cheer": _pick(phrases.CHEERS, rng)}
    return _Response(
        _pick(phrases.COMPLIANCE, rng).format(**goal.answered(), **words), categories, topic.severity
    )


def _reluctance(topic: Topic, goal: _Goal, rng: random.Random) -> _Response:
    first, second = sorted(topic.methods, key=lambda _: rng.random())[:2]
    text = _pick(phrases.RELUCTANT_COMPLIANCE, rng).format(**goal.answered(), first=first, second=second)
    return _Response(text, (topic.category,), max(1, topic.severity - 1))


def _row(prompt: str, better: _Response, other: _Response, safer_is_better: bool, rng: random.Random) -> Row:
    better_id = int(rng.random() < 0.5)
    responses = (better, other) if better_id == 0 else (other, better)
    row: Row = {"prompt": prompt, "prompt_source": "jaxalign sample"}
    for i, response in enumerate(responses):
        row |= {
            f"response_{i}": response.text,
            f"response_{i}_source": "template",
            f"is_response_{i}_safe": not response.categories,
            f"response_{i}_harm_category": {name: name in response.categories for name in PKU_CATEGORIES},
            f"response_{i}_severity_level": response.severity,
            f"response_{i}_sha256": hashlib.sha256(response.text.encode()).hexdigest(),
        }
    return row | {
        "better_response_id": better_id,
        "safer_response_id": better_id if safer_is_better else 1 - better_id,
    }


def _pick(options: Sequence[T], rng: random.Random) -> T:
    # Of all draws, Python keeps only random() the same in every version.
    return options[int(rng.random() * len(options))]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


_SECOND_PERSON = {"my": "your", "our": "your", "mine": "yours", "me": "you", "I": "you", "we": "you"}


def _second_person(text: str) -> str:
    return re.sub(r"\b(my|our|mine|me|I|we)\b", lambda match: _SECOND_PERSON[match[0]], text)
