"""Sums over pairs on the device, figures by name on the host. Means are taken once, at the very end."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.training.objective import PairTerms

PER_PAIR = {  # name in PairTerms -> name of the metric
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "accuracy": "rewards/accuracies",
    "reward_gap": "rewards/margins",
    "violation": "violation_rate",
}
ADAPTIVE = {"chosen_weight": "weight_chosen", "rejected_weight": "weight_rejected"}  # others keep their name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairSums:
    """Sums over pairs: `pairs`, `tokens`, `loss` [], `terms` {name: []}, `logps` [2]; the same by category [K].

    `not_finite` [K + 1] counts pairs with a non-finite loss by category, in the last place those without one.
    """

    pairs: jax.Array
    tokens: jax.Array
    loss: jax.Array
    logps: jax.Array
    terms: dict[str, jax.Array]
    category_pairs: jax.Array
    category_loss: jax.Array
    category_terms: dict[str, jax.Array]
    not_finite: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepSums(PairSums):
    """All that the host learns of a step: sums over its pairs, and scalars and adaptive state after it.

    `adaptive` is what `Objective.figures` gives. The host needs no other look at the state.
    """

    grad_norm: jax.Array
    learning_rate: jax.Array
    num_skipped: jax.Array
    num_skipped_in_a_row: jax.Array
    adaptive: dict[str, tuple[jax.Array, jax.Array]]


def pair_sums(terms: PairTerms, policy: jax.Array, batch: PairBatch) -> PairSums:
    """Sums over the real pairs of a batch; policy log-probs [B, 2]."""
    real = batch.weight > 0

    def total(x: jax.Array) -> jax.Array:
        return (jnp.where(real, x, 0.0) * batch.weight).sum()

    def by_category(x: jax.Array) -> jax.Array:
        # where and not only a product: 0 * inf of another category would spoil every sum
        inside = (batch.categories > 0) & real[:, None]
        return (jnp.where(inside, x[:, None], 0.0) * batch.weight[:, None]).sum(axis=0)

    loss = jax.lax.stop_gradient(terms.loss)
    policy = jax.lax.stop_gradient(policy)
    values = {metric: getattr(terms, field) for field, metric in PER_PAIR.items()}
    given = {ADAPTIVE.get(name, name): value for name, value in terms.adaptive.items()}
    of_pairs = {name: value for name, value in given.items() if value.ndim == 1}
    bad = (~jnp.isfinite(loss)).astype(jnp.float32)
    without = bad * (batch.categories.sum(axis=1) == 0).astype(jnp.float32)
    return PairSums(
        pairs=batch.weight.sum(),
        tokens=total(batch.lengths.sum(axis=1).astype(jnp.float32)),
        loss=total(loss),
        logps=jnp.stack([total(policy[:, 0]), total(policy[:, 1])]),
        terms={name: total(x) for name, x in values.items()}
        | {f"adaptive/{name}": total(jnp.broadcast_to(x, loss.shape)) for name, x in given.items()},
        category_pairs=by_category(jnp.ones_like(loss)),
        category_loss=by_category(loss),
        category_terms={name: by_category(x) for name, x in (values | of_pairs).items()},
        not_finite=jnp.append(by_category(bad), total(without)),
    )


def step_figures(sums: StepSums, names: Sequence[str]) -> dict[str, float | None]:
    """All figures of a step by name, from fetched sums; None where one is not finite."""
    scalars = {
        "grad_norm": float(sums.grad_norm),
        "learning_rate": float(sums.learning_rate),
        "skipped_steps": float(sums.num_skipped),
    }
    return pair_figures(sums, names) | _finite(scalars | adaptive_figures(sums.adaptive, names))


def pair_figures(sums: PairSums, names: Sequence[str]) -> dict[str, float | None]:
    """Means over the pairs by name, from fetched sums; None where one is not finite or has no pairs."""
    pairs = float(sums.pairs)
    count = pairs or np.nan  # no pairs, no means
    figures = {
        "loss": float(sums.loss) / count,
        **{name: float(x) / count for name, x in sums.terms.items()},
        "logps/chosen": float(sums.logps[0]) / count,
        "logps/rejected": float(sums.logps[1]) / count,
        "pairs": pairs,
        "response_tokens": float(sums.tokens),
    }
    for k, name in enumerate(names):
        count = float(sums.category_pairs[k])
        if not count:
            continue
        figures[f"category/{name}/pairs"] = count
        figures[f"category/{name}/loss"] = float(sums.category_loss[k]) / count
        for metric, x in sums.category_terms.items():
            figures[f"category/{name}/{metric}"] = float(x[k]) / count
    return _finite(figures)


def adaptive_figures(adaptive: dict[str, tuple[Any, Any]], names: Sequence[str]) -> dict[str, float]:
    """What `Objective.figures` gave, fetched, by name and, where it has one value a category, by category seen."""
    figures: dict[str, float] = {}
    for key, (value, num_seen) in adaptive.items():
        if np.ndim(value) == 0:
            figures[f"adaptive/{key}"] = float(value)
            continue
        figures |= {f"adaptive/{key}/{name}": float(value[k]) for k, name in enumerate(names) if num_seen[k]}
    return figures


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


def worst_category(figures: dict[str, float | None]) -> tuple[str, float] | None:
    """Name and violation rate of the worst category: by the running rate, else by this batch; None without one."""
    for prefix, suffix in (("adaptive/violation/", ""), ("category/", "/violation_rate")):
        rates = {
            key[len(prefix) : len(key) - len(suffix)]: value
            for key, value in figures.items()
            if key.startswith(prefix) and key.endswith(suffix) and value is not None
        }
        if rates:
            name = max(rates, key=lambda category: rates[category])
            return name, rates[name]
    return None
