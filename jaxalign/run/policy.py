"""The decoder as the train step sees it: which parameters train, which are frozen, and their log-probs."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.batch import PairBatch
from jaxalign.config import ConfigError
from jaxalign.config.schema import ModelConfig
from jaxalign.models.config import DecoderConfig
from jaxalign.models.functional import DecoderFns, build_decoder
from jaxalign.ops.attention import Attention, default_implementation, make_attention, supported
from jaxalign.ops.token_logps import token_logps
from jaxalign.parallel import make_constrain
from jaxalign.parallel.kernels import MeshAttention, head_on_mesh
from jaxalign.training.logps import HeadFn, pair_logps, without_prompts
from jaxalign.training.step import ReferenceFn, precomputed_reference

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Log-probs of a decoder as functions of (trainable, frozen).

    With adapters the adapter trains and `frozen` is {"base": parameters}; without, all parameters train and
    `frozen` is {} or, for an online reference, {"reference": parameters}.
    """

    decoder: DecoderFns
    head_fn: Callable[..., HeadFn]  # by train_head

    def logps(self, params: Any, frozen: Any, batch: PairBatch) -> jax.Array:
        """[B, 2] under the policy."""
        if self.decoder.lora is None:
            return self.model_logps(params, None, batch, train_head=True)
        return self.model_logps(frozen["base"], params, batch)

    def logps_alone(self, params: Any, frozen: Any, batch: PairBatch) -> jax.Array:
        """[B, 2] under the policy after the empty prompt."""
        return self.logps(params, frozen, without_prompts(batch))

    def base_logps(self, base: Any, batch: PairBatch) -> jax.Array:
        """[B, 2] under base parameters, without adapters."""
        return self.model_logps(base, None, batch)

    def reference_fn(self, mode: str) -> ReferenceFn:
        """Where the step takes the reference log-probs from, by `reference.mode`."""
        if mode in ("precomputed", "none"):  # without a reference the batch holds zeros
            return precomputed_reference
        name = "reference" if self.decoder.lora is None else "base"
        return lambda frozen, batch: self.base_logps(frozen[name], batch)

    def abstract_trainable(self) -> Any:
        """Shapes of what trains."""
        return self.decoder.abstract_params() if self.decoder.lora is None else self.decoder.abstract_lora()

    def trainable_dims(self) -> Any:
        """Logical dims of what trains."""
        return self.decoder.logical_dims() if self.decoder.lora is None else self.decoder.lora_logical_dims()

    def full_precision(self) -> contextlib.AbstractContextManager[None]:
        """Where float32 is traced as float32, also for matrix units that would round their inputs by default."""
        exact = self.decoder.spec.compute_dtype == jnp.float32
        return jax.default_matmul_precision("float32" if exact else None)

    def model_logps(self, base: Any, lora: Any, batch: PairBatch, *, train_head: bool = False) -> jax.Array:
        """[B, 2] under base parameters with an adapter, or without (None)."""
        with self.full_precision():
            return pair_logps(
                lambda rows: self.decoder.hidden(base, lora, rows.tokens, rows.places),
                self.decoder.head(base),
                batch,
                head_fn=self.head_fn(train_head=train_head),
            )


def make_policy(
    config: ModelConfig,
    architecture: DecoderConfig,
    mesh: Mesh | None,
) -> Policy:
    """The policy of a configuration on a mesh; without one, on the devices at hand, activations left where they fall.

    Raises ConfigError if the attention that is asked for cannot compute this model there.
    """
    platform = jax.default_backend() if mesh is None else platform_of(mesh)
    split = None if mesh is None or mesh.size == 1 else mesh  # the kernels of one device need no mesh
    decoder = build_decoder(
        architecture,
        compute_dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        remat=config.remat,
        lora=config.lora,
        attention=_attention(config, architecture, split, platform),
        **({} if mesh is None else {"constrain": make_constrain(mesh)}),
    )
    return Policy(decoder, head_functions(config.logps_chunk_size, split))


def head_functions(chunk_size: int, mesh: Mesh | None) -> Callable[..., HeadFn]:
    """By `train_head`, the head of a model on a mesh."""
    if mesh is None:
        return functools.partial(functools.partial, token_logps, chunk_size=chunk_size)
    return functools.partial(head_on_mesh, mesh, chunk_size=chunk_size)


def check_attention(config: ModelConfig, architecture: DecoderConfig, platform: str) -> None:
    """Raise ConfigError if the attention that is asked for by name cannot compute this model on a platform."""
    if config.attention == "auto":
        return
    reason = supported(config.attention, platform, head_dim=architecture.head_dim, dtype=config.dtype)
    if reason is not None:
        raise ConfigError(f"model.attention {config.attention}: {reason}; use auto")


def _attention(
    config: ModelConfig, architecture: DecoderConfig, mesh: Mesh | None, platform: str
) -> Attention:
    """The kernel that is asked for, or the platform's own; blockwise where that one cannot compute this model."""
    check_attention(config, architecture, platform)
    name = config.attention
    if name == "auto":
        name = default_implementation(platform)
        reason = supported(name, platform, head_dim=architecture.head_dim, dtype=config.dtype)
        if reason is not None:
            log.info("attention: blockwise, as %s", reason)
            name = "blockwise"
    kernel = make_attention(name, sliding_window=architecture.sliding_window)
    return kernel if mesh is None else MeshAttention(kernel=kernel, mesh=mesh)


def platform_of(mesh: Mesh) -> str:
    """cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def row_multiple(platform: str) -> int:
    """What the length of a row is a multiple of: 128 for the kernels of TPUs and GPUs."""
    return 32 if platform == "cpu" else 128
