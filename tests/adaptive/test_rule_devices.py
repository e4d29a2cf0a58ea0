"""Laws of every adaptive rule over several devices: sums over a named axis, global arrays and one device agree."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.adaptive.cases import (
    B,
    added,
    assert_close,
    assert_identical,
    law,
    random_batch,
    seen_state,
    unstack,
)

NUM_DEVICES = 8


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def update_of_shard(case):
    """What research code writes: local statistics, summed over the axis, then the same update everywhere."""

    def update(batch, state):
        return case.rule.update(jax.lax.psum(case.stats(batch), "data"), state)

    return update


@law
def test_two_half_batches_added_equal_one_batch(case):
    batch, state = random_batch(0), seen_state(case)
    first, second = jax.tree.map(lambda x: x[:5], batch), jax.tree.map(lambda x: x[5:], batch)
    total = added(case.stats(first), case.stats(second))
    assert_close(total, case.stats(batch))
    assert_close(case.rule.update(total, state), case.step(batch, state))


@law
def test_psum_inside_shard_map_equals_one_device(case, mesh):
    batch, state = random_batch(7), seen_state(case)
    sharded = jax.shard_map(
        update_of_shard(case),
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    assert_close(jax.jit(sharded)(batch, state), case.step(batch, state))


@law
@pytest.mark.filterwarnings("ignore:.*pmap.*:DeprecationWarning")  # on its way out, but still in use
def test_psum_inside_pmap_equals_one_device_on_every_device(case):
    batch, state = random_batch(7), seen_state(case)
    shards = jax.tree.map(lambda x: x.reshape(NUM_DEVICES, B // NUM_DEVICES, *x.shape[1:]), batch)
    updated = jax.pmap(update_of_shard(case), axis_name="data", in_axes=(0, None))(shards, state)
    copies = unstack(jax.tree.map(np.asarray, updated), NUM_DEVICES)
    assert_close(copies[0], case.step(batch, state))
    for copy in copies[1:]:
        assert_identical(copy, copies[0])


@law
def test_global_arrays_under_jit_equal_one_device_and_stay_replicated(case, mesh):
    batch, state = random_batch(7), seen_state(case)
    replicated = NamedSharding(mesh, PartitionSpec())
    global_batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    global_state = jax.device_put(state, replicated)
    updated = jax.jit(case.step)(global_batch, global_state)
    assert_close(updated, case.step(batch, state))
    assert all(leaf.sharding.is_equivalent_to(replicated, leaf.ndim) for leaf in jax.tree.leaves(updated))
