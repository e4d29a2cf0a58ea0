"""Token log-probs inside shard_map: rows, vocabulary and width of the head split over devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign.ops.token_logps import token_logps
from jaxalign.parallel import MeshConfig, make_mesh
from tests.ops.token_logps_dense import dense_logps, value_and_gradients

N, L, D, V = 4, 7, 6, 16
ROWS = P(("data", "fsdp"))


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def inputs(dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """hidden [N, L, D] in the given dtype, head [D, V] in float32 and targets [N, L]."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((N, L, D), (D, V)))
    return hidden.astype(dtype), head, jnp.asarray(rng.integers(0, V, (N, L)), jnp.int32)


def on_mesh(mesh, *, rows=ROWS, axis_name="tensor", gather_axis="fsdp", check_vma=True, **options):
    """token_logps of whole arrays under shard_map."""
    options = {"chunk_size": 3, **options, "axis_name": axis_name, "gather_axis": gather_axis}
    return jax.shard_map(
        functools.partial(token_logps, **options),
        mesh=mesh,
        in_specs=(rows, P(gather_axis, axis_name), rows),
        out_specs=rows,
        check_vma=check_vma,
    )


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    "split",
    [
        {"axis_name": None, "gather_axis": None},
        {"axis_name": "tensor", "gather_axis": None},
        {"axis_name": None, "gather_axis": "fsdp"},
        {"axis_name": "tensor", "gather_axis": "fsdp"},
        {"axis_name": "tensor", "gather_axis": "fsdp", "train_head": False},
        {"axis_name": "tensor", "gather_axis": "fsdp", "soft_cap": 3.0},
        {"axis_name": "tensor", "gather_axis": "fsdp", "soft_cap": 3.0, "train_head": False},
        {"axis_name": "tensor", "gather_axis": None, "rows": P()},
    ],
)
def test_values_and_gradients_of_split_head_equal_dense(mesh, split, check_vma):
    frozen = not split.get("train_head", True)
    soft_cap = split.get("soft_cap")

    def dense(hidden, head, targets):
        return dense_logps(hidden, jax.lax.stop_gradient(head) if frozen else head, targets, soft_cap)

    got = value_and_gradients(on_mesh(mesh, check_vma=check_vma, **split), *inputs())
    assert_equal(got, value_and_gradients(dense, *inputs()))


def test_rows_that_every_device_holds_and_a_gathered_head_equal_dense(mesh):
    # What a batch that does not split evenly falls back to; unchecked, as a gathered array counts as varying.
    got = value_and_gradients(on_mesh(mesh, rows=P(), check_vma=False), *inputs())
    assert_equal(got, value_and_gradients(dense_logps, *inputs()))


def test_vocabulary_split_over_all_devices_equals_dense():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    got = value_and_gradients(on_mesh(mesh, gather_axis=None), *inputs())
    assert_equal(got, value_and_gradients(dense_logps, *inputs()))


def test_target_outside_the_whole_vocabulary_alone_is_nan(mesh):
    hidden, head, targets = inputs()
    targets = targets.at[0, 0].set(V).at[1, 1].set(-1)
    assert np.argwhere(np.isnan(on_mesh(mesh)(hidden, head, targets))).tolist() == [[0, 0], [1, 1]]


def test_part_of_a_head_that_does_not_fit_raises_and_says_how_many_parts(mesh):
    hidden, head, targets = inputs()
    message = r"head: got shape \(2, 8\), expected \[D, V\] with D = 6 / 2, the devices along gather_axis"
    with pytest.raises(ValueError, match=message):
        on_mesh(mesh)(hidden, head[:4], targets)


def compiled_text(mesh, dtype=jnp.float32, **options) -> str:
    function = on_mesh(mesh, **options)
    step = jax.jit(lambda *x: value_and_gradients(function, *x))
    return step.lower(*inputs(dtype)).compile().as_text()


COLLECTIVE = r"(?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("train_head", [True, False])
def test_no_collective_runs_once_per_chunk(mesh, train_head, check_vma):
    text = compiled_text(mesh, train_head=train_head, check_vma=check_vma, chunk_size=1)
    computations = dict(
        re.findall(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    )
    bodies = re.findall(r"body=%?([\w.-]+)", text)
    assert len(bodies) == (2 if train_head else 1)
    assert re.search(COLLECTIVE, text)
    assert not [body for body in bodies if re.search(COLLECTIVE, computations[body])]


def test_head_is_gathered_in_the_dtype_of_hidden_and_its_gradient_reduced_in_float32(mesh):
    function = on_mesh(mesh)
    lowered = jax.jit(lambda *x: value_and_gradients(function, *x)).lower(*inputs(jnp.bfloat16)).as_text()
    gathered = re.findall(r"stablehlo.all_gather.*?-> tensor<(\S+)>", lowered)
    reduced = re.findall(r"stablehlo.reduce_scatter.*?-> tensor<(\S+)>", lowered, re.DOTALL)
    assert gathered == [f"{D}x{V // 2}xbf16"]
    assert reduced == [f"{D // 2}x{V // 2}xf32"]
