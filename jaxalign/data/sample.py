"""Writes the sample preference set in the schema of PKU-SafeRLHF, from templates: for one seed the same anywhere.

Prompts ask for harm of 15 categories in very uneven numbers, and for harmless things. Held out are whole goals, so
no held-out prompt differs from a training prompt in its phrasing alone. The words are in sample.yaml.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxalign.data.schema import PKU_CATEGORIES, DataError

Row = dict[str, Any]
Words = dict[str, Any]  # a part of sample.yaml

NUM_HELDOUT_GOALS = 2  # of each topic, the last ones
# Shares of the kinds of rows of a harmful prompt; the rest are a refusal, safer and better, and an unsafe answer.
TEMPTING, BOTH_UNSAFE, BOTH_SAFE = 0.15, 0.08, 0.05


@dataclass(frozen=True)
class _Goal:
    verb: str
    gerund: str
    object: str
    extra: tuple[str, ...]  # further categories of a harmful goal, tips for a benign one
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
    """Write train.jsonl and heldout.jsonl, 1,200 rows together, and return their paths.

    Raises DataError, and writes nothing, if one of them is there with other content.
    """
    words = yaml.safe_load(Path(__file__).with_name("sample.yaml").read_text(encoding="utf-8"))
    rng = random.Random(seed)
    rows = [row for topic in words["topics"] for row in _topic_rows(topic, words, rng)]
    rows += _benign_rows(words, rng)
    rows = _shuffled(rows, rng)
    folder = Path(directory)
    paths = folder / "train.jsonl", folder / "heldout.jsonl"
    contents = [_lines(row for row, row_heldout in rows if row_heldout == part) for part in (False, True)]
    for path, content in zip(paths, contents, strict=True):
        _refuse_other_content(path, content)
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _refuse_other_content(path: Path, content: bytes) -> None:
    if not path.exists() or (path.is_file() and path.read_bytes() == content):
        return
    raise DataError(
        "file exists",
        origin=str(path),
        got="other content than would be written",
        expected="no such file, or the sample of this seed",
        remedy="give another directory, or move the file away",
    )


def _topic_rows(topic: Words, words: Words, rng: random.Random) -> Iterator[tuple[Row, bool]]:
    remarks = words["remarks"] + words["harmful_remarks"]
    for goal, prompt in _prompts(topic, words["questions"], remarks, rng):
        refusal = _refusal(topic, words, goal, rng)
        comply = _Compliance(topic, words, goal, rng)
        kind = rng.random()
        safer_is_better = True
        if kind < TEMPTING:  # annotators preferred the answer that they found more useful
            better, other, safer_is_better = comply.fully(), refusal, False
        elif kind < TEMPTING + BOTH_UNSAFE:
            safer_is_better = rng.random() < 0.5
            better, other = comply.reluctantly(), comply.fully()
            better, other = (better, other) if safer_is_better else (other, better)
        elif kind < TEMPTING + BOTH_UNSAFE + BOTH_SAFE:
            curt = _pick(words["curt_refusals"], rng).format(**goal.answered())
            better, other = refusal, _Response(curt)
        else:
            better, other = refusal, comply.fully() if rng.random() < 0.75 else comply.reluctantly()
        yield _row(prompt, better, other, safer_is_better, rng), goal.heldout


def _benign_rows(words: Words, rng: random.Random) -> Iterator[tuple[Row, bool]]:
    benign = words["benign"]
    for goal, prompt in _prompts(benign, words["questions"], words["remarks"], rng):
        first, second = goal.extra
        parts = goal.answered() | {"first": first, "First": first[0].upper() + first[1:], "second": second}
        helpful = _pick(benign["helpful"], rng).format(**parts, cheer=_pick(benign["cheers"], rng))
        unhelpful = _pick(benign["unhelpful"], rng).format(**parts)
        yield _row(prompt, _Response(helpful), _Response(unhelpful), True, rng), goal.heldout


def _prompts(
    topic: Words, questions: Sequence[str], remarks: Sequence[str], rng: random.Random
) -> Iterator[tuple[_Goal, str]]:
    """Goals in turn, each time in another combination of question and remark: no prompt comes twice."""
    goals = _goals(topic["goals"])
    forms = [remark.format(question=question) for question in questions for remark in remarks]
    orders = [_shuffled(forms, rng) for _ in goals]
    for i in range(topic["num_rows"]):
        goal, form = goals[i % len(goals)], orders[i % len(goals)][i // len(goals)]
        yield goal, form.format(**goal.asked())


def _goals(lines: Sequence[str]) -> list[_Goal]:
    goals = []
    for i, line in enumerate(lines):
        verb, gerund, thing, *extra = (part.strip() for part in line.split("|"))
        heldout = i >= len(lines) - NUM_HELDOUT_GOALS
        goals.append(_Goal(verb, gerund, thing, tuple(extra), heldout))
    return goals


def _refusal(topic: Words, words: Words, goal: _Goal, rng: random.Random) -> _Response:
    parts = {"concern": _pick(topic["concerns"], rng), "alternative": _pick(topic["alternatives"], rng)}
    return _Response(_pick(words["refusals"], rng).format(**goal.answered(), **parts))


@dataclass(frozen=True)
class _Compliance:
    """Unsafe answers to one goal."""

    topic: Words
    words: Words
    goal: _Goal
    rng: random.Random

    def fully(self) -> _Response:
        """An answer that goes along, with all categories of the goal."""
        categories = (self.topic["category"], *self.goal.extra)
        return _Response(self._text("compliance"), categories, self.topic["severity"])

    def reluctantly(self) -> _Response:
        """An answer that hesitates and then goes along: less severe, and of the main category only."""
        severity = max(1, self.topic["severity"] - 1)
        return _Response(self._text("reluctance"), (self.topic["category"],), severity)

    def _text(self, manner: str) -> str:
        first, second, third, *_ = _shuffled(self.topic["methods"], self.rng)
        parts = {
            "first": first,
            "second": second,
            "third": third,
            "cheer": _pick(self.words["cheers"], self.rng),
        }
        return _pick(self.words[manner], self.rng).format(**self.goal.answered(), **parts)


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
    safer_id = better_id if safer_is_better else 1 - better_id
    return row | {"better_response_id": better_id, "safer_response_id": safer_id}


# Of all draws, Python keeps only random() the same in every version.
def _pick(options: Sequence[str], rng: random.Random) -> str:
    return options[int(rng.random() * len(options))]


def _shuffled(items: Sequence[Any], rng: random.Random) -> list[Any]:
    return sorted(items, key=lambda _: rng.random())


def _second_person(text: str) -> str:
    other = {"my": "your", "our": "your", "mine": "yours", "me": "you", "I": "you", "we": "you"}
    return re.sub(r"\b(my|our|mine|me|I|we)\b", lambda match: other[match[0]], text)
