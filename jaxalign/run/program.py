"""The train step of a configuration as a program for a mesh: compiled functions and shapes, no data and no weights."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign.batch import PairBatch, Places, Rows
from jaxalign.config import Config
from jaxalign.data.packing import RowShape
from jaxalign.models.config import DecoderConfig
from jaxalign.parallel import batch_sharding, replicated, tree_shardings, with_shardings
from jaxalign.run.policy import Policy, make_policy
from jaxalign.training.metrics import StepSums
from jaxalign.training.objective import Objective
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.state import TrainState, init_state, state_shardings
from jaxalign.training.step import StepFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run does at each step, and the shapes and shardings of what it does it to.

    `step(state, frozen, batch)` is jitted and donates the state. `abstract_frozen` is a tree of shapes as in
    `Policy`; `make_state(params)` gives the first state.
    """

    mesh: Mesh
    policy: Policy
    objective: Objective
    optimizer: optax.GradientTransformation
    step: StepFn
    make_state: Callable[[Any], TrainState]
    abstract_base: Any
    abstract_frozen: Any
    abstract_state: TrainState

    def lower(self, batch: PairBatch) -> jax.stages.Lowered:
        """The step for a batch of shapes, ready to compile: neither data nor weights are needed."""
        jitted = cast(jax.stages.Wrapped, self.step)
        return jitted.lower(self.abstract_state, self.abstract_frozen, batch)


def build_program(config: Config, architecture: DecoderConfig, mesh: Mesh, num_steps: int) -> Program:
    """The program of a run of so many steps. Raises ConfigError if the model cannot run so on these devices."""
    policy = make_policy(config.model, architecture, mesh)
    objective = config.make_objective()
    schedule = make_schedule(config.optimizer, num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)

    def make_state(params: Any) -> TrainState:
        return init_state(params, optimizer, objective.init(), config.train.seed)

    trainable = policy.abstract_trainable()
    abstract = jax.eval_shape(make_state, trainable)
    trainable_shardings = tree_shardings(policy.trainable_dims(), trainable, mesh)
    shardings = state_shardings(abstract, trainable_shardings, optimizer, mesh)
    base = policy.decoder.abstract_params()
    base = with_shardings(base, tree_shardings(policy.decoder.logical_dims(), base, mesh))
    step = make_train_step(
        policy.logps,
        policy.reference_fn(config.reference.mode),
        objective,
        optimizer,
        schedule,
        policy_logps_alone=policy.logps_alone if config.adaptive.mi_source == "policy" else None,
    )

    def whole_step(state: TrainState, frozen: Any, batch: PairBatch) -> tuple[TrainState, StepSums]:
        with policy.full_precision():  # backward passes of kernels are traced after the forward pass
            return step(state, frozen, batch)

    return Program(
        mesh=mesh,
        policy=policy,
        objective=objective,
        optimizer=optimizer,
        step=jax.jit(whole_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
        make_state=make_state,
        abstract_base=base,
        abstract_frozen=frozen_parameters(config, base),
        abstract_state=with_shardings(abstract, shardings),
    )


def frozen_parameters(config: Config, base: Any) -> Any:
    """The parameters that do not train: the base of an adapter, or the reference of an online run."""
    if config.model.lora is not None:
        return {"base": base}
    return {"reference": base} if config.reference.mode == "online" else {}


def abstract_batch(
    config: Config, shape: RowShape, alone: RowShape | None = None, mesh: Mesh | None = None
) -> PairBatch:
    """The shapes of the stacked micro-batches of a step, placed on a mesh if there is one."""
    M, B, K = config.train.num_micro_batches, config.micro_batch_size(), len(config.data.category_names)
    sharding = None if mesh is None else batch_sharding(mesh)

    def array(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((M, *dims), dtype, sharding=sharding)

    def rows(shape: RowShape) -> Rows:
        N, L, G, S = shape.num_rows, shape.length, shape.num_groups, shape.num_targets
        tokens, targets = (array(*dims, dtype=jnp.int32) for dims in ((N, L), (G, S)))
        places = Places(tokens, tokens, tokens, shape.unfolded_length)
        return Rows(tokens, places, targets, targets, targets)

    pairs, both = array(B), array(B, 2)
    return PairBatch(
        rows=rows(shape),
        alone=None if alone is None else rows(alone),
        lengths=array(B, 2, dtype=jnp.int32),
        categories=array(B, K),
        chosen_unsafe=pairs,
        rejected_unsafe=pairs,
        weight=pairs,
        reference_logps=both,
        mi=both,
        scores=both,
        index=array(B, dtype=jnp.int32),
    )
