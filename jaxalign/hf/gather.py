"""From parameters on devices to tensors on the host in the layout of a checkpoint, one at a time."""

from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from jaxalign.hf.mapping import TensorMismatchError, TensorPlace
from jaxalign.models.lora import LoraConfig

_layer_of = jax.jit(lambda array, layer: jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False))


def host_array(array: Any, layer: int | None = None) -> np.ndarray:
    """An array, or one layer of it, on the host. Every process must call this if parts are elsewhere."""
    if isinstance(array, np.ndarray):
        return array if layer is None else array[layer]
    if layer is not None:
        array = _layer_of(array, np.int32(layer))
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


class TensorGatherer:
    """Tensors of a checkpoint out of parameters and, if there are any, adapters to merge into them."""

    def __init__(self, params: Any, lora_params: Any = None, lora: LoraConfig | None = None) -> None:
        """Raises ValueError for adapters without settings, TensorMismatchError for adapters of nothing."""
        if (lora_params is None) != (lora is None):
            raise ValueError("lora_params and lora belong together: pass both or neither")
        self._leaves = flatten_dict(params)
        self._adapters = flatten_dict(lora_params or {})
        self._lora = lora
        orphans = [path for path in self._adapters if (*path[:-1], "kernel") not in self._leaves]
        if orphans:
            names = ", ".join(sorted("/".join(path) for path in orphans))
            raise TensorMismatchError(f"adapters of projections that the model does not have: {names}")

    def tensor(self, place: TensorPlace, dtype: np.dtype) -> np.ndarray:
        """The tensor at `place`, adapter merged, in the layout of the checkpoint."""
        value = self.adapted(place, host_array(self._leaves[place.path], place.layer))
        return contiguous(value.astype(dtype), transposed=place.transposed)

    def adapted(self, place: TensorPlace, value: np.ndarray) -> np.ndarray:
        """`value` of the parameter at `place`, in our layout, with its adapter added in float32 if it has one."""
        adapter = self.adapter(place)
        if adapter is None or self._lora is None:
            return value
        return value.astype(np.float32) + np.float32(self._lora.scale) * (adapter[0] @ adapter[1])

    def adapter(self, place: TensorPlace) -> tuple[np.ndarray, np.ndarray] | None:
        """A [in, rank] and B [rank, out] of the projection at `place`, in float32."""
        a, b = (self._adapters.get((*place.path[:-1], name)) for name in ("lora_a", "lora_b"))
        if a is None or b is None or place.path[-1] != "kernel":
            return None
        a, b = host_array(a, place.layer), host_array(b, place.layer)
        return a.astype(np.float32), b.astype(np.float32)


def contiguous(array: np.ndarray, *, transposed: bool) -> np.ndarray:
    """The array or its transpose with its rows in order in memory.

    safetensors writes the memory of an array whatever its strides: a transposed view would be saved scrambled,
    without an error.
    """
    return np.ascontiguousarray(array.T if transposed else array)
