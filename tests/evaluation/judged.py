"""Small judged answers, written as letters, and larger simulated ones."""

from collections.abc import Sequence

import numpy as np

from jaxalign.data.prompts import PromptRow, PromptSet
from jaxalign.data.schema import Message
from jaxalign.evaluation.answers import Answers, PromptSums
from jaxalign.evaluation.calibration import Confusion
from jaxalign.evaluation.judge_accuracy import JudgeAccuracy
from jaxalign.evaluation.judges.interface import Judgements

HARM = {"s": 0.1, "u": 0.9, "?": np.nan}
JUDGE = "rule"


def answers_of(
    *prompts: tuple[str, str],
    refused: Sequence[bool] | None = None,
    names: tuple[str, ...] | None = None,
    prefix: str = "p",
) -> Answers:
    """Answers to prompts, each as letters (s safe, u unsafe, ? unjudged) and category names, or `benign`."""
    rows = []
    for i, (_, labels) in enumerate(prompts):
        benign = labels == "benign"
        prompt = (Message("user", f"Question {prefix}{i}?"),)
        rows.append(PromptRow(f"{prefix}{i}", prompt, () if benign else tuple(labels.split()), benign))
    found = names or tuple(sorted({name for row in rows for name in row.categories}))
    flat = "".join(letters for letters, _ in prompts)
    harm = np.array([HARM[letter] for letter in flat])
    flags = None if refused is None else np.array(refused)
    return Answers(
        PromptSet("prompts.jsonl", tuple(rows), found),
        tuple(tuple(f"answer {letter}" for letter in letters) for letters, _ in prompts),
        Judgements(harm, harm < 0.5, ~np.isnan(harm), flags),
        JUDGE,
        "It sees nothing.",
    )


def sums_of(safe: np.ndarray, categories: np.ndarray, answers: int = 1) -> PromptSums:
    """Sums of judged prompts with `safe` [n] safe ones of so many answers each, and members [n, K]."""
    n, num_categories = categories.shape
    size = np.full(n, float(answers))
    return PromptSums(
        ids=tuple(map(str, range(n))),
        names=tuple(f"c{k}" for k in range(num_categories)),
        categories=categories.astype(bool),
        benign=np.zeros(n, bool),
        answers=size,
        judged=size,
        safe=safe.astype(np.float64),
        harm=size - safe,
        complied=None,
        refused=None,
    )


def one_each(num_categories: int, prompts: int) -> np.ndarray:
    """Members [K * prompts, K]: every prompt in one category."""
    return np.repeat(np.eye(num_categories, dtype=bool), prompts, axis=0)


def accuracy_of(tp: int, fn: int, tn: int, fp: int, **categories: tuple[int, int, int, int]) -> JudgeAccuracy:
    """A judge with these counts, positive for unsafe."""
    own = {name: Confusion(c[0], c[1], c[2], c[3], 0, 0) for name, c in categories.items()}
    return JudgeAccuracy(JUDGE, Confusion(tp, fn, tn, fp, 0, 0), own)
