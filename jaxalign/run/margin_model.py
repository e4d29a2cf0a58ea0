"""The margin model of MODPO: its implicit rewards of the training pairs, from one pass that is kept on disk."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.config import ConfigError
from jaxalign.config.schema import ModelConfig
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.hf.checkpoint import Checkpoint, tokenizer_differences
from jaxalign.hf.read import open_checkpoint
from jaxalign.parallel import is_main_process
from jaxalign.run.data import load_tokenizer
from jaxalign.run.load import load_model, run_config
from jaxalign.run.manifest import model_fingerprint, read_manifest
from jaxalign.run.policy import LogpsPass, Policy, longest_response
from jaxalign.run.reference import cached_arrays
from jaxalign.training.checkpoint import Checkpointer
from jaxalign.training.reference import reference_key, write_reference

log = logging.getLogger(__name__)


def margin_rewards(
    path: Path,
    margin_beta: float,
    dataset: TokenizedDataset,
    reference_logps: np.ndarray,
    *,
    tokenizer: Any,
    checkpoint: Checkpoint,
    fingerprint: str,
    numerics: ModelConfig,
    length: int,
    batch_size: int,
    cache_dir: Path,
) -> np.ndarray:
    """m = margin_beta * (log pi_margin(y|x) - log pi_ref(y|x)), [n, 2] float32 like `reference_logps`.

    The margin model at `path` is a run (its newest checkpoint, in its own dtypes) or a pretrained model (in those of
    `numerics`). The beta that a run was trained with may differ from `margin_beta`, which alone sets the size of the
    rewards. `tokenizer`, `checkpoint` and its `fingerprint` are those of the model that is to train, the reference.
    Rows whose reference is NaN, which are not visited, stay NaN. The log-probs are what is cached: another
    `margin_beta` needs no other pass. The devices hold the margin model beside what they hold already.
    Raises ConfigError for another tokenizer, vocabulary or base model, and for log-probs that are not finite.
    """
    _check_tokenizer(path, tokenizer, checkpoint)
    _check_base(path, checkpoint, fingerprint)
    rows = np.flatnonzero(~np.isnan(reference_logps).any(axis=1))
    part = dataset.select(rows)
    ingredients = {
        "margin model": margin_model_fingerprint(path),
        "data": part.fingerprint(),
        "dtype": numerics.dtype,
        "param_dtype": numerics.param_dtype,
    }
    cache = cache_dir / f"margin-{reference_key(ingredients)[:16]}.safetensors"
    arrays = cached_arrays(cache, ingredients, len(part), required=False)
    if arrays is None:
        logps = _logps(path, part, numerics, length, batch_size)
        arrays = {"logps": logps, "mi": np.zeros_like(logps)}  # the form of a reference file
        if is_main_process():
            write_reference(cache, arrays, ingredients)
    rewards = np.full_like(reference_logps, np.nan, dtype=np.float32)
    rewards[rows] = np.float32(margin_beta) * (arrays["logps"] - reference_logps[rows])
    return rewards


def margin_model_fingerprint(path: Path) -> str:
    """Hash of what the margin model computes: of a run how it was started and its newest step, else of all weights.

    Raises ConfigError or CheckpointError for a run without a checkpoint.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return model_fingerprint(open_checkpoint(path))
    with Checkpointer(path / "checkpoints", keep=None) as checkpointer:
        step = checkpointer.latest_step()
    if step is None:
        raise ConfigError(f"loss.margin_model {path} has no complete checkpoint; train it first")
    started = {key: value for key, value in manifest.items() if key != "resumed"}
    return hashlib.sha256(json.dumps([started, step], sort_keys=True).encode()).hexdigest()


def _check_tokenizer(path: Path, tokenizer: Any, checkpoint: Checkpoint) -> None:
    """Raise ConfigError unless the margin model at `path` reads the same token ids."""
    run = run_config(path)
    other = open_checkpoint(path if run is None else run.model.path)
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


def _check_base(path: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Raise ConfigError if a run at `path` has another reference: its reward is the log-ratio to that one."""
    manifest = read_manifest(path)
    if manifest is not None and manifest["fingerprints"]["model"] != fingerprint:
        raise ConfigError(
            f"loss.margin_model {path} was trained from another model than {checkpoint.path}, so that its reward is "
            "not the log-ratio to the reference of this run; start both from one model"
        )


def _logps(
    path: Path, dataset: TokenizedDataset, numerics: ModelConfig, length: int, batch_size: int
) -> np.ndarray:
    """[n, 2] float32 log-probs of all pairs under the margin model."""
    model = load_model(path, numerics=numerics)
    at = "" if model.step is None else f" at step {model.step}"
    log.info("margin model: %s%s", path, at)
    policy = Policy(model.decoder, longest_response(dataset), numerics.logps_chunk_size)
    parts = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    forward = LogpsPass(
        policy.model_logps, model.mesh, -(-batch_size // parts) * parts, show=is_main_process()
    )
    logps = forward(
        model.params, model.lora_params, dataset, length=length, label="train: log-probs of the margin model"
    )
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if bad.size:
        raise ConfigError(
            f"log-probs of loss.margin_model {path} are not finite for {bad.size} pairs, first at "
            f"{dataset.origins[bad[0]]}; check its weights, or train it with model.dtype: float32"
        )
    return logps
