"""One invertible table per architecture: names and layout of Hugging Face tensors <-> our stacked parameters.

Nothing is read or written here. Whatever the table does not cover, in either direction, is an error.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax.traverse_util import flatten_dict

from jaxalign.errors import JaxalignError

Path = tuple[str, ...]
Shape = tuple[int, ...]


class TensorMismatchError(JaxalignError, ValueError):
    """Tensors are missing, unexpected or misshapen; the message lists all of them."""


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """A tensor of a checkpoint, with `{layer}` in its name if each layer has one, and its place in our tree."""

    name: str
    path: Path
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """One tensor of a checkpoint: its name and shape there, and the leaf and layer that hold it here."""

    name: str
    shape: Shape
    path: Path
    layer: int | None
    transposed: bool


def _projection(name: str, *path: str) -> tuple[TensorRule, TensorRule]:
    """A linear layer: torch keeps its weight as [out, in], we keep the kernel as [in, out]."""
    prefix = f"model.layers.{{layer}}.{name}"
    return (
        TensorRule(f"{prefix}.weight", ("layers", *path, "kernel"), transposed=True),
        TensorRule(f"{prefix}.bias", ("layers", *path, "bias")),
    )


LLAMA_TENSORS: tuple[TensorRule, ...] = (
    TensorRule("model.embed_tokens.weight", ("embedding",)),
    TensorRule("model.layers.{layer}.input_layernorm.weight", ("layers", "attention_norm", "scale")),
    *_projection("self_attn.q_proj", "attention", "query"),
    *_projection("self_attn.k_proj", "attention", "key"),
    *_projection("self_attn.v_proj", "attention", "value"),
    *_projection("self_attn.o_proj", "attention", "out"),
    TensorRule("model.layers.{layer}.post_attention_layernorm.weight", ("layers", "mlp_norm", "scale")),
    *_projection("mlp.gate_proj", "mlp", "gate"),
    *_projection("mlp.up_proj", "mlp", "up"),
    *_projection("mlp.down_proj", "mlp", "down"),
    TensorRule("model.norm.weight", ("final_norm", "scale")),
    TensorRule("lm_head.weight", ("head",), transposed=True),
)
TENSOR_TABLES: dict[str, tuple[TensorRule, ...]] = {"llama": LLAMA_TENSORS, "mistral": LLAMA_TENSORS}

# Buffers that old checkpoints carry and that the configuration determines.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def tensor_places(table: Iterable[TensorRule], params: Mapping[str, Any]) -> list[TensorPlace]:
    """Every tensor that a checkpoint of `params` (arrays or abstract) has, in the order of the table.

    Raises TensorMismatchError listing all parameters that the table does not cover.
    """
    leaves = {path: tuple(leaf.shape) for path, leaf in flatten_dict(dict(params)).items()}
    places = []
    for rule in table:
        shape = leaves.pop(rule.path, None)
        if shape is None:
            continue  # biases and a head of its own exist in some models only
        layers: Iterable[int | None] = [None]
        if "{layer}" in rule.name:
            layers, shape = range(shape[0]), shape[1:]
        if rule.transposed:
            shape = shape[::-1]
        places += [
            TensorPlace(rule.name.format(layer=layer), shape, rule.path, layer, rule.transposed)
            for layer in layers
        ]
    if leaves:
        unmapped = ", ".join("/".join(path) for path in sorted(leaves))
        raise TensorMismatchError(f"parameters without a Hugging Face name: {unmapped}")
    return places


def check_tensors(found: Mapping[str, Shape], places: Iterable[TensorPlace], origin: str) -> None:
    """Raise TensorMismatchError listing every missing, unexpected and misshapen tensor of `origin`."""
    expected = {place.name: place.shape for place in places}
    missing = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    unexpected = [
        f"unexpected {name} {shape}"
        for name, shape in sorted(found.items())
        if name not in expected and not _DERIVED.fullmatch(name)
    ]
    misshapen = [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = missing + unexpected + misshapen
    if problems:
        raise TensorMismatchError(
            f"{origin} does not fit its configuration ({len(problems)} tensors); check that weights and "
            "config belong together:\n  " + "\n  ".join(problems)
        )
