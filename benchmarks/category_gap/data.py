"""Preference data of the world, made as safety data sets are: two answers a prompt, labels with noise, views.

NumPy only. The answers of the model come from outside; the truth is in world.py.
"""

import dataclasses

import numpy as np
from world import (
    CATEGORIES,
    REFUSAL,
    RIGHT,
    K,
    answer_kinds,
    harms,
    refusals,
    sample_prompts,
    topics,
)


@dataclasses.dataclass(frozen=True)
class Design:
    """The numbers of the world.

    common, rare: unsafe prompts of a common and of a rare category. There are as many benign prompts in all, spread
        evenly over the topics: ordinary requests do not follow the tail of what was collected about harm.
    contrast: share of benign prompts with a sharp word; half of those that methods are tested on have one.
    second: share of unsafe prompts that ask for the harm of a second category, too.
    both_unsafe, both_benign: share of unsafe and of benign prompts with two answers of the model; the others have one
        of them and a refusal.
    missed: share of unsafe answers that annotators take for safe, in a noisy category; such a pair has no category.
    alarms: share of compliances with benign prompts that they take for unsafe, on the topic of a noisy category.
    swapped: share of the preferences there that are noted the wrong way round.
    """

    common: int = 240
    rare: int = 16
    contrast: float = 0.1
    second: float = 0.2
    both_unsafe: float = 0.15
    both_benign: float = 0.7
    missed: float = 0.25
    alarms: float = 0.08
    swapped: float = 0.1

    @property
    def num_prompts(self) -> int:
        """Unsafe and benign ones together."""
        return 2 * sum(self.common if category.common else self.rare for category in CATEGORIES)


@dataclasses.dataclass(frozen=True)
class LabelledPairs:
    """Two answers a prompt with labels as PKU-SafeRLHF has them; n rows.

    prompts    [n, L] int32
    responses  [n, 2, ANSWER_LENGTH] int32
    unsafe     [n, 2] bool    as labelled
    harms      [n, K] bool    categories of what is labelled unsafe, none where both are labelled safe
    better     [n]    int     the more helpful response, 0 or 1, whatever its harm
    safer      [n]    int     the safer one; the better one where the labels know no difference
    """

    prompts: np.ndarray
    responses: np.ndarray
    unsafe: np.ndarray
    harms: np.ndarray
    better: np.ndarray
    safer: np.ndarray


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Pairs in the order of a view: prompts [n, L], responses [n, 2, ANSWER_LENGTH], chosen first, then rejected.

    unsafe [n, 2] and categories [n, K] are float32.
    """

    prompts: np.ndarray
    responses: np.ndarray
    unsafe: np.ndarray
    categories: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)


def draw_prompts(rng: np.random.Generator, design: Design) -> np.ndarray:
    """[design.num_prompts, L] the prompts of a data set, unsafe ones first."""
    counts = [design.common if category.common else design.rare for category in CATEGORIES]
    topic = np.repeat(np.arange(K), counts)
    other = (topic + rng.integers(1, K, len(topic))) % K
    second = np.where(rng.random(len(topic)) < design.second, other, -1)
    every = np.ones(len(topic), bool)
    unsafe = sample_prompts(rng, topic, every, contrast=design.contrast, second=second)
    benign = sample_prompts(rng, np.arange(len(topic)) % K, ~every, contrast=design.contrast)
    return np.concatenate([unsafe, benign])


def make_pairs(
    rng: np.random.Generator, design: Design, prompts: np.ndarray, samples: np.ndarray
) -> LabelledPairs:
    """Pairs of the prompts [n, L] with answers of the model [n, D, ANSWER_LENGTH]; identical answers are left out."""
    responses = _two_answers(rng, design, prompts, samples)
    distinct = (responses[:, 0] != responses[:, 1]).any(axis=1)
    return _label(rng, design, prompts[distinct], responses[distinct])


def _two_answers(
    rng: np.random.Generator, design: Design, prompts: np.ndarray, samples: np.ndarray
) -> np.ndarray:
    """[n, 2, ANSWER_LENGTH] an answer of the model, and beside it a refusal or another answer of the model.

    On a benign prompt the other answer is one of another kind: a mistake beside what is right. Where the model gave
    no such answer, it is a refusal as well.
    """
    n, num_samples = samples.shape[:2]
    first = samples[:, 0]
    kinds = np.stack([answer_kinds(prompts, samples[:, d]) for d in range(num_samples)], axis=1)
    differs = (samples != first[:, None]).any(axis=2)
    is_unsafe = harms(prompts).any(axis=1)
    wanted = np.where(is_unsafe[:, None], differs & (kinds != REFUSAL), kinds != kinds[:, :1])
    other = samples[np.arange(n), wanted.argmax(axis=1)]
    share = np.where(is_unsafe, design.both_unsafe, design.both_benign)
    use_other = wanted.any(axis=1) & (rng.random(n) < share)
    second = np.where(use_other[:, None], other, refusals(rng, prompts))
    order = rng.integers(0, 2, n)  # annotators must not learn anything from the place of an answer
    return np.stack([first, second], axis=1)[np.arange(n)[:, None], np.stack([order, 1 - order], axis=1)]


def _label(
    rng: np.random.Generator, design: Design, prompts: np.ndarray, responses: np.ndarray
) -> LabelledPairs:
    n = len(prompts)
    kinds = np.stack([answer_kinds(prompts, responses[:, i]) for i in (0, 1)], axis=1)
    asked = harms(prompts)
    is_unsafe = asked.any(axis=1)[:, None]
    noisy = np.array([not category.clean for category in CATEGORIES])[topics(prompts)][:, None]
    missed = noisy & (rng.random((n, 2)) < design.missed)
    alarmed = noisy & ~is_unsafe & (kinds == RIGHT) & (rng.random((n, 2)) < design.alarms)
    harmful = is_unsafe & (kinds == RIGHT)
    unsafe = (harmful & ~missed) | alarmed
    blamed = np.where(is_unsafe, asked, np.arange(K) == topics(prompts)[:, None])
    coin = rng.integers(0, 2, n)
    better = np.where(kinds[:, 0] == kinds[:, 1], coin, kinds[:, 1] > kinds[:, 0])
    better = np.where(noisy[:, 0] & (rng.random(n) < design.swapped), 1 - better, better)
    safer = np.where(unsafe[:, 0] == unsafe[:, 1], better, unsafe[:, 0])
    return LabelledPairs(
        prompts=prompts,
        responses=responses,
        unsafe=unsafe,
        harms=blamed & unsafe.any(axis=1)[:, None],
        better=better.astype(int),
        safer=safer.astype(int),
    )


def view(pairs: LabelledPairs, name: str) -> Preferences:
    """The pairs as `better`, `safer` or `safedpo` order them, by the rules of the same names in jaxalign.data.

    `safedpo` is `better` after SafeDPO's transform: swapped where the chosen response alone is unsafe, left out
    where both are.
    """
    rows = np.arange(len(pairs.prompts))
    chosen = pairs.safer if name == "safer" else pairs.better
    keep = np.ones(len(rows), bool)
    if name == "safedpo":
        chosen = np.where(pairs.unsafe[rows, chosen], 1 - chosen, chosen)
        keep = ~pairs.unsafe[rows, chosen]
    order = np.stack([chosen, 1 - chosen], axis=1)
    in_order = rows[:, None], order
    return Preferences(
        prompts=pairs.prompts[keep],
        responses=pairs.responses[in_order][keep],
        unsafe=pairs.unsafe[in_order][keep].astype(np.float32),
        categories=pairs.harms[keep].astype(np.float32),
    )


def evaluation_prompts(rng: np.random.Generator, per_topic: int, *, unsafe: bool) -> np.ndarray:
    """[K * per_topic, L] fresh prompts, topic after topic, each asking for one harm or for none."""
    topic = np.repeat(np.arange(K), per_topic)
    return sample_prompts(rng, topic, np.full(len(topic), unsafe), contrast=0.5)


def epochs(rng: np.random.Generator, num_pairs: int, num_steps: int, batch_size: int) -> np.ndarray:
    """[num_steps, batch_size] the pairs of every step: all of them in a new order, epoch after epoch."""
    num_epochs = -(-num_steps * batch_size // num_pairs)
    order = np.concatenate([rng.permutation(num_pairs) for _ in range(num_epochs)])
    return order[: num_steps * batch_size].reshape(num_steps, batch_size).astype(np.int32)
