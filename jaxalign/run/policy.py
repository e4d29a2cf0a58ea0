"""The decoder as the train step sees it: which parameters train, which are frozen, and their log-probs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.batch import PairBatch
from jaxalign.config.schema import ModelConfig
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.models.config import DecoderConfig
from jaxalign.models.functional import DecoderFns, build_decoder
from jaxalign.parallel import batch_sharding, make_constrain, put_global, replicated
from jaxalign.progress import Stage
from jaxalign.training.logps import pair_logps
from jaxalign.training.step import ReferenceFn, precomputed_reference


@dataclasses.dataclass(frozen=True)
class Policy:
    """Log-probs of a decoder as functions of (trainable, frozen).

    With adapters the adapter trains and `frozen` is {"base": parameters}; without, all parameters train and
    `frozen` is {} or, for an online reference, {"reference": parameters}.
    """

    decoder: DecoderFns
    response_length: int
    chunk_size: int

    def logps(self, params: Any, frozen: Any, batch: PairBatch) -> jax.Array:
        """[B, 2] under the policy."""
        if self.decoder.lora is None:
            return self.model_logps(params, None, batch, train_head=True)
        return self.model_logps(frozen["base"], params, batch, train_head=False)

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
                lambda tokens, positions: self.decoder.hidden(base, lora, tokens, positions),
                self.decoder.head(base),
                batch,
                response_length=self.response_length,
                chunk_size=self.chunk_size,
                train_head=train_head,
            )


def make_policy(
    config: ModelConfig, architecture: DecoderConfig, mesh: Mesh | None, response_length: int
) -> Policy:
    """The policy of a configuration on a mesh; without a mesh activations are left where they fall."""
    constrain = {"constrain": make_constrain(mesh)} if mesh is not None else {}
    decoder = build_decoder(
        architecture,
        compute_dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        remat=config.remat,
        lora=config.lora,
        **constrain,
    )
    return Policy(decoder, response_length, config.logps_chunk_size)


def longest_response(*datasets: TokenizedDataset, multiple: int = 8) -> int:
    """Static count of response positions that holds every response."""
    longest = max(int(dataset.lengths[:, 1:].max()) for dataset in datasets)
    return -(-longest // multiple) * multiple


class LogpsPass:
    """Forward passes over whole data sets, compiled once per row length."""

    def __init__(
        self, logps: Callable[[Any, Any, PairBatch], jax.Array], mesh: Mesh, batch_size: int, *, show: bool
    ) -> None:
        self._logps = jax.jit(logps, out_shardings=replicated(mesh))
        self._mesh, self._batch_size, self._show = mesh, batch_size, show

    def __call__(
        self, params: Any, frozen: Any, dataset: TokenizedDataset, *, length: int, label: str
    ) -> np.ndarray:
        """[n, 2] float32 log-probs of all pairs in the order of the data set."""
        loader = PairLoader(dataset, batch_size=self._batch_size, length=length, shuffle=False, num_epochs=1)
        parts = []
        with Stage(label, len(dataset), enabled=self._show) as stage:
            for step in range(loader.steps_per_epoch):
                batch = put_global(loader.batch(step), batch_sharding(self._mesh))
                parts.append(np.asarray(self._logps(params, frozen, batch)))
                stage.advance(min(self._batch_size, len(dataset) - step * self._batch_size))
        return np.concatenate(parts)[: len(dataset)]
