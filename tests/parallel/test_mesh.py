"""Meshes from settings: shapes, and what is said where the devices do not fit."""

import jax
import pytest
from pydantic import ValidationError

from jaxalign.parallel import AXES, MeshConfig, make_mesh
from jaxalign.parallel.mesh import abstract_mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"data": 1, "fsdp": "rest"}, (1, 8, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 4, "tensor": "rest"}, (1, 4, 2)),
        ({"fsdp": 8}, (1, 8, 1)),
    ],
)
def test_rest_takes_what_the_other_axes_leave(sizes, shape):
    assert MeshConfig(**sizes).shape(8) == shape


def test_default_mesh_is_data_parallel_over_all_devices():
    mesh = make_mesh(MeshConfig())
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_mesh_uses_every_device_once():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert sorted(device.id for device in mesh.devices.flat) == [device.id for device in jax.devices()]


def test_mesh_of_given_devices_leaves_the_others_out():
    mesh = make_mesh(MeshConfig(tensor=2), jax.devices()[:4])
    assert mesh.devices.shape == (2, 1, 2)
    assert {device.id for device in mesh.devices.flat} == {0, 1, 2, 3}


def test_abstract_mesh_has_the_same_axes_without_devices():
    assert dict(abstract_mesh(MeshConfig(fsdp=16), 256).shape) == {"data": 16, "fsdp": 16, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "asked_for"), [({"data": 2, "fsdp": 2, "tensor": 2}, 8), ({}, None), ({"data": 4}, 4)]
)
def test_num_devices_is_open_only_with_rest(sizes, asked_for):
    assert MeshConfig(**sizes).num_devices() == asked_for


def test_two_axes_of_rest_are_refused():
    with pytest.raises(ValidationError, match=r"only one mesh axis may be 'rest', got .*'fsdp': 'rest'"):
        MeshConfig(data="rest", fsdp="rest")


@pytest.mark.parametrize("size", [0, -2])
def test_axis_below_one_is_refused(size):
    with pytest.raises(ValidationError, match=f"mesh axes must be at least 1, got .*'tensor': {size}"):
        MeshConfig(tensor=size)


def test_axis_that_is_no_number_is_refused():
    with pytest.raises(ValidationError, match="rest"):
        MeshConfig(fsdp="all")


def test_fixed_axes_that_do_not_multiply_to_the_devices_name_both_numbers_and_the_remedy():
    message = (
        r"mesh data=2 \* fsdp=3 \* tensor=1 needs 6 devices, found 8; "
        r"change the mesh section or set one axis to 'rest'"
    )
    with pytest.raises(ValueError, match=message):
        MeshConfig(data=2, fsdp=3).shape(8)


def test_axes_beside_rest_that_do_not_divide_the_devices_name_the_multiple():
    with pytest.raises(ValueError, match=r"data=rest \* fsdp=3 \* tensor=1 needs a multiple of 3 devices"):
        MeshConfig(fsdp=3).shape(8)


def test_more_devices_asked_for_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"needs a multiple of 16 devices, found 8"):
        make_mesh(MeshConfig(fsdp=16))
