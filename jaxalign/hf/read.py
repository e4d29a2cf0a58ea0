"""Reading local checkpoints: Hugging Face directories with safetensors, and the dispatch to .gguf files.

Pickled weights are never read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxalign.hf.checkpoint import Checkpoint, CheckpointError
from jaxalign.models.config import decoder_config_from_hf

INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class SafetensorsSource:
    """Tensors of one or several safetensors files, read slice by slice."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        """Open `files`. Raises CheckpointError for broken files, repeated names and unsupported types."""
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            try:
                file = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a whole safetensors file ({error}); fetch it again"
                ) from error
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                self._add(name, file, path)

    def _add(self, name: str, file: Any, path: Path) -> None:
        tensor = file.get_slice(name)
        if name in self._files:
            raise CheckpointError(f"{path}: {name} is also in another file of this checkpoint; keep one")
        if tensor.get_dtype() not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is stored as {tensor.get_dtype()}; expected one of {', '.join(_DTYPES)} "
                "(quantised checkpoints are not supported)"
            )
        self._files[name] = file
        self._shapes[name] = tuple(tensor.get_shape())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return dict(self._shapes)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a tensor, in the type of the file; no other part is read."""
        return self._files[name].get_slice(name)[index]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face directory or a .gguf file.

    Raises CheckpointError if there is none, UnsupportedModelError if its model is not implemented.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        from jaxalign.hf.gguf import open_gguf  # needs an extra

        return open_gguf(path)
    return open_directory(path, read_config(path))


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face directory. Raises CheckpointError where there is none."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is neither a directory nor a .gguf file; for a model on a hub, run "
            f"`hf download NAME --local-dir DIR` first and give DIR"
        )
    hf_config = _read_json(path / "config.json")
    if hf_config is None:
        hint = "; this is an adapter: give its base model" if (path / "adapter_config.json").exists() else ""
        raise CheckpointError(f"{path} has no config.json, so it is not a Hugging Face checkpoint{hint}")
    return hf_config


def open_directory(
    path: Path, hf_config: dict[str, Any], source: type[SafetensorsSource] = SafetensorsSource
) -> Checkpoint:
    """The checkpoint in a directory, with its configuration and the kind of source that reads its tensors."""
    config = decoder_config_from_hf(hf_config)
    files = _weight_files(path)
    return Checkpoint(
        path=path,
        config=config,
        hf_config=hf_config,
        generation_config=_read_json(path / "generation_config.json"),
        weight_files=files,
        source=source(files),
        load_tokenizer=lambda: load_tokenizer(path),
    )


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a directory, in the order of their names."""
    index = _read_json(path / INDEX)
    if index is not None:
        return _indexed_files(path, index)
    single = path / "model.safetensors"
    if single.exists():
        return (single,)
    pickled = sorted(file.name for pattern in _PICKLED for file in path.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{path} holds {pickled[0]} and no model.safetensors: pickled weights can run code when they are "
            "read and are refused. Convert them once, where you trust them: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise CheckpointError(f"{path} has neither model.safetensors nor {INDEX}")


def _indexed_files(path: Path, index: Mapping[str, Any]) -> tuple[Path, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(
            f"{path / INDEX}: weight_map is {weight_map!r:.60}, expected a mapping from tensor names to file names; "
            "fetch the file again"
        )
    names = sorted(set(weight_map.values()))
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        raise CheckpointError(f"{path}: the index names {foreign[0]!r}, which is outside the directory")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: the index names files that are missing: {', '.join(missing)}")
    return tuple(path / name for name in names)


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds {content!r:.60}, expected a JSON object with named keys; fetch the file again"
        )
    return content


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a directory. Raises CheckpointError if there is none that transformers can read."""
    from transformers import AutoTokenizer

    if not path.is_dir():
        raise CheckpointError(f"{path} is no directory; give one with the tokenizer files of a model")
    if not any(
        (path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    ):
        raise CheckpointError(f"{path} has no tokenizer.json; copy the tokenizer files of the model there")
    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # a broken file raises Exception itself
        raise CheckpointError(
            f"{path}: transformers cannot read its tokenizer ({type(error).__name__}: {error}); fetch the tokenizer "
            "files of the model again"
        ) from error
