"""The reference pass of a run: find the cached file or make it, and attach the figures to the data."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.config import Config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader
from jaxalign.parallel import agree_on_text, is_main_process
from jaxalign.run.logps_pass import LogpsPass
from jaxalign.training.reference import (
    PASSES,
    ReferenceMismatchError,
    UnfinishedPass,
    compute_reference,
    read_reference,
    reference_key,
    write_reference,
)

log = logging.getLogger(__name__)


def reference_ingredients(
    config: Config, fingerprints: dict[str, Any], split: str, rows: np.ndarray, *, with_mi: bool
) -> dict[str, Any]:
    """Everything that the reference figures of a split depend on."""
    return {
        "model": fingerprints["model"],
        "tokenizer and template": fingerprints["tokenizer"],
        "data": fingerprints[f"data {split}"],
        "rows": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        "max_prompt_length": config.data.max_prompt_length,
        "max_response_length": config.data.max_response_length,
        "dtype": config.model.dtype,
        "param_dtype": config.model.param_dtype,
        "with_mi": with_mi,
    }


def with_reference(
    config: Config,
    dataset: TokenizedDataset,
    rows: np.ndarray,
    split: str,
    base: Any,
    base_pass: LogpsPass,
    ingredients: dict[str, Any],
    *,
    cache_dir: Path,
) -> TokenizedDataset:
    """The data set with reference log-probs and MI at `rows`, from the cache where it holds exactly these.

    Other rows get NaN: a step that used them would be seen.
    """
    part = dataset.select(rows)
    path = cache_dir / f"{split}-{reference_key(ingredients)[:16]}.safetensors"
    if config.reference.file is not None:
        # One given file serves the training pairs; held-out pairs have a file of their own beside it.
        path = config.reference.file if split == "train" else config.reference.file.with_name(path.name)
    required = config.reference.file is not None and split == "train"
    arrays = cached_arrays(path, ingredients, len(part), required=required)
    if arrays is None:
        arrays = _computed(part, base, base_pass, ingredients, path, split)
    whole = {name: np.full((len(dataset), 2), np.nan, np.float32) for name in arrays}
    for name, array in arrays.items():
        whole[name][rows] = array
    return dataclasses.replace(dataset, reference_logps=whole["logps"], mi=whole["mi"])


def _computed(
    dataset: TokenizedDataset,
    base: Any,
    base_pass: LogpsPass,
    ingredients: dict[str, Any],
    path: Path,
    split: str,
) -> dict[str, np.ndarray]:
    """The figures that go to `path`, from the pass; one that was killed goes on where it was."""
    with_mi = ingredients["with_mi"]
    names = tuple(PASSES) if with_mi else ("logps",)
    partial = path.with_suffix(".unfinished")
    logps = cached_arrays(
        partial, ingredients, len(dataset), required=False, names=names, what="unfinished reference"
    )
    logps = logps or {name: np.full((len(dataset), 2), np.nan, np.float32) for name in names}
    unfinished = UnfinishedPass(partial, ingredients, logps, write=is_main_process())

    def branch_logps(pairs: TokenizedDataset, name: str) -> np.ndarray:
        label, keep = f"{split}: {PASSES[name]}", functools.partial(unfinished.keep, name)
        return base_pass(base, None, pairs, label=label, known=logps[name], on_progress=keep)

    arrays = compute_reference(dataset, branch_logps, with_mi=with_mi)
    if is_main_process():
        write_reference(path, arrays, ingredients)
    unfinished.remove()
    return arrays


def visited_rows(loader: PairLoader) -> np.ndarray:
    """The rows that a run sees, sorted: a short run needs no reference for the others.

    All rows where the state of training decides which come.
    """
    if loader.needs_state:
        return np.arange(len(loader.dataset))
    num_steps = loader.num_steps
    if loader.sampling is None:  # within an epoch no row comes twice
        num_steps = min(num_steps, loader.steps_per_epoch)
    rows = np.unique(np.concatenate([loader.indices(step) for step in range(num_steps)]))
    return rows[rows >= 0]


def cached_arrays(
    path: Path,
    ingredients: dict[str, Any],
    num_pairs: int,
    *,
    required: bool,
    names: Sequence[str] = ("logps", "mi"),
    what: str = "reference",
) -> dict[str, np.ndarray] | None:
    """The arrays `names` of an earlier pass, None without one. Process 0 reads (the disk may not be shared).

    Messages call them `what`. A file that is `required`, which reference.file has named, must fit.
    """
    arrays = None
    if is_main_process() and (required or path.exists()):
        remedy = "remove reference.file" if required else "delete it"
        try:
            arrays = read_reference(path, ingredients, num_pairs, names=names, what=what, remedy=remedy)
        except ReferenceMismatchError as error:
            if required:
                raise
            log.warning("computed again, as the cached %s cannot be used: %s", what, error)
    if agree_on_text(str(arrays is not None)) == "False":
        return None
    log.info("%s: read from %s", what, path)
    if jax.process_count() == 1:
        return arrays
    arrays = arrays or {name: np.zeros((num_pairs, 2), np.float32) for name in names}
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays))
