"""TPU slices that are not here: what their chips can do, and devices that one can compile for but not run on."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from jaxalign.errors import JaxalignError, MissingPackageError

GIB = 2**30


class TopologyError(JaxalignError, ValueError):
    """A slice that does not exist, or that is not known here."""


class MissingLibtpuError(MissingPackageError):
    """libtpu, which holds the compiler for TPUs, is not installed."""


@dataclass(frozen=True)
class Chip:
    """One TPU chip. `wrap` says from which length on a dimension of a slice is a ring and not a line.

    hbm_bytes is what a program may use: the vendor's figure less what the runtime keeps.
    """

    name: str
    peak_flops: float  # bfloat16, per second
    hbm_bytes: int
    hbm_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second of one link in one direction
    num_dims: int
    wrap: int


# Peak, HBM and interconnect are the vendor's figures (docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e). A link is the
# stated bandwidth of a chip over its number of ports, 4 or 6, and over 2 where it is stated for both directions.
# hbm_bytes is the limit that the compiler itself (libtpu 0.0.42) names when a program does not fit.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, int(15.75 * GIB), 819e9, 50e9, num_dims=2, wrap=16),
        Chip("v5p", 459e12, int(95.74 * GIB), 2765e9, 100e9, num_dims=3, wrap=4),
        Chip("v6e", 918e12, int(31.25 * GIB), 1638e9, 100e9, num_dims=2, wrap=16),
    )
}

# libtpu expects to be the only process that has the TPUs of its machine, and asks the machine what they are. Nothing is
# run here, so neither matters.
_NO_MACHINE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


@dataclass(frozen=True)
class Topology:
    """A slice: its chip, the lengths of its dimensions, and one device for each chip."""

    name: str
    chip: Chip
    dims: tuple[int, ...]
    devices: tuple[jax.Device, ...]

    def links(self, devices: Sequence[jax.Device]) -> int:
        """Links in one direction that the least connected of these devices has to the others, at least 1.

        Chips at the end of a line have one link in that dimension, all others and all chips of a ring have two.
        """
        coords = [device.coords for device in devices]
        used = 0
        for dim, size in enumerate(self.dims):
            length = len({place[dim] for place in coords})
            if length > 1:
                used += 2 if length == size and self._is_ring(size) else 1
        return max(used, 1)

    def _is_ring(self, size: int) -> bool:
        # The three-dimensional slices are made of whole cubes, or they have no rings at all.
        cubes = len(self.dims) == 2 or all(other % self.chip.wrap == 0 for other in self.dims)
        return cubes and size > 2 and size % self.chip.wrap == 0


def tpu_topology(name: str) -> Topology:
    """The slice called e.g. v5e:8x8 or v5p:4x4x4, the chip and the chips along each dimension.

    Raises TopologyError for a name that is not one, MissingLibtpuError without libtpu.
    """
    chip, dims = _parsed(name)
    for key, value in _NO_MACHINE.items():
        os.environ.setdefault(key, value)
    options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(dims) == 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except RuntimeError as error:
        if "TPU support not installed" in str(error):
            raise MissingLibtpuError(
                "planning for TPUs needs libtpu, which holds their compiler and runs on any Linux machine: "
                "pip install 'jaxalign[tpu]', or from a checkout pip install '.[tpu]'"
            ) from error
        raise TopologyError(
            f"topology {name}: no such slice of {chip.name} ({error}); give even dimensions, such as "
            f"{chip.name}:{'x'.join('4' * chip.num_dims)}"
        ) from error
    devices = tuple(found.devices)
    if len(devices) != math.prod(dims):
        raise TopologyError(
            f"topology {name}: got {len(devices)} devices, expected {math.prod(dims)}, one a chip"
        )
    return Topology(name, chip, dims, devices)


def _parsed(name: str) -> tuple[Chip, tuple[int, ...]]:
    family, _, shape = name.partition(":")
    if not shape and (match := re.fullmatch(r"(v5p|v5e|v5litepod|v6e)-(\d+)", name)):
        cores = "counts cores, two to a chip" if match[1] == "v5p" else "counts chips"
        raise TopologyError(
            f"topology {name}: that name {cores}, and does not say the shape; write e.g. v5e:8x8 or v5p:4x4x4"
        )
    if family not in CHIPS:
        raise TopologyError(f"topology {name}: unknown chip {family!r}, expected one of {', '.join(CHIPS)}")
    chip = CHIPS[family]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != chip.num_dims:
        example = f"{family}:{'x'.join('4' * chip.num_dims)}"
        raise TopologyError(f"topology {name}: expected {chip.num_dims} dimensions, such as {example}")
    return chip, tuple(int(size) for size in shape.split("x"))
