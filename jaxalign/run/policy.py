"""The decoder as the train step sees it: which parameters train, which are frozen, and their log-probs."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.batch import PairBatch
from jaxalign.config import ConfigError
from jaxalign.config.schema import ModelConfig
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.settings import RowsConfig
from jaxalign.models.config import DecoderConfig
from jaxalign.models.functional import DecoderFns, build_decoder
from jaxalign.ops.attention import Attention, default_implementation, make_attention, supported
from jaxalign.ops.token_logps import token_logps
from jaxalign.parallel import batch_sharding, make_constrain, num_groups, put_global, replicated
from jaxalign.parallel.kernels import MeshAttention, head_on_mesh
from jaxalign.progress import Stage
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

    def model_logps(self, base: Any, lora: Any, batch: PairBatch, *, train_head: bool = False) -> jax.Array:
        """[B, 2] under base parameters with an adapter, or without (None)."""
        # float32 means float32 also where matrix units would round their inputs by default.
        exact = self.decoder.spec.compute_dtype == jnp.float32
        with jax.default_matmul_precision("float32" if exact else None):
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
    """The policy of a configuration on a mesh; without a mesh activations are left where they fall.

    Raises ConfigError if the attention that is asked for cannot compute this model there.
    """
    platform = "cpu" if mesh is None else platform_of(mesh)
    decoder = build_decoder(
        architecture,
        compute_dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        remat=config.remat,
        lora=config.lora,
        attention=_attention(config, architecture, mesh, platform),
        **({} if mesh is None else {"constrain": make_constrain(mesh)}),
    )
    return Policy(decoder, head_functions(config.logps_chunk_size, mesh))


def head_functions(chunk_size: int, mesh: Mesh | None) -> Callable[..., HeadFn]:
    """By `train_head`, the head of a model on a mesh."""
    if mesh is None:
        return functools.partial(functools.partial, token_logps, chunk_size=chunk_size)
    return functools.partial(head_on_mesh, mesh, chunk_size=chunk_size)


def _attention(
    config: ModelConfig, architecture: DecoderConfig, mesh: Mesh | None, platform: str
) -> Attention:
    """The kernel that is asked for, or the platform's own; blockwise where that one cannot compute this model."""
    automatic = config.attention == "auto"
    name = default_implementation(platform) if config.attention == "auto" else config.attention
    reason = supported(
        name,
        platform,
        head_dim=architecture.head_dim,
        dtype=config.dtype,
    )
    if reason is not None and not automatic:
        raise ConfigError(f"model.attention {name}: {reason}; use auto")
    if reason is not None:
        log.info("attention: blockwise, as %s", reason)
        name = "blockwise"
    kernel = make_attention(name, sliding_window=architecture.sliding_window)
    return kernel if mesh is None else MeshAttention(kernel=kernel, mesh=mesh)


class LogpsPass:
    """Forward passes over whole data sets, compiled once per data set."""

    def __init__(
        self,
        logps: Callable[[Any, Any, PairBatch], jax.Array],
        mesh: Mesh,
        batch_size: int,
        rows: RowsConfig,
        *,
        show: bool,
    ) -> None:
        self._logps = jax.jit(
            lambda params, frozen, batch: logps(params, frozen, jax.tree.map(lambda x: x[0], batch)),
            out_shardings=replicated(mesh),
        )
        self._mesh, self._batch_size, self._rows, self._show = mesh, batch_size, rows, show

    def __call__(
        self,
        params: Any,
        frozen: Any,
        dataset: TokenizedDataset,
        *,
        label: str,
        known: np.ndarray | None = None,
        on_progress: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """[n, 2] float32 log-probs of all pairs in the order of the data set.

        Batches whose pairs are all finite in `known` [n, 2] are taken from there; the others are the same as ever.
        `on_progress` is given the rows [m] that are new and their log-probs [m, 2], after each batch.
        """
        loader = PairLoader(
            dataset,
            batch_size=min(self._batch_size, -(-len(dataset) // (parts := num_groups(self._mesh))) * parts),
            rows=self._rows,
            num_groups=parts,
            multiple=row_multiple(platform_of(self._mesh)),
            num_epochs=1,
        )
        logps = np.full((len(dataset), 2), np.nan, np.float32) if known is None else known.copy()
        indices = [loader.indices(step) for step in range(loader.num_steps)]
        steps = [i for i, index in enumerate(indices) if not np.isfinite(logps[index[index >= 0]]).all()]
        done = len(dataset) - sum(int((indices[i] >= 0).sum()) for i in steps)
        with Stage(label, len(dataset), completed=done, enabled=self._show) as stage:
            for index, values in self._batches(params, frozen, map(loader.batch, steps)):
                logps[index] = values
                if on_progress is not None:
                    on_progress(index, values)
                stage.advance(len(index))
        return logps

    def _batches(
        self, params: Any, frozen: Any, batches: Iterable[PairBatch]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their log-probs, batch by batch; the devices are given the next batch before one is fetched."""
        pending: tuple[np.ndarray, jax.Array] | None = None
        for batch in batches:
            (index,) = batch.index
            started = (index, self._logps(params, frozen, put_global(batch, batch_sharding(self._mesh))))
            if pending is not None:
                yield _real(*pending)
            pending = started
        if pending is not None:
            yield _real(*pending)


def _real(index: np.ndarray, logps: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Without the pairs of padding."""
    return index[index >= 0], np.asarray(logps)[index >= 0]


def platform_of(mesh: Mesh) -> str:
    """cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def row_multiple(platform: str) -> int:
    """What the length of a row is a multiple of: 128 for the kernels of TPUs and GPUs."""
    return 32 if platform == "cpu" else 128
