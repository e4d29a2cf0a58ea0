"""The weighted mean of two models, tensor by tensor, as P-SACPO takes it of its two stages.

Where the models come from is the business of the caller; writing is that of write.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import JaxalignError
from jaxalign.hf.card import merge_card
from jaxalign.hf.checkpoint import Checkpoint, tokenizer_differences
from jaxalign.hf.gather import TensorGatherer, contiguous
from jaxalign.hf.mapping import TensorPlace
from jaxalign.hf.write import ExportDtype, Tensors, abstract_params, write_model
from jaxalign.models.lora import LoraConfig

NUM_SHOWN = 5  # differing fields in a message


class MergeError(JaxalignError, ValueError):
    """Two models that cannot be merged, or whose mean is not finite."""


@dataclasses.dataclass(frozen=True)
class MergeInput:
    """One of the models: its name in messages, its configuration, tokenizer and weights, and facts for the card."""

    name: str
    checkpoint: Checkpoint
    tokenizer: Any
    tensors: Tensors
    facts: Mapping[str, Any]


class StoredTensors:
    """The tensors of a checkpoint on disk, an adapter merged into them, read one at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: Any = "float32",
        lora_params: Any = None,
        lora: LoraConfig | None = None,
    ) -> None:
        """`dtype` is that in which the adapter was trained onto the parameters. Raises TensorMismatchError."""
        params = abstract_params(checkpoint.hf_config)
        checkpoint.check(params)
        self._source = checkpoint.source
        self._dtype = jnp.dtype(dtype)
        self._adapters = TensorGatherer(params, lora_params, lora)

    def tensor(self, place: TensorPlace, dtype: np.dtype) -> np.ndarray:
        """The tensor at `place`, in the layout of the checkpoint and contiguous."""
        stored = self._source.read(place.name, tuple(slice(0, size) for size in place.shape))
        value = stored.astype(self._dtype, copy=False)
        value = self._adapters.adapted(place, value.T if place.transposed else value)
        return contiguous(value.astype(dtype), transposed=place.transposed)


class MergedTensors:
    """The tensors (1 - weight) * a + weight * b, computed in float32."""

    def __init__(self, a: Tensors, b: Tensors, weight: float) -> None:
        """Raises MergeError for a weight outside of [0, 1]."""
        check_weight(weight)
        self._a, self._b, self._weight = a, b, weight

    def tensor(self, place: TensorPlace, dtype: np.dtype) -> np.ndarray:
        """The tensor at `place`. Raises MergeError if it is not finite."""
        value = self._mean(place)
        if not np.isfinite(value).all():
            raise MergeError(f"{place.name} is not finite in one of the models; merge earlier checkpoints")
        return value.astype(dtype)

    def _mean(self, place: TensorPlace) -> np.ndarray:
        # The ends are one model bit for bit, negative zeros included.
        if self._weight in (0.0, 1.0):
            only = self._a if self._weight == 0.0 else self._b
            return only.tensor(place, np.dtype(np.float32))
        a, b = (model.tensor(place, np.dtype(np.float32)) for model in (self._a, self._b))
        # As a + weight * (b - a), so that what the models share stays exactly as it is.
        mean = b - a
        mean *= np.float32(self._weight)
        mean += a
        return mean


def merge_models(
    directory: str | Path,
    a: MergeInput,
    b: MergeInput,
    weight: float,
    *,
    dtype: ExportDtype = "bf16",
    overwrite: bool = False,
) -> None:
    """Write (1 - weight) * a + weight * b as a Hugging Face directory.

    Configuration, stop ids and tokenizer are those of the model with the larger share. Beyond what `a` and `b`
    hold themselves, the host holds three tensors in float32 and one file of the export (5 GB) at a time.
    Raises MergeError, and ExportError if the directory is taken.
    """
    tensors = MergedTensors(a.tensors, b.tensors, weight)
    check_mergeable(a, b)
    larger = a if weight <= 0.5 else b
    parts = [{"share": f"{share:g}", **model.facts} for share, model in ((1.0 - weight, a), (weight, b))]
    write_model(
        directory,
        tensors,
        hf_config=larger.checkpoint.hf_config,
        generation_config=larger.checkpoint.generation_config,
        tokenizer=larger.tokenizer,
        dtype=dtype,
        model_card=merge_card(title=Path(directory).resolve().name, parts=parts),
        overwrite=overwrite,
    )


def check_weight(weight: float) -> None:
    """Raise MergeError for a weight outside of [0, 1]."""
    if not 0.0 <= weight <= 1.0:  # NaN neither
        raise MergeError(
            f"weight {weight}: expected 0 to 1, the share of the second model: 0 gives the first, 1 the second, "
            "0.25 three quarters of the first and one of the second"
        )


def check_mergeable(a: MergeInput, b: MergeInput) -> None:
    """Raise MergeError unless both have one architecture and turn texts into the same ids."""
    ours, theirs = (dataclasses.asdict(model.checkpoint.config) for model in (a, b))
    differing = [f"{key} {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if differing:
        more = f" and {len(differing) - NUM_SHOWN} more" if len(differing) > NUM_SHOWN else ""
        raise MergeError(
            f"{a.name} and {b.name} have different architectures: {', '.join(differing[:NUM_SHOWN])}{more}; only "
            "models that were trained from one base model can be merged"
        )
    parts = tokenizer_differences(a.tokenizer, b.tokenizer)
    if parts:
        raise MergeError(
            f"{a.name} and {b.name} have different tokenizers ({', '.join(parts)}): their weights mean different "
            "texts. To see it, compare tokenizer.json and chat_template.jinja in the directories of both; if one was "
            "changed by mistake, put the other's files in its place"
        )
