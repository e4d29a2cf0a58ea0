"""The one list of mesh axes, and how a mesh is made of the devices at hand. Nothing here knows about models."""

import math
from collections.abc import Sequence
from typing import Literal

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh
from pydantic import Field, model_validator

from jaxalign.errors import JaxalignError
from jaxalign.settings import Settings

AXES = ("data", "fsdp", "tensor")

AxisSize = int | Literal["rest"]


class MeshError(JaxalignError, ValueError):
    """The mesh does not fit the devices at hand."""


class MeshConfig(Settings):
    """Sizes of the mesh axes. One of them may be `rest`: whatever the other two leave of the devices."""

    data: AxisSize = Field(default="rest", description="replicas of the model; only gradients cross it")
    fsdp: AxisSize = Field(
        default=1, description="parameters, gradients and optimizer state are split over it"
    )
    tensor: AxisSize = Field(default=1, description="heads, feed-forward and vocabulary are split over it")

    @model_validator(mode="after")
    def _check(self) -> "MeshConfig":
        sizes = [getattr(self, axis) for axis in AXES]
        if sizes.count("rest") > 1:
            raise ValueError(f"only one mesh axis may be 'rest', got {dict(zip(AXES, sizes, strict=True))}")
        if any(size != "rest" and size < 1 for size in sizes):
            raise ValueError(f"mesh axes must be at least 1, got {dict(zip(AXES, sizes, strict=True))}")
        return self

    def shape(self, num_devices: int) -> tuple[int, int, int]:
        """Axis sizes for that many devices. Raises MeshError where they do not multiply to it."""
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = math.prod(size for size in sizes if size != "rest")
        if "rest" in sizes and num_devices % fixed == 0:
            sizes[sizes.index("rest")] = num_devices // fixed
        if "rest" in sizes or math.prod(sizes) != num_devices:
            raise MeshError(
                f"mesh {_as_product(sizes)} needs {'a multiple of ' if 'rest' in sizes else ''}{fixed} devices, "
                f"found {num_devices}; change the mesh section or set one axis to 'rest'"
            )
        return sizes[0], sizes[1], sizes[2]

    def num_devices(self) -> int | None:
        """How many devices the mesh asks for, None where `rest` leaves it open."""
        sizes = [getattr(self, axis) for axis in AXES]
        return None if "rest" in sizes else math.prod(sizes)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; over several TPU slices the data axis crosses the slow network first.

    Raises MeshError where the axes do not fit the devices, or the way in which TPU chips are connected.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    try:
        return _laid_out(shape, devices)
    except NotImplementedError as error:
        # Most kinds of TPU cannot give one axis a part of a physical dimension.
        lengths = " x ".join(
            str(len(set(places))) for places in zip(*(d.coords for d in devices), strict=True)
        )
        raise MeshError(
            f"mesh {_as_product(shape)} cannot be laid on chips that are connected as {lengths}: each axis must be "
            "the product of some of these lengths; change the mesh section"
        ) from error


def _as_product(sizes: Sequence[AxisSize]) -> str:
    return " * ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def _laid_out(shape: tuple[int, int, int], devices: list[jax.Device]) -> Mesh:
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    if shape[0] % num_slices:
        raise MeshError(
            f"mesh data={shape[0]} is not divisible by the {num_slices} slices of this job; change it"
        )
    within = (shape[0] // num_slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (num_slices, 1, 1), devices=devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """The same mesh without devices, to reason about shapes for a machine that is not here."""
    return AbstractMesh(config.shape(num_devices), AXES, axis_types=(AxisType.Auto,) * 3)
