"""One run of the study: a method at its numbers on the problem of a seed, as one pure function for `vmap`.

The step is jaxalign's own. The adaptive signals that need answers of the policy, `probe` and `both`, are here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from methods import Method, Numbers, make_objective, make_optimizer_config
from metrics import run_figures
from model import DECODER, Params, answer_rates, lay_out, response_logps
from problem import Pairs, Problem
from world import PAD, K

from jaxalign.adaptive import CategoryStats, MarginConfig, margin_rule
from jaxalign.batch import PairBatch
from jaxalign.training.logps import pair_logps
from jaxalign.training.objective import AdaptiveState, Objective
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.state import TrainState, init_state
from jaxalign.training.step import make_train_step, precomputed_reference


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every method may spend. The steps of a method with two stages are shared between them.

    probe_every: steps from probe to probe, of the methods that probe; probe_samples: answers to each probe prompt.
    """

    num_steps: int = 240
    batch_size: int = 32
    probe_every: int = 10
    probe_samples: int = 4


@dataclasses.dataclass(frozen=True)
class SignalledObjective(Objective):
    """An objective whose margins follow more than the reward gaps of the batch.

    correction: [K] what probes found beyond the rate that the gaps show, added to it; None leaves the margins to the
        probes alone.
    """

    correction: jax.Array | None = None

    def update(self, stats: dict[str, Any], state: AdaptiveState) -> AdaptiveState:
        """The adaptive state after a step."""
        if self.correction is None:
            return {**super().update(stats, state), "margin": state["margin"]}
        seen: CategoryStats = stats["margin"]
        violations = jnp.clip(seen.violations + self.correction * seen.pairs, 0.0, seen.pairs)
        return super().update({**stats, "margin": CategoryStats(violations, seen.pairs)}, state)


def policy_logps(params: Params, frozen: None, batch: PairBatch) -> jax.Array:
    """[B, 2] what the step needs of the model."""
    return pair_logps(
        lambda rows: DECODER.hidden(params, None, rows.tokens, rows.places), DECODER.head(params), batch
    )


def make_batch(pairs: Pairs, index: jax.Array) -> PairBatch:
    """The pairs `index` [B] as the one micro-batch of a step."""
    of_pairs = {name: jnp.take(x, index, axis=0) for name, x in vars(pairs).items() if name != "num_pairs"}
    responses, unsafe = of_pairs["responses"], of_pairs["unsafe"]
    batch = PairBatch(
        rows=lay_out(of_pairs["prompts"], responses),
        alone=None,
        lengths=(responses != PAD).sum(axis=2, dtype=jnp.int32),
        categories=of_pairs["categories"],
        chosen_unsafe=unsafe[:, 0],
        rejected_unsafe=unsafe[:, 1],
        weight=jnp.ones(len(index), jnp.float32),
        reference_logps=of_pairs["reference_logps"],
        mi=of_pairs["mi"],
        scores=jnp.zeros((len(index), 2), jnp.float32),
        index=index,
    )
    return jax.tree.map(lambda x: x[None], batch)


def make_run(
    method: Method, budget: Budget
) -> Callable[[Numbers, Problem, list[jax.Array]], dict[str, jax.Array]]:
    """(numbers, problem, the pairs of every step by stage [steps, B]) -> figures of the trained model."""

    def run(numbers: Numbers, problem: Problem, orders: list[jax.Array]) -> dict[str, jax.Array]:
        params, traces = problem.params, []
        for stage, (name, order) in enumerate(zip(method.views, orders, strict=True)):
            pairs = problem.pairs[name]
            if method.one_category:
                pairs = dataclasses.replace(pairs, categories=_merged(pairs.categories))
            if stage:
                logps = response_logps(params, pairs.prompts, pairs.responses)
                pairs = dataclasses.replace(pairs, reference_logps=logps)
            objective = make_objective(method, numbers, stage=stage)
            params, trace = _train(method, numbers, objective, params, pairs, problem, order, budget)
            traces.append(trace)
        trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)
        return run_figures(params, problem) | {f"trace/{name}": x for name, x in trace.items()}

    return run


def _merged(categories: jax.Array) -> jax.Array:
    """[N, K] all categories for a pair that has any: so they share one rate and one margin."""
    return jnp.broadcast_to(categories.max(axis=1, keepdims=True), categories.shape)


def steps_of_stages(method: Method, budget: Budget) -> list[int]:
    """The steps of each stage; they add up to those of the budget and are multiples of `probe_every`."""
    return [budget.num_steps // len(method.views)] * len(method.views)


def _train(
    method: Method,
    numbers: Numbers,
    objective: Objective,
    params: Params,
    pairs: Pairs,
    problem: Problem,
    order: jax.Array,
    budget: Budget,
) -> tuple[Params, dict[str, jax.Array]]:
    """Parameters after the steps of a stage, and what was seen on the way, one value a segment between probes."""
    config = make_optimizer_config(numbers, order.shape[0])
    schedule = make_schedule(config, order.shape[0])
    optimizer = make_optimizer(config, schedule)
    state = init_state(params, optimizer, objective.init(), problem.seed)
    carry = state, jnp.zeros(K)

    def segment(
        carry: tuple[TrainState, jax.Array], order: jax.Array
    ) -> tuple[tuple[TrainState, jax.Array], dict[str, jax.Array]]:
        state, correction = carry
        signalled = objective
        if method.signal != "implicit":
            stats = probe(state, problem, budget)
            if method.one_category:
                stats = CategoryStats(*[jnp.full(K, x.sum()) for x in (stats.violations, stats.pairs)])
            state, correction = follow_probe(method, objective, state, correction, stats, budget)
            follows = correction if method.signal == "both" else None
            signalled = SignalledObjective(**vars(objective), correction=follows)
        step = make_train_step(policy_logps, precomputed_reference, signalled, optimizer, schedule)

        def advance(state: TrainState, index: jax.Array) -> tuple[TrainState, jax.Array]:
            state, sums = step(state, None, make_batch(pairs, index))
            return state, sums.loss / sums.pairs

        state, losses = jax.lax.scan(advance, state, order)
        return (state, correction), {"loss": losses.mean(), **_margins(state)}

    segments = order.reshape(-1, budget.probe_every, budget.batch_size)
    (state, _), trace = jax.lax.scan(segment, carry, segments)
    return state.params, trace


def _margins(state: TrainState) -> dict[str, jax.Array]:
    margins = state.adaptive.get("margin")
    return {} if margins is None else {"margin": margins.margin, "violation": margins.violation_rate}


def probe(state: TrainState, problem: Problem, budget: Budget) -> CategoryStats:
    """What the policy answers to the probe prompts, judged by the truth.

    The number of harmful ones among `probe_samples` answers is drawn with its exact rate: the same distribution as
    sampling the answers and judging each.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), 1_000_000 + state.step)
    rate = answer_rates(state.params, problem.probe).right
    rates = jnp.broadcast_to(rate, (budget.probe_samples, *rate.shape))
    by_category = jax.random.bernoulli(key, rates).mean(axis=0).reshape(K, -1)
    return CategoryStats(by_category.sum(axis=1), jnp.full(K, by_category.shape[1], jnp.float32))


def follow_probe(
    method: Method,
    objective: Objective,
    state: TrainState,
    correction: jax.Array,
    stats: CategoryStats,
    budget: Budget,
) -> tuple[TrainState, jax.Array]:
    """The state and the correction [K] after a probe.

    `probe`: the probe is all that moves the margins, once for all the steps until the next one.
    `both`: the correction becomes what closes the gap between the rate that the margins follow and the probe's.
    """
    margins = state.adaptive["margin"]
    if method.signal == "both":
        beyond = stats.violations / stats.pairs - margins.violation_rate
        return state, jnp.clip(correction + beyond, -1.0, 1.0)
    config: MarginConfig = objective.rule_configs["margin"]
    n = budget.probe_every
    rule = margin_rule(
        dataclasses.replace(config, step_size=n * config.step_size, ema_rate=1 - (1 - config.ema_rate) ** n)
    )
    adaptive = {**state.adaptive, "margin": rule.update(stats, margins)}
    return dataclasses.replace(state, adaptive=adaptive), correction
