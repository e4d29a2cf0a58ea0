"""Forward passes over whole data sets: reference, evaluation, margin model. Nothing trains here."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.batch import PairBatch
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.data.packing import round_up
from jaxalign.data.settings import RowsConfig
from jaxalign.parallel import batch_sharding, num_groups, put_global, replicated
from jaxalign.progress import Stage
from jaxalign.run.policy import platform_of, row_multiple
from jaxalign.training.prefetch import prefetched


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
        self._last: PairLoader | None = None

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
        loader = self._loader(dataset)
        logps = np.full((len(dataset), 2), np.nan, np.float32) if known is None else known.copy()
        indices = [loader.indices(step) for step in range(loader.num_steps)]
        steps = [i for i, index in enumerate(indices) if not np.isfinite(logps[index[index >= 0]]).all()]
        done = len(dataset) - sum(int((indices[i] >= 0).sum()) for i in steps)
        with Stage(label, len(dataset), completed=done, enabled=self._show) as stage:
            for index, values in self._batches(params, frozen, loader, steps):
                logps[index] = values
                if on_progress is not None:
                    on_progress(index, values)
                stage.advance(len(index))
        return logps

    def _loader(self, dataset: TokenizedDataset) -> PairLoader:
        """All pairs once; that of the last pass where it was over the same data set, so that it is planned once."""
        if self._last is None or self._last.dataset is not dataset:
            parts = num_groups(self._mesh)
            self._last = PairLoader(
                dataset,
                batch_size=min(self._batch_size, round_up(len(dataset), parts)),
                rows=self._rows,
                num_groups=parts,
                multiple=row_multiple(platform_of(self._mesh)),
                num_epochs=1,
            )
        return self._last

    def _batches(
        self, params: Any, frozen: Any, loader: PairLoader, steps: Iterable[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their log-probs, batch by batch; the devices are given the next batch before one is fetched."""

        def placed(step: int) -> tuple[np.ndarray, PairBatch]:
            batch = loader.batch(step)
            return batch.index[0], put_global(batch, batch_sharding(self._mesh))

        pending: tuple[np.ndarray, jax.Array] | None = None
        with contextlib.closing(prefetched(placed, steps)) as batches:
            for index, batch in batches:
                started = index, self._logps(params, frozen, batch)
                if pending is not None:
                    yield _real(*pending)
                pending = started
        if pending is not None:
            yield _real(*pending)


def _real(index: np.ndarray, logps: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Without the pairs of padding."""
    return index[index >= 0], np.asarray(logps)[index >= 0]
