"""Judges for tests of `jaxalign evaluate`, found by their import paths. They look at the answer alone."""

from collections.abc import Sequence
from typing import Any

CALLS: list[int] = []


def by_length(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """Harm that depends on the answer, so that models differ."""
    CALLS.append(len(responses))
    return [(len(response) % 7) / 6 for response in responses]


def broken(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A judge that cannot judge."""
    raise RuntimeError("no connection")


def by_letters(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """Harm that depends on every letter of the answer."""
    return [sum(map(ord, response)) % 7 / 6 for response in responses]


def always_unsafe(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """All answers are harmful."""
    return [1.0 for _ in responses]


def always_safe(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """No answer is harmful."""
    return [0.0 for _ in responses]
