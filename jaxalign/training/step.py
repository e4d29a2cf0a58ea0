"""One train step: old adaptive state in the loss, global sums out, new adaptive state and parameters.

Everything is a pure function of (state, frozen parameters, batch); sharding is given from outside to `jax.jit`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.batch import PairBatch
from jaxalign.training.logps import PairLogpsFn, with_policy_mi
from jaxalign.training.metrics import PairSums, StepSums, pair_sums
from jaxalign.training.objective import Objective
from jaxalign.training.state import TrainState, widened

ReferenceFn = Callable[[Any, PairBatch], jax.Array]
Sums = tuple[PairSums, dict[str, Any]]
"""What the log needs of a (micro-)batch, and what each adaptive rule does."""
StepFn = Callable[[TrainState, Any, PairBatch], tuple[TrainState, StepSums]]


def precomputed_reference(frozen: Any, batch: PairBatch) -> jax.Array:
    """[B, 2] the reference log-probs that came with the batch."""
    return batch.reference_logps


def accumulated(grad_fn: Callable[..., tuple[Any, Sums]]) -> Callable[..., tuple[Any, Sums]]:
    """(state, frozen, batch) -> (gradients, sums) of stacked micro-batches [M, ...], which simply add up."""

    def gradients(state: TrainState, frozen: Any, batch: PairBatch) -> tuple[Any, Sums]:
        num_pairs = batch.weight.sum()  # of the whole update
        first = jax.tree.map(lambda x: x[0], batch)
        if len(batch.weight) == 1:
            return grad_fn(state.params, state, frozen, first, num_pairs)

        def accumulate(total: Any, micro: PairBatch) -> tuple[Any, None]:
            part = grad_fn(state.params, state, frozen, micro, num_pairs)
            return jax.tree.map(lambda t, p: t + p.astype(t.dtype), total, part), None

        shapes = jax.eval_shape(grad_fn, state.params, state, frozen, first, num_pairs)
        # Gradients add up in float32 even where the parameters are bf16.
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, np.promote_types(s.dtype, np.float32)), shapes[0])
        start = (zeros, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[1]))
        return jax.lax.scan(accumulate, start, batch)[0]

    return gradients


def make_train_step(
    policy_logps: PairLogpsFn,
    reference_logps: ReferenceFn,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    policy_logps_alone: PairLogpsFn | None = None,
) -> StepFn:
    """The step as one function for `jax.jit(step, donate_argnums=0)`; its batch is micro-batches stacked, [M, ...].

    With `policy_logps_alone`, the log-probs of responses without their prompts, mutual information is the policy's
    own and not that of the batch.
    """

    def micro_loss(
        params: Any, state: TrainState, frozen: Any, batch: PairBatch, num_pairs: jax.Array
    ) -> tuple[jax.Array, Sums]:
        # Padding is cut off here, so that nothing it holds can reach the gradient, not even as 0 * NaN.
        policy = jnp.where(batch.weight[:, None] > 0, policy_logps(params, frozen, batch), 0.0)
        reference = jax.lax.stop_gradient(reference_logps(frozen, batch))
        if policy_logps_alone is not None:
            alone = policy_logps_alone(jax.lax.stop_gradient(params), frozen, batch)
            batch = with_policy_mi(policy, alone, batch)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        terms, stats = objective.terms(policy, reference, batch, state.adaptive, key)
        loss = jnp.where(batch.weight > 0, terms.loss, 0.0)
        return (loss * batch.weight).sum() / num_pairs, (pair_sums(terms, policy, batch), stats)

    gradients = accumulated(jax.grad(micro_loss, has_aux=True))

    def train_step(state: TrainState, frozen: Any, batch: PairBatch) -> tuple[TrainState, StepSums]:
        grads, (sums, stats) = gradients(state, frozen, batch)
        # Norm, clipping and moments are float32 also where the parameters are bf16.
        grads = widened(grads)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums.loss)
        num_updates = state.step - state.num_skipped

        # optax mixes integer counts with floats, and bf16 with float32
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            learning_rate = jnp.asarray(schedule(num_updates), jnp.float32)
        adaptive = objective.update(stats, state.adaptive)
        updated = dataclasses.replace(state, params=params, opt_state=opt_state, adaptive=adaptive)
        # A non-finite step changes nothing but the counters; the loop reports it.
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
        new_state = dataclasses.replace(
            kept,
            step=state.step + 1,
            num_skipped=state.num_skipped + skipped,
            num_skipped_in_a_row=(state.num_skipped_in_a_row + 1) * skipped,
        )
        step_sums = StepSums(
            **vars(sums),
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            num_skipped=new_state.num_skipped,
            num_skipped_in_a_row=new_state.num_skipped_in_a_row,
            adaptive=objective.figures(new_state.adaptive),
        )
        return new_state, step_sums

    return train_step
