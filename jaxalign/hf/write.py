"""Writing a trained model as a Hugging Face directory: the merged model, or its adapter in PEFT format.

Tensors leave the devices one layer at a time, so the host never holds more than one file of the export.
"""

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxalign.hf.checkpoint import generation_defaults
from jaxalign.hf.gather import TensorGatherer, contiguous
from jaxalign.hf.mapping import TENSOR_TABLES, TensorPlace, check_tensors, tensor_places
from jaxalign.hf.staging import ExportError, staged_directory
from jaxalign.models.config import decoder_config_from_hf
from jaxalign.models.functional import build_decoder
from jaxalign.models.lora import LoraConfig
from jaxalign.progress import Stage

ExportDtype = Literal["bf16", "f32"]
_DTYPES: dict[str, np.dtype] = {"bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


class Tensors(Protocol):
    """Where the tensors to write come from."""

    def tensor(self, place: TensorPlace, dtype: np.dtype) -> np.ndarray:
        """The tensor at `place`, in the layout of a checkpoint and contiguous."""


def export_model(
    directory: str | Path,
    *,
    hf_config: Mapping[str, Any],
    params: Any,
    lora_params: Any = None,
    lora: LoraConfig | None = None,
    tokenizer: Any = None,
    generation_config: Mapping[str, Any] | None = None,
    dtype: ExportDtype = "bf16",
    max_shard_size: str | int = "5GB",
    model_card: str = "",
    overwrite: bool = False,
) -> None:
    """Write the model, adapters merged, as a directory that `transformers` loads.

    With several processes all of them call this, as the parameters may be spread over all; process 0 writes.
    Raises ExportError if the directory is taken, TensorMismatchError if parameters and `hf_config` disagree.
    """
    gatherer = TensorGatherer(params, lora_params, lora)
    _check_params(hf_config, params)
    write_model(
        directory,
        gatherer,
        hf_config=hf_config,
        tokenizer=tokenizer,
        generation_config=generation_config,
        dtype=dtype,
        max_shard_size=max_shard_size,
        model_card=model_card,
        overwrite=overwrite,
    )


def write_model(
    directory: str | Path,
    tensors: Tensors,
    *,
    hf_config: Mapping[str, Any],
    tokenizer: Any = None,
    generation_config: Mapping[str, Any] | None = None,
    dtype: ExportDtype = "bf16",
    max_shard_size: str | int = "5GB",
    model_card: str = "",
    overwrite: bool = False,
) -> None:
    """Write the model that `hf_config` describes, asking `tensors` for one tensor after the other.

    Raises ExportError if the directory is taken.
    """
    files = _plan_files(model_places(hf_config), _DTYPES[dtype].itemsize, parse_size(max_shard_size))
    config = _exported_config(hf_config, _DTYPES[dtype].name)
    stops = _exported_generation_config(hf_config, generation_config, tokenizer)
    stage = Stage("export", sum(map(len, files.values())), enabled=jax.process_index() == 0)
    with _staged(directory, overwrite) as folder, stage:
        for file, places in files.items():
            content = {}
            for place in places:
                content[place.name] = tensors.tensor(place, _DTYPES[dtype])
                stage.advance()
            if folder is not None:
                save_file(content, folder / file, metadata={"format": "pt"})
        if folder is not None:
            if len(files) > 1:
                _write_index(folder, files, _DTYPES[dtype].itemsize)
            _write_json(folder / "config.json", config)
            _write_json(folder / "generation_config.json", stops)
            _write_texts(folder, tokenizer, model_card)


def export_adapter(
    directory: str | Path,
    *,
    hf_config: Mapping[str, Any],
    lora_params: Any,
    lora: LoraConfig,
    base_model: str,
    tokenizer: Any = None,
    model_card: str = "",
    overwrite: bool = False,
) -> None:
    """Write the adapters, in float32, as a directory that `peft` loads onto `base_model`.

    Raises ExportError if the directory is taken, TensorMismatchError for adapters of unknown projections.
    """
    gatherer = TensorGatherer(abstract_params(hf_config), lora_params, lora)
    tensors, modules = {}, set()
    for place in model_places(hf_config):
        adapter = gatherer.adapter(place)
        if adapter is None:
            continue
        module = place.name.removesuffix(".weight")
        modules.add(module.rsplit(".", 1)[1])
        for letter, matrix in zip("AB", adapter, strict=True):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = contiguous(matrix, transposed=True)
    with _staged(directory, overwrite) as folder:
        if folder is not None:
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            _write_json(folder / "adapter_config.json", _peft_config(lora, sorted(modules), base_model))
            _write_texts(folder, tokenizer, model_card)


def parse_size(size: str | int) -> int:
    """Bytes of "5GB", "300MB", "20KB" (powers of 1000) or a number. Raises ExportError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", str(size).upper())
    value = int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]]) if match else 0
    if value < 1:
        raise ExportError(f"max_shard_size={size!r}: expected a size such as 5GB, 300MB or a number of bytes")
    return value


def _staged(directory: str | Path, overwrite: bool) -> AbstractContextManager[Path | None]:
    """The directory to fill on process 0, None on all others."""
    return staged_directory(directory, overwrite=overwrite) if jax.process_index() == 0 else nullcontext()


def abstract_params(hf_config: Mapping[str, Any]) -> Any:
    """The tree of parameters that `hf_config` describes, as `jax.ShapeDtypeStruct`."""
    config = decoder_config_from_hf(hf_config)
    return build_decoder(config, compute_dtype="float32", param_dtype="float32").abstract_params()


def model_places(hf_config: Mapping[str, Any]) -> list[TensorPlace]:
    """Every tensor of the model that `hf_config` describes."""
    return tensor_places(TENSOR_TABLES[hf_config["model_type"]], abstract_params(hf_config))


def _check_params(hf_config: Mapping[str, Any], params: Any) -> None:
    """Raise TensorMismatchError unless the parameters are those that `hf_config` describes."""
    places = tensor_places(TENSOR_TABLES[hf_config["model_type"]], params)
    found = {place.name: place.shape for place in places}
    check_tensors(found, model_places(hf_config), "the model to export")


def _plan_files(places: list[TensorPlace], itemsize: int, limit: int) -> dict[str, list[TensorPlace]]:
    """Tensors by file, in order; a file exceeds `limit` bytes only if a single tensor does."""
    groups: list[list[TensorPlace]] = [[]]
    filled = 0
    for place in places:
        size = prod(place.shape) * itemsize
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    total = len(groups)
    return {f"model-{i:05d}-of-{total:05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_index(folder: Path, files: Mapping[str, list[TensorPlace]], itemsize: int) -> None:
    sizes = [prod(place.shape) * itemsize for places in files.values() for place in places]
    weight_map = {place.name: file for file, places in files.items() for place in places}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _exported_config(hf_config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The configuration that was read, with what describes the written files put right."""
    stale = ("_name_or_path", "torch_dtype")
    return {key: value for key, value in hf_config.items() if key not in stale} | {
        "architectures": [_ARCHITECTURES[hf_config["model_type"]]],
        "dtype": dtype,
        "transformers_version": version("transformers"),
    }


def _exported_generation_config(
    hf_config: Mapping[str, Any], generation_config: Mapping[str, Any] | None, tokenizer: Any
) -> dict[str, Any]:
    """The generation settings, with the token that ends a trained response among the stop ids."""
    config = dict(generation_config if generation_config is not None else generation_defaults(hf_config))
    stops = config.get("eos_token_id")
    stops = list(stops) if isinstance(stops, list | tuple) else [stops] if stops is not None else []
    trained = getattr(tokenizer, "eos_token_id", None)
    if trained is not None and trained not in stops:
        stops.append(trained)
    if stops:
        config["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    return config | {"transformers_version": version("transformers")}


def _peft_config(lora: LoraConfig, modules: list[str], base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _write_texts(folder: Path, tokenizer: Any, model_card: str) -> None:
    """Tokenizer with chat template, and the model card."""
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    if model_card:
        (folder / "README.md").write_text(model_card, encoding="utf-8")


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
