"""The check before the first step that the policy still is its reference. Nothing trains here."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.config import ConfigError
from jaxalign.losses import dpo_loss
from jaxalign.parallel import replicated
from jaxalign.run.setup import Run
from jaxalign.training.loop import sampling_state
from jaxalign.training.state import TrainState

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the mean loss, beside rounding
LARGE_LOGIT = 32.0
NUM_STANDARD_ERRORS = 4.0


def check_start(run: Run, state: TrainState) -> None:
    """Before the first step, plain DPO of the unchanged policy is ln 2, or policy and reference differ.

    Raises ConfigError where they differ by more than rounding.
    """
    if run.config.reference.mode == "none":
        return
    # No more pairs than training has on the devices at a time.
    whole = run.loader.batch(0, sampling_state(run.loader, state))
    fullest = int(whole.weight.sum(axis=1).argmax())
    host_batch = jax.tree.map(lambda x: x[fullest : fullest + 1], whole)
    batch = run.place(host_batch)
    policy, everywhere = run.program.policy, replicated(run.program.mesh)
    reference_fn = policy.reference_fn(run.config.reference.mode)

    def both(params: Any, frozen: Any, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
        micro = jax.tree.map(lambda x: x[0], batch)
        return policy.logps(params, frozen, micro), reference_fn(frozen, micro)

    logps, reference = jax.jit(both, out_shardings=everywhere)(state.params, run.frozen, batch)
    beta, dtype = run.config.loss.reward_beta, run.config.model.dtype
    loss = dpo_loss(*np.asarray(logps).T, *np.asarray(reference).T, beta=beta)
    real = host_batch.weight[0] > 0
    mean = float(np.asarray(loss, np.float64)[real].mean())
    tolerance = start_tolerance(host_batch.lengths[0][real], beta, dtype)
    if not abs(mean - np.log(2.0)) < tolerance:
        in_float32 = "" if dtype == "float32" else f". With model.dtype {dtype} try float32"
        raise ConfigError(
            f"plain DPO of the unchanged policy is {mean:.6f}, expected ln 2 = {np.log(2.0):.6f} within "
            f"{tolerance:.2g}: policy and reference do not compute the same. A reference file must come from "
            f"this model{in_float32}"
        )
    log.info("start: plain DPO of the unchanged policy is %.6f (ln 2 = %.6f)", mean, np.log(2.0))


def start_tolerance(lengths: np.ndarray, beta: float, dtype: str) -> float:
    """How far from ln 2 the mean loss of equal models may be over pairs with response lengths [n, 2].

    The reference pass has rows of another shape than the step, so both round differently. A large logit is rounded
    with a standard deviation of LARGE_LOGIT * eps / sqrt(12), and the log-prob of its token with it, independently of
    other tokens: 0.07 nats in bfloat16, where SmolLM2-135M was seen to have 0.06, and next to nothing in float32.
    """
    token = LARGE_LOGIT * float(jnp.finfo(dtype).eps) / 12**0.5
    variance = (beta * token) ** 2 * lengths.sum(axis=1)  # of the gap of each pair
    # The loss is ln 2 - gap / 2 + gap^2 / 8 and less: a standard error of its mean, and what its mean is moved by.
    standard_error = float(np.sqrt(variance.sum())) / (2 * len(lengths))
    return TOLERANCE + NUM_STANDARD_ERRORS * standard_error + float(variance.mean()) / 8
