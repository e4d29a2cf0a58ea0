"""The same training in any layout of the rows: log-probs, loss, parameters and adaptive state."""

from itertools import product
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxalign.config import parse_config
from jaxalign.run.setup import prepare
from tests import tiny
from tests.integration.runs import host, train_steps

LAYOUTS = [
    {"layout": layout, "share_prefix": share}
    for layout, share in product(("padded", "packed"), (False, True))
]
NUM_STEPS = 3


def result(folder: Any, rows: dict[str, Any], mesh: dict[str, int], **changes: Any) -> tuple[Any, Any, Any]:
    """State and sums of a short run, and its log-probs of the held-out pairs."""
    settings = tiny.run_settings(
        folder,
        rows=rows,
        mesh=mesh,
        train={"batch_size": 8, "num_micro_batches": changes.pop("num_micro_batches", 1)},
        optimizer={"eps": 1e-3},  # plain steps: Adam's divide by the root of what may be rounding noise
        adaptive={"violation": {"threshold": 0.3}, **changes.pop("adaptive", {})},
        **changes,
    )
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    run = prepare(parse_config(settings, "test"), folder / "run", devices)
    state, sums = train_steps(run, NUM_STEPS)
    return host(state), sums, run.heldout_logps(state.params)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One sequence a row, on one device."""
    return result(tmp_path_factory.mktemp("padded"), LAYOUTS[0], {"data": 1})


def assert_same(got: Any, expected: Any) -> None:
    """Equal up to the order of float32 additions."""
    (state, sums, logps), (other_state, other_sums, other_logps) = got, expected
    np.testing.assert_allclose(logps, other_logps, rtol=1e-5, atol=1e-4)
    chex.assert_trees_all_close(state.params, other_state.params, atol=2e-5, rtol=2e-4)
    chex.assert_trees_all_close(state.adaptive, other_state.adaptive, atol=1e-5)
    for one, other in zip(sums, other_sums, strict=True):
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
        np.testing.assert_allclose(one.logps, other.logps, rtol=1e-5)
        np.testing.assert_allclose(one.grad_norm, other.grad_norm, rtol=1e-3)
        np.testing.assert_array_equal(one.category_pairs, other.category_pairs)


@pytest.mark.parametrize("rows", LAYOUTS[1:], ids=lambda rows: "-".join(map(str, rows.values())))
def test_any_layout_trains_like_one_sequence_a_row(rows: Any, padded: Any, tmp_path: Any) -> None:
    assert_same(result(tmp_path, rows, {"data": 1}), padded)


@pytest.mark.parametrize(
    "rows",
    [*(pytest.param(rows, marks=pytest.mark.slow) for rows in LAYOUTS[:3]), LAYOUTS[3]],
    ids=lambda rows: "-".join(map(str, rows.values())),
)
def test_any_layout_trains_so_on_eight_devices(rows: Any, padded: Any, tmp_path: Any) -> None:
    assert_same(result(tmp_path, rows, {"data": 2, "fsdp": 2, "tensor": 2}), padded)


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_any_attention_trains_so(attention: str, padded: Any, tmp_path: Any) -> None:
    assert_same(result(tmp_path, LAYOUTS[3], {"data": 1}, model={"attention": attention}), padded)


def test_micro_batches_and_rows_of_a_given_length_train_so(padded: Any, tmp_path: Any) -> None:
    rows = LAYOUTS[3] | {"length": 512}
    assert_same(result(tmp_path, rows, {"data": 2}, num_micro_batches=2), padded)


def test_mutual_information_of_the_policy_is_the_same_in_rows_of_several_pairs(tmp_path: Any) -> None:
    def of(folder: str, rows: Any) -> Any:
        (tmp_path / folder).mkdir()
        return result(tmp_path / folder, rows, {"data": 1}, adaptive={"mi_source": "policy"})

    assert_same(of("packed", LAYOUTS[3]), of("padded", LAYOUTS[0]))
