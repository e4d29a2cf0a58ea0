"""The margin model of MODPO: its implicit rewards of the training pairs, from one pass that is kept on disk."""

import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.config import Config, ConfigError
from jaxalign.config.schema import ModelConfig
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.hf.checkpoint import Checkpoint, CheckpointError, tokenizer_differences
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.functional import DecoderFns, build_decoder
from jaxalign.parallel import MeshConfig, device_bytes, is_main_process, tree_shardings
from jaxalign.parallel.mesh import abstract_mesh
from jaxalign.run.data import load_tokenizer
from jaxalign.run.load import load_model, run_config
from jaxalign.run.manifest import model_fingerprint, read_manifest, run_fingerprint
from jaxalign.run.reference import cached_arrays
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.loss_settings import ModpoConfig
from jaxalign.training.reference import reference_key, write_reference

log = logging.getLogger(__name__)


def check_margin_model(
    path: Path, numerics: ModelConfig, checkpoint: Checkpoint, tokenizer: Any, fingerprint: str
) -> None:
    """Raise ConfigError unless the log-ratio of the margin model at `path` to the reference of this run is a reward.

    `numerics`, `checkpoint` with its `fingerprint` and `tokenizer` are those of the model that is to train. Of the
    margin model no weights are read: one that is missing, a run without a checkpoint, in other dtypes or from another
    base model, another tokenizer or vocabulary, and tensors that do not fit are refused.
    """
    run, other = _open(path)
    if run is not None:
        _newest_step(path)
        _check_dtypes(path, run.model, numerics)
        _check_base(path, checkpoint, fingerprint)
    _check_tokenizer(path, run, other, tokenizer, checkpoint)
    other.check(_decoder(run, other, numerics).abstract_params())


def margin_model_bytes(path: Path, numerics: ModelConfig, num_devices: int) -> int:
    """Bytes per device of the margin model while its rewards are computed, beside the base model."""
    decoder = _decoder(*_open(path), numerics)
    mesh = abstract_mesh(MeshConfig(data=1, fsdp="rest"), num_devices)  # as `load_model` places it
    trees = [(decoder.abstract_params(), decoder.logical_dims())]
    if decoder.lora is not None:
        trees.append((decoder.abstract_lora(), decoder.lora_logical_dims()))
    return sum(device_bytes(shapes, tree_shardings(dims, shapes, mesh)) for shapes, dims in trees)


def margin_rewards(
    loss: ModpoConfig,
    dataset: TokenizedDataset,
    *,
    fingerprint: str,
    numerics: ModelConfig,
    batch_size: int,
    cache_dir: Path,
) -> np.ndarray:
    """m = margin_beta * (log pi_margin(y|x) - log pi_ref(y|x)), [n, 2] float32.

    The margin model, which `check_margin_model` has passed, is a run (its newest checkpoint) or a pretrained model,
    and `fingerprint` is its `margin_model_fingerprint`. The beta that a run was trained with may differ from
    `margin_beta`, which alone sets the size of the rewards. The data set brings the log-probs of the reference; rows
    where they are NaN, which are not visited, stay NaN. The log-probs of the margin model are what is cached: another
    `margin_beta` needs no other pass. The devices hold the margin model beside what they hold already.
    Raises ConfigError for log-probs that are not finite.
    """
    reference = dataset.reference_logps
    assert reference is not None  # the reference pass goes over pairs with margin rewards
    rows = np.flatnonzero(~np.isnan(reference).any(axis=1))
    part = dataset.select(rows)
    ingredients = {
        "margin model": fingerprint,
        "data": part.fingerprint(),
        "dtype": numerics.dtype,
        "param_dtype": numerics.param_dtype,
    }
    cache = cache_dir / f"margin-{reference_key(ingredients)[:16]}.safetensors"
    arrays = cached_arrays(
        cache, ingredients, len(part), required=False, names=("logps",), what="margin log-probs"
    )
    if arrays is None:
        arrays = {"logps": _logps(loss.margin_model, part, numerics, batch_size)}
        if is_main_process():
            write_reference(cache, arrays, ingredients)
    rewards = np.full_like(reference, np.nan, dtype=np.float32)
    rewards[rows] = np.float32(loss.margin_beta) * (arrays["logps"] - reference[rows])
    return rewards


def margin_model_fingerprint(path: Path) -> str:
    """Hash of what the margin model computes: of a run how it was started and its newest step, else of all weights.

    Raises ConfigError or CheckpointError for a run without a checkpoint.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return model_fingerprint(open_checkpoint(path))
    return run_fingerprint(manifest, _newest_step(path))


def _open(path: Path) -> tuple[Config | None, Checkpoint]:
    """The configuration of a run at `path`, None without one, and the pretrained model that it is or started from."""
    run = run_config(path)
    try:
        return run, open_checkpoint(path if run is None else run.model.path)
    except CheckpointError as error:
        what = "is no run and no model" if run is None else "is a run whose base model cannot be opened"
        raise ConfigError(f"loss.margin_model {path} {what}: {error}") from error


def _newest_step(path: Path) -> int:
    """The step of the newest checkpoint of the run at `path`. Raises ConfigError without one."""
    checkpoints = path / "checkpoints"
    step = None
    if checkpoints.is_dir():
        with Checkpointer(checkpoints, keep=None) as checkpointer:
            step = checkpointer.latest_step()
    if step is None:
        raise ConfigError(f"loss.margin_model {path} has no complete checkpoint; train it first")
    return step


def _check_dtypes(path: Path, theirs: ModelConfig, ours: ModelConfig) -> None:
    """Raise ConfigError if a run at `path` would round its log-probs otherwise than the reference is rounded."""
    differing = {
        f"model.{name}": (getattr(theirs, name), getattr(ours, name))
        for name in ("dtype", "param_dtype")
        if getattr(theirs, name) != getattr(ours, name)
    }
    if differing:
        found = ", ".join(
            f"{name}: {pair[0]} where this run has {pair[1]}" for name, pair in differing.items()
        )
        raise ConfigError(
            f"loss.margin_model {path} was trained with {found}, so that rounding would be part of its rewards; "
            f"set {' and '.join(differing)} alike in both"
        )


def _check_base(path: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Raise ConfigError if the run at `path` has another reference: its reward is the log-ratio to that one."""
    manifest = read_manifest(path)
    if manifest is not None and manifest["fingerprints"]["model"] != fingerprint:
        raise ConfigError(
            f"loss.margin_model {path} was trained from another model than {checkpoint.path}, so that its reward is "
            "not the log-ratio to the reference of this run; start both from one model"
        )


def _check_tokenizer(
    path: Path, run: Config | None, other: Checkpoint, tokenizer: Any, checkpoint: Checkpoint
) -> None:
    """Raise ConfigError unless the margin model at `path` reads the same token ids."""
    theirs = other.load_tokenizer() if run is None else load_tokenizer(run)
    parts = tokenizer_differences(tokenizer, theirs)
    sizes = checkpoint.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        parts.append(f"{sizes[0]} and {sizes[1]} token ids")
    if parts:
        raise ConfigError(
            f"loss.margin_model {path} and the model {checkpoint.path} do not read texts alike ({', '.join(parts)}): "
            "train the margin model from the same base model"
        )


def _decoder(run: Config | None, other: Checkpoint, numerics: ModelConfig) -> DecoderFns:
    """The decoder of a margin model without its parameters: for shapes."""
    return build_decoder(
        other.config,
        compute_dtype=jnp.dtype(numerics.dtype),
        param_dtype=jnp.dtype(numerics.param_dtype),
        remat="none",
        lora=None if run is None else run.model.lora,
    )


def _logps(path: Path, dataset: TokenizedDataset, numerics: ModelConfig, batch_size: int) -> np.ndarray:
    """[n, 2] float32 log-probs of all pairs under the margin model."""
    model = load_model(path, numerics=numerics)
    at = "" if model.step is None else f" at step {model.step}"
    log.info("margin model: %s%s", path, at)
    logps = model.logps(
        model.lora_params,
        dataset,
        batch_size=batch_size,
        label="train: log-probs of the margin model",
    )
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if bad.size:
        raise ConfigError(
            f"log-probs of loss.margin_model {path} are not finite for {bad.size} pairs, first at "
            f"{dataset.origins[bad[0]]}; check its weights, or train it with model.dtype: float32"
        )
    return logps
