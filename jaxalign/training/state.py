"""The whole state of a run as one pytree: what is saved, restored, sharded and donated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jaxalign.parallel import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step and skipped counters [] int32; params and opt_state hold trainable parameters only; rng is key data.

    `adaptive` is the state of the objective's rules by name, {} where the loss reads none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    adaptive: dict[str, Any]
    rng: jax.Array
    num_skipped: jax.Array
    num_skipped_in_a_row: jax.Array


def widened(tree: Any) -> Any:
    """The tree with every leaf narrower than float32 (bf16, f16) as float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype.itemsize < 4 else x, tree)


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    adaptive: dict[str, Any],
    seed: int,
) -> TrainState:
    """The state before the first step."""
    # Moments of bf16 parameters are float32: a second moment in bf16 does not move by a thousandth of itself.
    # Separate buffers: the step donates its state, and a buffer must not be donated twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(widened(params)),
        adaptive=adaptive,
        rng=jax.random.key_data(jax.random.key(seed)),
        num_skipped=jnp.zeros((), jnp.int32),
        num_skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def state_shardings(
    abstract: TrainState,
    param_shardings: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
) -> TrainState:
    """Shardings of the state: optimizer moments follow their parameters, everything else is replicated."""
    whole = replicated(mesh)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        param_shardings,
        transform_non_params=lambda _: whole,
    )
    everything_whole = jax.tree.map(lambda _: whole, abstract)
    return dataclasses.replace(everything_whole, params=param_shardings, opt_state=opt_state)
