"""`jaxalign evaluate`: preference figures of a run or of a Hugging Face model, per harm category."""

from pathlib import Path

import jax
import numpy as np

from jaxalign.batch import PairBatch
from jaxalign.config import Config, ConfigError, load_config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import padded_length
from jaxalign.data.sources import Split
from jaxalign.evaluation.preference import PreferenceReport, preference_report
from jaxalign.parallel import is_main_process
from jaxalign.run.data import load_split, load_tokenizer
from jaxalign.run.load import LoadedModel, is_run, load_model
from jaxalign.run.policy import LogpsPass, Policy, longest_response


def evaluate(
    path: Path, data: Path | None, *, split: Split, reference: Path | None, step: int | None, batch_size: int
) -> PreferenceReport:
    """Figures of the model at `path` against its reference, on the data of its run or of a configuration."""
    model = load_model(path, step=step)
    config = load_config(data) if data is not None else model.run
    if config is None:
        raise ConfigError(f"{path} is no run, so nothing says which data to use; give --data CONFIG")
    parts = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    batch_size = -(-batch_size // parts) * parts
    dataset, _ = load_split(config.data, load_tokenizer(model.run or config), split)
    policy = _logps(model, model.lora_params, dataset, batch_size, f"policy, {len(dataset)} pairs")
    if is_run(path) and reference is None and model.lora_params is not None:
        base = _logps(model, None, dataset, batch_size, "reference")  # the adapter's own base
    else:
        base = _reference_logps(model, config, path, reference, dataset, batch_size)
    return preference_report(
        policy,
        base,
        dataset,
        beta=config.loss.beta,
        threshold=config.adaptive.violation.threshold,
        step=model.step,
    )


def _reference_logps(
    model: LoadedModel,
    config: Config,
    path: Path,
    reference: Path | None,
    dataset: TokenizedDataset,
    batch_size: int,
) -> np.ndarray:
    if reference is None and model.run is None:
        raise ConfigError(
            f"{path} is a pretrained model: give --reference, the model that it was trained from"
        )
    source = reference or (model.run or config).model.path
    other = load_model(source, dtype=(model.run or config).model.dtype)
    if other.checkpoint.config.vocab_size != model.checkpoint.config.vocab_size:
        raise ConfigError(
            f"the reference {source} has a vocabulary of {other.checkpoint.config.vocab_size}, "
            f"{path} one of {model.checkpoint.config.vocab_size}: they cannot be compared token by token"
        )
    return _logps(other, other.lora_params, dataset, batch_size, "reference")


def _logps(
    model: LoadedModel, lora_params: object, dataset: TokenizedDataset, batch_size: int, label: str
) -> np.ndarray:
    policy = Policy(model.decoder, longest_response(dataset), chunk_size=128)

    def logps(params: object, lora: object, batch: PairBatch) -> jax.Array:
        return policy.model_logps(params, lora, batch)

    forward = LogpsPass(logps, model.mesh, batch_size, show=is_main_process())
    return forward(model.params, lora_params, dataset, length=padded_length([dataset]), label=label)
