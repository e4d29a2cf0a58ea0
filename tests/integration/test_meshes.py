"""The same training on any mesh: loss, parameters and adaptive state."""

import math
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.run.setup import prepare
from tests import tiny
from tests.integration.runs import host, train_steps

MESHES = [
    {"data": 8},
    {"data": 1, "fsdp": 8},
    {"data": 1, "fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]
NUM_STEPS = 5


def settings(folder: Any, mesh: dict[str, int], kind: str, **train: Any) -> dict[str, Any]:
    model = {"lora": {"rank": 4}} if kind == "lora" else {}
    return tiny.run_settings(
        folder,
        mesh=mesh,
        model=model,
        train={"batch_size": 8, **train},
        # Plain steps instead of Adam's: those divide by the root of a gradient that may be rounding noise.
        optimizer={"eps": 1e-3},
        adaptive={"violation": {"threshold": 0.3}},
        reference={"cache_dir": str(folder.parent / "reference")},  # the same for all meshes
    )


def devices(mesh: dict[str, int]) -> list[jax.Device]:
    return jax.devices()[: math.prod(mesh.values())]


def result(folder: Any, mesh: dict[str, int], kind: str, **train: Any) -> tuple[Any, Any]:
    run = prepare(parse_config(settings(folder, mesh, kind, **train), "test"), folder / "run", devices(mesh))
    state, sums = train_steps(run, NUM_STEPS)
    return host(state), sums


@pytest.fixture(scope="module", params=["full", "lora"])
def one_device(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Any]:
    """Training on a single device."""
    state, sums = result(tmp_path_factory.mktemp("one"), {"data": 1}, request.param)
    return request.param, state, sums


def assert_same(one: Any, other: Any) -> None:
    """States and sums are equal up to the order of float32 additions."""
    (one_state, one_sums), (state, sums) = one, other
    chex.assert_trees_all_close(state.params, one_state.params, atol=2e-5, rtol=2e-4)
    chex.assert_trees_all_close(state.adaptive["margin"], one_state.adaptive["margin"], atol=1e-6)
    chex.assert_trees_all_close(state.adaptive["balance"], one_state.adaptive["balance"], atol=1e-5)
    for step, (a, b) in enumerate(zip(one_sums, sums, strict=True)):
        np.testing.assert_allclose(b.loss, a.loss, rtol=1e-5, err_msg=f"loss of step {step}")
        np.testing.assert_array_equal(b.category_pairs, a.category_pairs)


@pytest.mark.parametrize(
    ("one_device", "mesh"),
    [("full", mesh) for mesh in MESHES]
    + [pytest.param("lora", mesh, marks=pytest.mark.slow) for mesh in MESHES[:3]]
    + [("lora", MESHES[3])],
    indirect=["one_device"],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}{v}" for k, v in value.items()),
)
def test_any_mesh_trains_like_one_device(mesh: dict[str, int], one_device: Any, tmp_path: Any) -> None:
    kind, *expected = one_device
    assert_same(expected, result(tmp_path, {"data": 1, "fsdp": 1, "tensor": 1, **mesh}, kind))


def test_micro_batches_on_a_mesh_train_like_one_batch(one_device: Any, tmp_path: Any) -> None:
    kind, *expected = one_device
    mesh = {"data": 2, "fsdp": 1, "tensor": 2}
    assert_same(expected, result(tmp_path, mesh, kind, num_micro_batches=4))


def test_parameters_and_moments_are_spread(tmp_path: Any) -> None:
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    run = prepare(parse_config(settings(tmp_path, mesh, "full"), "test"), tmp_path / "run")
    state = run.new_state()
    spread = [
        leaf.addressable_shards[0].data.size < leaf.size
        for leaf in jax.tree.leaves((state.params, state.opt_state))
        if leaf.size > 64
    ]
    assert len(spread) > 20
    assert all(spread)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.adaptive))


def test_batch_that_does_not_spread_is_refused(tmp_path: Any) -> None:
    config = parse_config(settings(tmp_path, {"data": 8}, "full", batch_size=12), "test")
    with pytest.raises(ConfigError, match=r"= 12 is not divisible by data \* fsdp = 8; nearest: 8 or 16"):
        prepare(config, tmp_path / "run")
