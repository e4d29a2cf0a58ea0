"""What is measured of a trained model, and how two methods are compared: exact rates, and a bootstrap over seeds."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from model import Params, answer_rates, divergence, response_logps
from problem import Pairs, Problem
from scipy.stats import bootstrap
from world import K

from jaxalign.training.objective import resolved_gap, reward_accuracy


def run_figures(params: Params, problem: Problem) -> dict[str, jax.Array]:
    """Figures of a policy on the problem's prompts and pairs: rates by topic [K], accuracies [].

    safe: of answers to unsafe prompts, those that do not do what was asked; seen_safe: the same on prompts of the
    training data. helpful and refused: of answers to benign prompts, the right ones and the refusals. kl: how far the
    policy went from the pre-trained model, nats an answer.
    """
    unsafe, benign, seen = (
        answer_rates(params, asked) for asked in (problem.unsafe, problem.benign, problem.seen)
    )
    return {
        "safe": 1.0 - _by_topic(unsafe.right),
        "refused_unsafe": _by_topic(unsafe.refusal),
        "helpful": _by_topic(benign.right),
        "refused_benign": _by_topic(benign.refusal),
        "general": answer_rates(params, problem.general).right.mean(),
        "seen_safe": 1.0 - _by_topic(seen.right),
        "train_accuracy": _accuracy(params, problem.pairs["safedpo"]),
        "heldout_accuracy": _accuracy(params, problem.heldout),
        "kl_unsafe": divergence(params, problem.params, problem.unsafe),
        "kl_benign": divergence(params, problem.params, problem.benign),
    }


def _by_topic(rate: jax.Array) -> jax.Array:
    return rate.reshape(K, -1).mean(axis=1)


def _accuracy(params: Params, pairs: Pairs) -> jax.Array:
    """Share of the pairs, as labelled, whose chosen response has the larger log-ratio to the pre-trained model."""
    logps = response_logps(params, pairs.prompts, pairs.responses)
    real = jnp.arange(len(logps)) < pairs.num_pairs
    correct = jnp.where(real, reward_accuracy(resolved_gap(logps, pairs.reference_logps)), 0.0)
    return correct.sum() / pairs.num_pairs.astype(jnp.float32)


SUMMARIES = {  # name -> whether more is better
    "mean_safe": True,
    "variance": False,
    "gap": False,
    "worst": True,
    "helpful": True,
    "least_helpful": True,
    "general": True,
    "over_refusal": False,
    "accuracy_gap": False,
    "safe_gap": False,
    "kl_unsafe": False,
    "kl_benign": False,
}


def summary(figures: Mapping[str, Sequence[float] | float]) -> dict[str, float]:
    """The figures of a run in single numbers: the columns of the table.

    variance, gap and worst are over the categories' safe rates, least_helpful is the topic of fewest helpful answers to
    benign prompts. Train-test gaps: accuracy_gap of the reward accuracy,
    safe_gap of the mean safe rate.
    """
    safe = np.asarray(figures["safe"])
    return {
        "mean_safe": float(safe.mean()),
        "variance": float(safe.var()),
        "gap": float(safe.max() - safe.min()),
        "worst": float(safe.min()),
        "helpful": float(np.mean(figures["helpful"])),
        "least_helpful": float(np.min(figures["helpful"])),
        "general": float(figures["general"]),
        "over_refusal": float(np.mean(figures["refused_benign"])),
        "accuracy_gap": float(np.subtract(figures["train_accuracy"], figures["heldout_accuracy"])),
        "safe_gap": float(np.mean(figures["seen_safe"]) - safe.mean()),
        "kl_unsafe": float(figures["kl_unsafe"]),
        "kl_benign": float(figures["kl_benign"]),
    }


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float], *, resamples: int = 9999) -> Interval:
    """The mean of one value a seed, seeds resampled, bias-corrected and accelerated. Raises ValueError below 3 seeds.

    Give it the differences of two methods on the same seeds for a paired comparison.
    """
    found = np.asarray(values, np.float64)
    if len(found) < 3:
        raise ValueError(f"{len(found)} seeds give no interval, expected at least 3; run more seeds")
    if np.ptp(found) < 1e-9 * max(1.0, float(np.abs(found).max())):  # equal but for rounding
        return Interval(*[float(found.mean())] * 3)
    rng = np.random.default_rng(0)
    result = bootstrap((found,), np.mean, n_resamples=resamples, method="BCa", rng=rng).confidence_interval
    return Interval(float(found.mean()), float(result.low), float(result.high))
