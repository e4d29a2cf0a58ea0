"""Meshes, shardings and processes: the one place that knows how many devices there are."""

from jaxalign.parallel.mesh import AXES, MeshConfig, make_mesh
from jaxalign.parallel.processes import (
    agree_on_number,
    agree_on_text,
    is_main_process,
    start_processes,
)
from jaxalign.parallel.sharding import (
    LOGICAL_TO_MESH,
    batch_sharding,
    device_bytes,
    make_constrain,
    num_groups,
    partition_spec,
    put_global,
    replicated,
    shardings_of,
    tree_shardings,
    with_shardings,
)

__all__ = [
    "AXES",
    "LOGICAL_TO_MESH",
    "MeshConfig",
    "agree_on_number",
    "agree_on_text",
    "batch_sharding",
    "device_bytes",
    "is_main_process",
    "make_constrain",
    "make_mesh",
    "num_groups",
    "partition_spec",
    "put_global",
    "replicated",
    "shardings_of",
    "start_processes",
    "tree_shardings",
    "with_shardings",
]
