"""Slices that are not here: names, chips, links."""

import math
import os
import re
import subprocess
import sys

import pytest

from jaxalign.errors import JaxalignError
from jaxalign.parallel import MeshConfig, make_mesh
from jaxalign.parallel.mesh import MeshError
from jaxalign.parallel.topology import CHIPS, GIB, MissingLibtpuError, Topology, TopologyError, tpu_topology
from jaxalign.run.plan.compile import no_persistent_cache

WRONG = {
    "v4:2x2x1": "unknown chip 'v4', expected one of v5e, v5p, v6e",
    "v5e": "expected 2 dimensions, such as v5e:4x4",
    "v5e:4x4x4": "expected 2 dimensions, such as v5e:4x4",
    "v5p:0x4x4": "expected 3 dimensions, such as v5p:4x4x4",
    "v5p-128": "counts cores, two to a chip, and does not say the shape",
    "v5e-64": "counts chips, and does not say the shape; write e.g. v5e:8x8",
}


@pytest.mark.parametrize("name", WRONG)
def test_name_that_is_none_is_refused(name):
    with pytest.raises(TopologyError, match=re.escape(WRONG[name])):
        tpu_topology(name)


def test_slice_that_does_not_exist_is_refused(v5e4):
    with pytest.raises(TopologyError, match=r"v5e:3x5: no such slice of v5e \(.*\); give even dimensions"):
        tpu_topology("v5e:3x5")


@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:2x4", "v5p:2x2x1", "v6e:4x4"])
def test_slice_has_one_device_for_each_chip(v5e4, name):
    topology = tpu_topology(name)
    assert len(topology.devices) == math.prod(topology.dims)
    assert {device.platform for device in topology.devices} == {"tpu"}


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("v5e:2x2", 2),  # a corner has a neighbour in each dimension
        ("v5e:8x8", 2),
        ("v5e:4x16", 3),  # only 16 chips in a row are a ring
        ("v5e:16x16", 4),
        ("v5p:2x2x1", 2),
        ("v5p:2x4x4", 3),  # less than a cube: no rings
        ("v5p:4x4x4", 6),
    ],
)
def test_links_of_the_least_connected_chip(v5e4, name, links):
    topology = tpu_topology(name)
    assert topology.links(topology.devices) == links


def test_links_count_only_where_the_group_extends(v5e4):
    topology = tpu_topology("v5e:8x8")
    row = [device for device in topology.devices if device.coords[1] == 0]
    assert topology.links(row) == 1


def test_memory_is_what_the_compiler_allows(v5e4):
    """The figures of CHIPS come from this message."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    whole = NamedSharding(Mesh(v5e4.devices[:1], ("x",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((100_000, 100_000), jnp.bfloat16, sharding=whole)
    with no_persistent_cache(), pytest.raises(jax.errors.JaxRuntimeError, match=r"15\.75G") as raised:
        jax.jit(lambda x: jnp.sin(x @ x) @ x).lower(x).compile()
    assert "RESOURCE_EXHAUSTED" in str(raised.value)
    assert CHIPS["v5e"].hbm_bytes == int(15.75 * GIB)


def test_rates_of_chips_are_in_one_order_of_magnitude_with_their_peak():
    for chip in CHIPS.values():
        # FLOPs per byte of memory and of interconnect at which a chip is balanced: hundreds, and thousands.
        assert 100 < chip.peak_flops / chip.hbm_bandwidth < 1000
        assert 500 < chip.peak_flops / (2 * chip.num_dims * chip.link_bandwidth) < 5000


def test_missing_libtpu_says_what_to_install():
    code = (
        "import sys; sys.modules['libtpu'] = None\n"
        "from jaxalign.parallel.topology import tpu_topology\n"
        "try: tpu_topology('v5e:2x2')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    # jax leaves the path of the library in the environment of its children.
    environment = {name: value for name, value in os.environ.items() if name != "TPU_LIBRARY_PATH"}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert said.startswith("MissingLibtpuError planning for TPUs needs libtpu")
    assert "pip install 'jaxalign[tpu]'" in said
    assert issubclass(MissingLibtpuError, JaxalignError)


def test_topology_is_what_its_name_says(v5e4):
    assert isinstance(v5e4, Topology)
    assert (v5e4.chip.name, v5e4.dims) == ("v5e", (2, 2))


def test_mesh_that_would_split_a_dimension_of_the_chips_is_refused(v5e4):
    chips = list(tpu_topology("v5p:4x4x4").devices)
    assert make_mesh(MeshConfig(data=4, fsdp=16), chips).devices.shape == (4, 16, 1)
    message = (
        r"mesh data=2 \* fsdp=32 \* tensor=1 cannot be laid on chips that are connected as 4 x 4 x 4: each axis "
        "must be the product of some of these lengths; change the mesh section"
    )
    with pytest.raises(MeshError, match=message):
        make_mesh(MeshConfig(data=2, fsdp=32), chips)
