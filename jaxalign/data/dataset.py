"""The tokenised data set: ragged token ids with labels, as numpy. No text, no tokenizer, no batches."""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.data.schema import NO_CATEGORY

Ids = tuple[np.ndarray, ...]  # one int32 array per pair


@dataclass(frozen=True)
class TruncationReport:
    """How many prompts, chosen and rejected responses were cut: overall and by category."""

    num_pairs: int
    total: tuple[int, int, int]
    by_category: dict[str, tuple[int, int, int]]  # categories where something was cut

    def lines(self) -> list[str]:
        """The counts as text, for logs; nothing where nothing was cut."""
        if not any(self.total):
            return []
        entries = {f"all {self.num_pairs} pairs": self.total} | self.by_category
        text = "cut in {}: {} prompts (start removed), {} chosen and {} rejected responses (end removed)"
        return [text.format(name, *counts) for name, counts in entries.items()]


@dataclass(frozen=True)
class TokenizedDataset:
    """Tokenised pairs; n rows, K categories.

    prompt_ids, chosen_ids, rejected_ids  n arrays of int32; responses end with the end of sequence unless cut
    categories                            [n, K] float32
    chosen_unsafe, rejected_unsafe        [n] float32
    empty_prompt_ids                      [*] int32, what stands before a response to nothing
    num_cut                               [n, 3] int32, tokens lost by prompt, chosen, rejected
    reference_logps, mi                   [n, 2] float32 once known
    scores                                [n, 2] float32, None unless every pair has them
    """

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    categories: np.ndarray
    chosen_unsafe: np.ndarray
    rejected_unsafe: np.ndarray
    category_names: tuple[str, ...]
    pad_id: int
    empty_prompt_ids: np.ndarray
    origins: tuple[str, ...]  # "file:row" of each pair, for messages
    num_cut: np.ndarray
    skipped: tuple[str, ...]  # what was wrong with the pairs left out while tokenising
    skipped_rows: tuple[int, ...] = ()  # where these stood among the pairs given
    reference_logps: np.ndarray | None = None
    mi: np.ndarray | None = None
    scores: np.ndarray | None = None
    num_unscored: int = 0  # tokenised pairs without scores, for messages

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected, [n, 3] int32."""
        parts = (self.prompt_ids, self.chosen_ids, self.rejected_ids)
        return np.array([[len(ids) for ids in part] for part in parts], np.int32).T

    @property
    def row_lengths(self) -> np.ndarray:
        """Tokens of the longer branch (prompt and response) of each pair, [n] int32."""
        lengths = self.lengths
        return lengths[:, 0] + lengths[:, 1:].max(axis=1)

    def fingerprint(self) -> str:
        """SHA-256 over tokens, labels, scores and category names; not over file names and reference values."""
        digest = hashlib.sha256()
        for part in (self.prompt_ids, self.chosen_ids, self.rejected_ids, (self.empty_prompt_ids,)):
            digest.update(np.array([len(ids) for ids in part], "<i8").tobytes())
            digest.update(np.concatenate(part).astype("<i4").tobytes())
        scores = () if self.scores is None else (self.scores,)
        for labels in (self.categories, self.chosen_unsafe, self.rejected_unsafe, *scores):
            digest.update(labels.astype("<f4").tobytes())
        digest.update(repr((self.category_names, self.pad_id)).encode())
        return digest.hexdigest()

    def select(self, rows: np.ndarray) -> "TokenizedDataset":
        """The pairs of `rows` [m], in that order."""
        chosen: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            per_pair = item.name not in (
                "category_names",
                "pad_id",
                "empty_prompt_ids",
                "skipped",
                "skipped_rows",
                "num_unscored",
            )
            if per_pair and value is not None:
                chosen[item.name] = (
                    value[rows] if isinstance(value, np.ndarray) else tuple(value[row] for row in rows)
                )
        return dataclasses.replace(self, **chosen)

    def without_prompts(self) -> "TokenizedDataset":
        """The same responses after the empty prompt: the rows from which log pi_ref(y) is computed."""
        return dataclasses.replace(self, prompt_ids=(self.empty_prompt_ids,) * len(self))

    def truncation(self) -> TruncationReport:
        """What was cut, overall and by category."""
        cut = self.num_cut > 0
        groups = {name: self.categories[:, k] > 0 for k, name in enumerate(self.category_names)}
        groups[NO_CATEGORY] = self.categories.sum(axis=1) == 0
        counts = {name: _counts(cut[member]) for name, member in groups.items()}
        return TruncationReport(len(self), _counts(cut), {name: c for name, c in counts.items() if any(c)})


def _counts(cut: np.ndarray) -> tuple[int, int, int]:
    prompts, chosen, rejected = cut.sum(axis=0).tolist()
    return prompts, chosen, rejected
