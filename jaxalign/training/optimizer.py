"""Optimizer and learning-rate schedule from settings, all of optax."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import Field, model_validator

from jaxalign.errors import JaxalignError
from jaxalign.settings import Settings

NOT_DECAYED = ("scale", "bias")


class OptimizerConfig(Settings):
    """AdamW with a warm-up, a schedule and clipping by global norm."""

    learning_rate: float = Field(default=1e-6, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="learning rate at the end / peak")
    weight_decay: float = Field(default=0.0, ge=0, description="not applied to norm scales and biases")
    b1: float = Field(default=0.9, ge=0, lt=1)
    b2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="null: no clipping")
    moment_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="first moment of AdamW"
    )

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        if self.schedule == "constant" and self.final_fraction != 0.0:
            raise ValueError("final_fraction has no effect with schedule: constant; remove it")
        return self


class ScheduleError(JaxalignError, ValueError):
    """A schedule that does not fit into the steps of the run."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate by number of updates made: up to the peak in `warmup_steps`, then the schedule to the last step.

    Raises ScheduleError where the warm-up is as long as the run.
    """
    if config.warmup_steps >= num_steps:
        raise ScheduleError(
            f"optimizer.warmup_steps={config.warmup_steps} leaves nothing of {num_steps} steps; lower it"
        )
    decay_steps = num_steps - config.warmup_steps
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    after: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction),
    }
    if not config.warmup_steps:
        return after[config.schedule]()
    # The first update already moves: the warm-up starts at peak / warmup_steps, not at zero.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after[config.schedule]()], [config.warmup_steps])


def decay_mask(params: Any) -> Any:
    """True at the parameters that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) not in NOT_DECAYED, params
    )


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, then AdamW."""
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=jnp.dtype(config.moment_dtype),
    )
    if config.max_grad_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)
