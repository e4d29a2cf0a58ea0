"""A checkpoint that can be read, whatever its format: configuration, tokenizer, and weights slice by slice.

Formats live in read.py (Hugging Face directories) and gguf.py; each brings a `TensorSource`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxalign.errors import JaxalignError
from jaxalign.hf.mapping import TENSOR_TABLES, TensorMismatchError, TensorPlace, check_tensors, tensor_places
from jaxalign.models.config import DecoderConfig
from jaxalign.progress import Stage

Bounds = tuple[tuple[int, int], ...]  # first and one past the last index, per dimension


class CheckpointError(JaxalignError, ValueError):
    """A path is not a checkpoint that can be read; the message says what would be."""


class TensorSource(Protocol):
    """Named tensors on disk, under their Hugging Face names and in Hugging Face layout."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a tensor, in a floating-point type."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Nothing but headers is read before `load_params`."""

    path: Path
    config: DecoderConfig
    hf_config: dict[str, Any]
    generation_config: dict[str, Any] | None
    weight_files: tuple[Path, ...]
    source: TensorSource
    load_tokenizer: Callable[[], Any]

    def load_params(self, abstract_params: Any, shardings: Any, param_dtype: Any) -> Any:
        """The parameters as a tree like `abstract_params`, placed by `shardings` (None: one device).

        Each process reads only the slices that its devices own, one parameter at a time.
        Raises TensorMismatchError listing all tensors that do not fit.
        """
        places = self.check(abstract_params)
        leaves = flatten_dict(abstract_params)
        placement = flatten_dict(shardings) if shardings is not None else {}
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        params = {}
        with Stage("load the model", len(leaves), enabled=jax.process_index() == 0) as stage:
            for path, group in groupby(places, key=lambda place: place.path):
                sharding = placement.get(path, device)
                params[path] = _load(self.source, list(group), leaves[path].shape, sharding, param_dtype)
                stage.advance()
        return unflatten_dict(params)

    def check(self, abstract_params: Any) -> list[TensorPlace]:
        """Where each tensor belongs. Raises TensorMismatchError listing all tensors that do not fit."""
        places = tensor_places(TENSOR_TABLES[self.hf_config["model_type"]], abstract_params)
        shapes = self.source.shapes()
        if self.config.tie_embeddings:
            _drop_tied_head(self.source, shapes)
        check_tensors(shapes, places, str(self.path))
        return places

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the contents of all weight files."""
        digest = hashlib.sha256(json.dumps(self.hf_config, sort_keys=True).encode())
        with Stage(
            "fingerprint of the weights", len(self.weight_files), enabled=jax.process_index() == 0
        ) as stage:
            for file in self.weight_files:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
                stage.advance()
        return digest.hexdigest()

    def tokenizer_fingerprint(self) -> str:
        """SHA-256 over everything of the tokenizer that decides which ids a text becomes."""
        return tokenizer_fingerprint(self.load_tokenizer())


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over vocabulary, merges, pre-tokenisation, special tokens and chat template."""
    return hashlib.sha256(json.dumps(_tokenizer_parts(tokenizer), sort_keys=True).encode()).hexdigest()


def tokenizer_differences(first: Any, second: Any) -> list[str]:
    """What two tokenizers turn differently into ids: any of the names below, none if they are the same."""
    a, b = (_tokenizer_parts(tokenizer) for tokenizer in (first, second))
    names = ("special tokens", "chat template")
    others = [name for name, left, right in zip(names, a[1:], b[1:], strict=True) if left != right]
    model_differs = a[0].pop("model") != b[0].pop("model")
    return ["vocabulary"] * model_differs + ["splitting into words"] * (a[0] != b[0]) + others


def _tokenizer_parts(tokenizer: Any) -> list[Any]:
    """Tokenizer proper, special tokens and chat template, as plain values."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):  # left behind by earlier calls, not part of the tokenizer
        backend.pop(state, None)
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [backend, specials, tokenizer.chat_template]


def _drop_tied_head(source: TensorSource, shapes: dict[str, tuple[int, ...]]) -> None:
    """Forget a stored copy of a tied head; a head that is no copy contradicts the configuration."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head not in shapes or shapes.get(embedding) != shapes[head]:
        return
    everything = tuple(slice(0, size) for size in shapes.pop(head))
    if not np.array_equal(source.read(head, everything), source.read(embedding, everything)):
        raise TensorMismatchError(
            f"{head} differs from {embedding}, but tie_word_embeddings is true: set it to false"
        )


def _load(
    source: TensorSource,
    places: list[TensorPlace],
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    dtype: Any,
) -> jax.Array:
    """One parameter; each tensor on disk is visited once, however many devices hold parts of it."""
    pieces = {
        bounds: np.empty([stop - start for start, stop in bounds], dtype)
        for bounds in _owned(sharding, shape)
    }
    for place in places:
        for bounds, piece in pieces.items():
            _fill(piece, bounds, source, place)
    return jax.make_array_from_callback(shape, sharding, lambda index: pieces[_bounds(index, shape)])


def _fill(piece: np.ndarray, bounds: Bounds, source: TensorSource, place: TensorPlace) -> None:
    """Copy into `piece`, which holds `bounds` of the parameter, what `place` has of it."""
    if place.layer is not None:
        (first, last), bounds = bounds[0], bounds[1:]
        if not first <= place.layer < last:
            return
        piece = piece[place.layer - first]
    index = tuple(slice(start, stop) for start, stop in bounds)
    if place.transposed:
        piece[...] = source.read(place.name, index[::-1]).T
    else:
        piece[...] = source.read(place.name, index)


def _owned(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> set[Bounds]:
    """The distinct parts of an array that this process holds."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    return {_bounds(index, shape) for index in indices}


def _bounds(index: Iterable[slice] | None, shape: tuple[int, ...]) -> Bounds:
    if index is None:
        return tuple((0, size) for size in shape)
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def generation_defaults(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that end, start and pad a text, for a checkpoint without a generation_config.json."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: hf_config[key] for key in keys if hf_config.get(key) is not None}
