"""Logical dimension names to mesh axes: the one table, and the shardings that follow from it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Dims = tuple[str | None, ...]

LOGICAL_TO_MESH: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "layers": (),
    "model": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "vocab": ("tensor",),
    "rank": (),
}


def partition_spec(dims: Dims, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The spec of an array with these logical dims.

    A mesh axis serves the first dim that names it; a dim that its axes do not divide stays whole.
    """
    if len(dims) != len(shape):
        raise ValueError(f"{len(dims)} dimension names {dims} for an array of shape {shape}")
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for dim, size in zip(dims, shape, strict=True):
        if dim is not None and dim not in LOGICAL_TO_MESH:
            raise KeyError(f"unknown dimension name {dim!r}; known: {', '.join(LOGICAL_TO_MESH)}")
        axes = tuple(axis for axis in LOGICAL_TO_MESH[dim] if axis not in used) if dim else ()
        if not axes or size % math.prod(mesh.shape[axis] for axis in axes):
            entries.append(None)
            continue
        used.update(axes)
        entries.append(axes)
    return PartitionSpec(*entries)


def tree_shardings(dims: Any, shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of NamedShardings for a tree of logical dims and one of arrays or ShapeDtypeStructs."""
    return jax.tree.map(
        lambda d, s: NamedSharding(mesh, partition_spec(d, s.shape, mesh)),
        dims,
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of ShapeDtypeStructs that carry shardings: what a checkpoint is restored into."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays, or of ShapeDtypeStructs that carry them."""
    return jax.tree.map(lambda x: x.sharding, tree)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def num_groups(mesh: Mesh | AbstractMesh) -> int:
    """How many groups of rows a micro-batch has: one for each device along data and fsdp."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_TO_MESH["batch"])


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Of stacked micro-batches: the second dimension (pairs, rows or groups) is split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, LOGICAL_TO_MESH["batch"]))


def make_constrain(mesh: Mesh) -> Callable[[jax.Array, Dims], jax.Array]:
    """A function for models: pins an activation with these logical dims to the mesh."""

    def constrain(x: jax.Array, dims: Dims) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(dims, x.shape, mesh)))

    return constrain


def put_global(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same on every process, to global arrays; each process places only its own slices."""
    with jax.transfer_guard_host_to_device(
        "allow"
    ):  # jax does not know it for the transfer asked for that it is
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]),
            tree,
        )


def device_bytes(shapes: Any, shardings: Any) -> int:
    """Bytes of the tree on one device."""
    sizes = jax.tree.map(
        lambda x, s: math.prod(s.shard_shape(x.shape)) * jax.numpy.dtype(x.dtype).itemsize, shapes, shardings
    )
    return sum(jax.tree.leaves(sizes))
