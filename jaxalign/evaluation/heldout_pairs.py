"""Held-out pairs one by one, so that runs compare pair by pair. Means over pairs are in preference.py."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.errors import JaxalignError
from jaxalign.evaluation.bootstrap import PRIOR, SHRUNKEN, Estimate, Resampling
from jaxalign.evaluation.rates import Sampled
from jaxalign.evaluation.shrinkage import shrunken_draws
from jaxalign.evaluation.spread import spread_figures
from jaxalign.training.objective import resolved_gap, reward_accuracy

ALL_PAIRS = "all pairs"
_FIELDS = ("prompt", "categories", "reward_gap")


class HeldoutPairsError(JaxalignError, ValueError):
    """A file of held-out pairs that is damaged, or two that do not hold the same pairs."""


@dataclasses.dataclass(frozen=True)
class HeldoutPairs:
    """Pairs in the order of their data set: `prompts` [n] numbers, `categories` [n, K] bool, `reward_gap` [n].

    Pairs with one number have one prompt. A gap that is not finite is NaN.
    """

    category_names: tuple[str, ...]
    prompts: np.ndarray
    categories: np.ndarray
    reward_gap: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """[n] 1 where chosen is preferred, 0.5 at a tie, 0 else; NaN without a gap."""
        return np.asarray(reward_accuracy(self.reward_gap, np))

    def members(self) -> dict[str, np.ndarray]:
        """[n] bool by category, of those that have pairs."""
        named = {name: self.categories[:, k] for k, name in enumerate(self.category_names)}
        return {name: inside for name, inside in named.items() if inside.any()}

    def lines(self) -> Iterator[str]:
        """One JSON object a pair; a gap that is not finite is null."""
        for prompt, row, gap in zip(self.prompts, self.categories, self.reward_gap, strict=True):
            names = [name for name, inside in zip(self.category_names, row, strict=True) if inside]
            shown = round(float(gap), 6) if math.isfinite(gap) else None
            yield json.dumps(dict(zip(_FIELDS, (int(prompt), names, shown), strict=True)), ensure_ascii=False)


def heldout_pairs(
    policy: np.ndarray, reference: np.ndarray, dataset: TokenizedDataset, *, beta: float
) -> HeldoutPairs:
    """The pairs from summed response log-probs [n, 2] of policy and reference, in dataset order."""
    gap = beta * resolved_gap(policy.astype(np.float64), reference.astype(np.float64), np)
    numbers: dict[bytes, int] = {}
    prompts = [numbers.setdefault(ids.tobytes(), len(numbers)) for ids in dataset.prompt_ids]
    return HeldoutPairs(
        dataset.category_names,
        np.array(prompts),
        np.asarray(dataset.categories > 0),
        np.where(np.isfinite(gap), gap, np.nan),
    )


def read_heldout_pairs(path: Path) -> HeldoutPairs:
    """The pairs that a run left. Raises HeldoutPairsError naming the line that is damaged."""
    rows = [_read_line(line, path, n) for n, line in enumerate(path.read_bytes().splitlines(), start=1)]
    if not rows:
        raise HeldoutPairsError(
            f"{path} is empty, expected one held-out pair a line; delete it, and train on to the last step to have it "
            "written again"
        )
    names = tuple(dict.fromkeys(name for _, categories, _ in rows for name in categories))
    return HeldoutPairs(
        names,
        np.array([prompt for prompt, _, _ in rows], int),
        np.array([[name in categories for name in names] for _, categories, _ in rows]).reshape(
            len(rows), -1
        ),
        np.array([np.nan if gap is None else gap for _, _, gap in rows], float),
    )


def _read_line(line: bytes, path: Path, number: int) -> tuple[int, list[str], float | None]:
    try:
        row = json.loads(line)
        prompt, categories, gap = (row[field] for field in _FIELDS)
        if not isinstance(prompt, int) or not all(isinstance(name, str) for name in categories):
            raise TypeError("prompt must be a number, categories a list of names")
        return prompt, list(categories), None if gap is None else float(gap)
    except (ValueError, KeyError, TypeError) as error:
        shown = line[:80].decode("utf-8", errors="backslashreplace")
        raise HeldoutPairsError(
            f"{path}, line {number}: expected an object with {', '.join(_FIELDS)}, got {shown!r} ({error}); delete "
            "the file, and train on to the last step to have it written again"
        ) from error


@dataclasses.dataclass(frozen=True)
class PairedDifferences:
    """Second minus first on the same pairs, by category and in summary, with intervals.

    `summary` has `all pairs` and, where there are two categories or more, `mean of categories`, `worst category` and
    `best-to-worst gap`; `gap_shrank` is the probability that the gap of the second is the smaller one.
    """

    num_prompts: int
    num_pairs: int
    categories: dict[str, Estimate]
    summary: dict[str, Estimate]
    gap_shrank: float | None


def interval_rates(pairs: HeldoutPairs, values: np.ndarray, resampling: Resampling) -> dict[str, Estimate]:
    """Means of values [n] in [0, 1] with intervals, by category and, under the name ALL_PAIRS, of all pairs.

    Values that are NaN are left out, and so is a category without any other.
    """
    groups = _groups(pairs, np.isfinite(values))
    if not groups.columns[0].any():
        return {}
    rates = _sample(groups, values, resampling)
    return {
        name: resampling.estimate(rates.value[k], rates.draws[:, k]) for k, name in enumerate(groups.names)
    }


def paired_differences(
    pairs: HeldoutPairs,
    first: np.ndarray,
    second: np.ndarray,
    resampling: Resampling,
    *,
    higher_is_better: bool = True,
) -> PairedDifferences:
    """Differences of the values [n] in [0, 1] that two runs have on the same pairs.

    Prompts are weighted and not pairs, as pairs of one prompt are alike. Pairs that lack a value in either run are left
    out. Raises HeldoutPairsError where no pair is left.
    """
    groups = _groups(pairs, np.isfinite(first) & np.isfinite(second))
    if not groups.columns[0].any():
        raise HeldoutPairsError("no held-out pair has a finite value in both runs; nothing can be compared")
    one, two = (_sample(groups, values, resampling, model) for model, values in enumerate((first, second)))
    changes = [
        resampling.estimate(value, draws)
        for value, draws in zip(two.value - one.value, (two.draws - one.draws).T, strict=True)
    ]
    summary, gap_shrank = {ALL_PAIRS: changes[0]}, None
    if len(groups.names) > 2:
        before, after = (
            _summary(rates, resampling, model, higher_is_better) for model, rates in enumerate((one, two))
        )
        moved = {name: (after[name][0] - x, after[name][1] - draws) for name, (x, draws) in before.items()}
        summary |= {name: resampling.estimate(*change) for name, change in moved.items()}
        gap = moved["best-to-worst gap"][1]
        gap_shrank = float((gap < 0).mean() + (gap == 0).mean() / 2)
    return PairedDifferences(
        num_prompts=len(np.unique(groups.prompts)),
        num_pairs=int(groups.columns[0].sum()),
        categories=dict(zip(groups.names[1:], changes[1:], strict=True)),
        summary=summary,
        gap_shrank=gap_shrank,
    )


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Pairs that count: `names` of G groups, their members `columns` [G, n], and the prompts of the members [m]."""

    names: list[str]
    columns: list[np.ndarray]
    prompts: np.ndarray


def _groups(pairs: HeldoutPairs, kept: np.ndarray) -> _Groups:
    members = {name: inside & kept for name, inside in pairs.members().items() if (inside & kept).any()}
    return _Groups([ALL_PAIRS, *members], [kept, *members.values()], pairs.prompts[kept])


def _sample(groups: _Groups, values: np.ndarray, resampling: Resampling, model: int = 0) -> Sampled:
    """Means [G] and their draws [R, G]; runs on the same pairs get the same weights of prompts."""
    kept = groups.columns[0]
    _, prompt = np.unique(groups.prompts, return_inverse=True)

    def by_prompt(column: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.bincount(prompt, np.where(column, x, 0.0)[kept])

    hits = np.stack([by_prompt(column, values) for column in groups.columns], axis=1)
    counts = np.stack([by_prompt(column, np.ones_like(values)) for column in groups.columns], axis=1)
    drawn_hits, drawn_counts = np.split(resampling.sums(np.hstack([hits, counts])), 2, axis=1)
    # As for generated answers: two more prompts, one all hits and one none, weighted by Gamma(1/2), so that an
    # interval is wide also where every pair is a hit.
    prior = resampling.generator(PRIOR, model).standard_gamma(0.5, (2, *drawn_hits.shape))
    size = counts.sum(axis=0) / (counts > 0).sum(axis=0)
    draws = (drawn_hits + size * prior[0]) / (drawn_counts + size * prior.sum(axis=0))
    return Sampled(hits.sum(axis=0) / counts.sum(axis=0), draws)


def _summary(
    rates: Sampled, resampling: Resampling, model: int, higher_is_better: bool
) -> dict[str, tuple[float, np.ndarray]]:
    """Figures over the categories with their draws, in which the noise of measuring does not count as spread."""
    value, draws = rates.value[1:], rates.draws[:, 1:]
    true = shrunken_draws(value, draws, resampling.generator(SHRUNKEN, model))
    observed = spread_figures(value, higher_is_better=higher_is_better)
    drawn = spread_figures(true, higher_is_better=higher_is_better) | {"mean": draws.mean(axis=1)}
    names = {"mean": "mean of categories", "worst": "worst category", "gap": "best-to-worst gap"}
    return {shown: (float(observed[name]), drawn[name]) for name, shown in names.items()}
