"""Logical dims to mesh axes, and arrays put onto a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.parallel import (
    AXES,
    LOGICAL_TO_MESH,
    MeshConfig,
    batch_sharding,
    device_bytes,
    make_constrain,
    make_mesh,
    partition_spec,
    put_global,
    replicated,
    tree_shardings,
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_table_names_only_axes_of_the_mesh():
    assert {axis for axes in LOGICAL_TO_MESH.values() for axis in axes} <= set(AXES)


@pytest.mark.parametrize(
    ("dims", "shape", "spec"),
    [
        (("batch", "length", "model"), (8, 16, 4), PartitionSpec(("data", "fsdp"), None, None)),
        (("layers", "model", "ffn"), (3, 4, 8), PartitionSpec(None, ("fsdp",), ("tensor",))),
        (("vocab", "model"), (6, 4), PartitionSpec(("tensor",), ("fsdp",))),
        (("model", "rank"), (4, 2), PartitionSpec(("fsdp",), None)),
        ((None, "heads"), (4, 4), PartitionSpec(None, ("tensor",))),
        ((), (), PartitionSpec()),
    ],
)
def test_partition_spec_follows_the_table(mesh, dims, shape, spec):
    assert partition_spec(dims, shape, mesh) == spec


@pytest.mark.parametrize(
    ("dims", "shape", "spec"),
    [
        (("model", "model"), (4, 4), PartitionSpec(("fsdp",), None)),
        (("heads", "ffn"), (4, 4), PartitionSpec(("tensor",), None)),
        (("batch", "model"), (4, 4), PartitionSpec(("data", "fsdp"), None)),
        # What the first dim cannot use is left for the next one.
        (("vocab", "ffn"), (5, 4), PartitionSpec(None, ("tensor",))),
    ],
)
def test_axis_is_used_once(mesh, dims, shape, spec):
    assert partition_spec(dims, shape, mesh) == spec


@pytest.mark.parametrize(("dims", "shape"), [(("vocab",), (5,)), (("batch",), (6,)), (("kv_heads",), (1,))])
def test_indivisible_dim_stays_whole(mesh, dims, shape):
    assert partition_spec(dims, shape, mesh) == PartitionSpec(None)


def test_unknown_dimension_name_is_an_error_with_the_known_ones(mesh):
    with pytest.raises(KeyError, match=r"unknown dimension name 'width'; known: batch, length"):
        partition_spec(("width",), (4,), mesh)


def test_wrong_number_of_dimension_names_is_an_error_with_the_shape(mesh):
    with pytest.raises(ValueError, match=r"1 dimension names \('model',\) for an array of shape \(4, 4\)"):
        partition_spec(("model",), (4, 4), mesh)


def test_tree_shardings_keeps_the_tree(mesh):
    dims = {"kernel": ("model", "ffn"), "inner": {"scale": ("model",)}}
    shapes = {"kernel": jnp.zeros((4, 8)), "inner": {"scale": jax.ShapeDtypeStruct((5,), jnp.float32)}}
    assert tree_shardings(dims, shapes, mesh) == {
        "kernel": NamedSharding(mesh, PartitionSpec(("fsdp",), ("tensor",))),
        "inner": {"scale": NamedSharding(mesh, PartitionSpec(None))},
    }


def test_device_bytes_counts_one_shard_of_each_leaf(mesh):
    shapes = {
        "split": jax.ShapeDtypeStruct((8, 8), jnp.float32),  # over fsdp * tensor = 4 devices
        "whole": jax.ShapeDtypeStruct((5,), jnp.bfloat16),
    }
    shardings = tree_shardings({"split": ("model", "ffn"), "whole": (None,)}, shapes, mesh)
    assert device_bytes(shapes, shardings) == 8 * 8 * 4 // 4 + 5 * 2


@pytest.mark.parametrize("sharding_of", [batch_sharding, replicated])
def test_put_global_equals_the_host_array(mesh, sharding_of):
    tree = {"tokens": np.arange(48, dtype=np.int32).reshape(2, 8, 3), "weight": np.ones((2, 8), np.float32)}
    placed = put_global(tree, sharding_of(mesh))
    for name, host in tree.items():
        np.testing.assert_array_equal(placed[name], host)
        assert placed[name].dtype == host.dtype
        assert placed[name].sharding == sharding_of(mesh)


def test_put_global_gives_each_device_its_own_rows_of_every_micro_batch(mesh):
    host = np.arange(24, dtype=np.float32).reshape(3, 8)
    for shard in put_global(host, batch_sharding(mesh)).addressable_shards:
        np.testing.assert_array_equal(shard.data, host[shard.index])
        assert shard.data.shape == (3, 2)


def test_constrain_pins_the_sharding_and_keeps_the_values(mesh):
    constrain = make_constrain(mesh)
    x = jnp.arange(32.0).reshape(8, 4)
    y = jax.jit(lambda x: constrain(x, ("batch", "model")))(x)
    np.testing.assert_array_equal(y, x)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 2)
