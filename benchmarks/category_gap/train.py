"""One run of the study: a method at its numbers on the problem of a seed, as one pure function for `vmap`.

The step is jaxalign's own, and so is what probes do: their rates enter the margin rule between steps, alone (`probe`)
or beside those of the batches (`both`). Only the answers are got in another way, by `probe` below.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from methods import Method, Numbers, make_objective, make_optimizer_config
from metrics import run_figures
from model import DECODER, Params, answer_rates, lay_out, response_logps
from problem import Pairs, Problem
from world import PAD, K

from jaxalign.adaptive import CategoryStats, margin_rule, restart_rates
from jaxalign.batch import PairBatch
from jaxalign.training.logps import pair_logps
from jaxalign.training.objective import Objective
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
                pairs = dataclasses.replace(pairs, categories=merged(pairs.categories))
            if stage:
                logps = response_logps(params, pairs.prompts, pairs.responses)
                pairs = dataclasses.replace(pairs, reference_logps=logps)
            objective = make_objective(method, numbers, stage=stage)
            params, trace = _train(method, numbers, objective, params, pairs, problem, order, budget)
            traces.append(trace)
        trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)
        return run_figures(params, problem) | {f"trace/{name}": x for name, x in trace.items()}

    return run


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
    step = make_train_step(policy_logps, precomputed_reference, objective, optimizer, schedule)

    def advance(state: TrainState, index: jax.Array) -> tuple[TrainState, jax.Array]:
        state, sums = step(state, None, make_batch(pairs, index))
        return state, sums.loss / sums.pairs

    def segment(state: TrainState, order: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        if method.signal != "implicit":
            stats = probe(state, problem, budget)
            stats = pooled(stats) if method.one_category else stats
            state = follow_probe(objective, state, stats, corrects=method.signal == "both")
        state, losses = jax.lax.scan(advance, state, order)
        return state, {"loss": losses.mean(), **_margins(state)}

    segments = order.reshape(-1, budget.probe_every, budget.batch_size)
    state, trace = jax.lax.scan(segment, state, segments)
    return state.params, trace


def _margins(state: TrainState) -> dict[str, jax.Array]:
    margins = state.adaptive.get("margin")
    return {} if margins is None else {"margin": margins.margin, "violation": margins.violation_rate}


def probe(state: TrainState, problem: Problem, budget: Budget) -> CategoryStats:
    """What the policy answers to the probe prompts, judged by the truth: harmful answers and answers by category.

    Whether an answer is harmful is drawn with the exact rate: the same distribution as sampling and judging it.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), 1_000_000 + state.step)
    rate = answer_rates(state.params, problem.probe).right
    rates = jnp.broadcast_to(rate, (budget.probe_samples, *rate.shape))
    harmful = jax.random.bernoulli(key, rates)
    counts = harmful.astype(jnp.float32).sum(axis=0).reshape(K, -1)
    return CategoryStats(counts.sum(axis=1), jnp.full(K, float(harmful.size // K)))


def merged(categories: jax.Array) -> jax.Array:
    """[N, K] all categories for a pair that has any: so they share one rate and one margin."""
    return jnp.broadcast_to(categories.max(axis=1, keepdims=True), categories.shape)


def pooled(stats: CategoryStats) -> CategoryStats:
    """All categories as one: the mean for each, so that all answers together count as often as they did."""
    return CategoryStats(*[jnp.full(K, x.mean()) for x in (stats.violations, stats.pairs)])


def follow_probe(
    objective: Objective, state: TrainState, stats: CategoryStats, *, corrects: bool = False
) -> TrainState:
    """The state with the margins moved by a probe, which `corrects` the rates of the pairs beside it."""
    rule = margin_rule(objective.rule_configs["margin"])
    before = state.adaptive["margin"]
    margin = rule.update(stats, restart_rates(stats, before) if corrects else before)
    return dataclasses.replace(state, adaptive={**state.adaptive, "margin": margin})
