"""Laws that every loss obeys, over one table. A new loss is a new row."""

import dataclasses
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxalign import losses
from tests.reference import losses as reference

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
FIXED = dict(zip(LOGPS, (-20.0, -24.0, -21.0, -22.5), strict=True))
UNSAFE = ("chosen_unsafe", "rejected_unsafe")
WEIGHTS = ("chosen_weight", "rejected_weight")
UNSAFE_LOSER = {"chosen_unsafe": 0.0, "rejected_unsafe": 1.0}
EVEN = {"chosen_weight": 1.0, "rejected_weight": 1.0}
LEANING = {"chosen_weight": 0.5, "rejected_weight": 1.5}


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss, its reference, its scalars, its values at the fixed case, the arguments without a gradient."""

    loss: Callable
    reference: Callable
    scalars: dict[str, float]
    fixed: list[tuple[dict[str, float], float]]
    constants: tuple[str, ...] = ()

    @property
    def arrays(self) -> list[str]:
        parameters = inspect.signature(self.loss).parameters.values()
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


CASES = {
    "dpo": Case(losses.dpo_loss, reference.dpo, {"beta": 0.1}, [({}, 0.575939)]),
    "safe_dpo": Case(
        losses.safe_dpo_loss,
        reference.safe_dpo,
        {"beta": 0.1, "delta": 2.0},
        [(UNSAFE_LOSER | {"delta": 10.0}, 9.750058), (UNSAFE_LOSER | {"delta": 1.0}, 1.136871)],
        constants=(*UNSAFE, "delta"),
    ),
    "cat_dpo": Case(
        losses.cat_dpo_loss,
        reference.cat_dpo,
        {"beta": 0.1},
        [(UNSAFE_LOSER | {"margin": 10.0}, 9.750058), (UNSAFE_LOSER | {"margin": 1.0}, 1.136871)],
        constants=(*UNSAFE, "margin"),
    ),
    "b_dpo": Case(
        losses.b_dpo_loss,
        reference.b_dpo,
        {"beta": 0.1, "scale": 1.5},
        [
            ({"scale": 1.0, "chosen_weight": 1.0, "rejected_weight": 1.0}, 0.575939),
            (LEANING | {"scale": 1.0}, 0.565071),
        ],
        constants=(*WEIGHTS, "scale"),
    ),
    "cat_b_dpo": Case(
        losses.cat_b_dpo_loss,
        reference.cat_b_dpo,
        {"beta": 0.1, "scale": 1.5},
        [(UNSAFE_LOSER | LEANING | {"margin": 1.0, "scale": 1.0}, 1.119960)],
        constants=(*UNSAFE, "margin", *WEIGHTS, "scale"),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


def inputs(case: Case, num_pairs: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float64 arrays for the array arguments of the loss, by name."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name in case.arrays:
        if name in LOGPS:
            arrays[name] = rng.normal(-40.0, 15.0, num_pairs)
        elif name in UNSAFE:
            arrays[name] = rng.integers(0, 2, num_pairs).astype(np.float64)
        else:
            arrays[name] = rng.uniform(0.0, 2.0, num_pairs)
    return arrays


def as_jax(arrays: dict[str, np.ndarray], dtype=jnp.float32) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()}


def positional(case: Case) -> Callable:
    """The loss as a function of its array arguments alone."""
    return lambda *arrays: case.loss(*arrays, **case.scalars)


def test_every_public_loss_is_in_the_table():
    assert {f"{name}_loss" for name in CASES} == {name for name in losses.__all__ if name.endswith("_loss")}


def test_value_equals_reference(case):
    arrays = inputs(case)
    expected = case.reference(*arrays.values(), **case.scalars)
    np.testing.assert_allclose(positional(case)(*as_jax(arrays).values()), expected, rtol=2e-6, atol=1e-6)


def test_float64_stays_and_equals_reference_to_1e_12(case):
    arrays = inputs(case)
    with jax.enable_x64(True):
        value = positional(case)(*as_jax(arrays, jnp.float64).values())
        assert value.dtype == jnp.float64
        expected = case.reference(*arrays.values(), **case.scalars)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


def test_fixed_case(case):
    for changes, expected in case.fixed:
        arguments = FIXED | changes
        arrays = [jnp.array([arguments[name]]) for name in case.arrays]
        scalars = {name: changes.get(name, value) for name, value in case.scalars.items()}
        np.testing.assert_allclose(case.loss(*arrays, **scalars), [expected], atol=5e-7)


def test_eager_equals_jit_equals_vmap_over_pairs(case):
    arrays = as_jax(inputs(case)).values()
    eager = positional(case)(*arrays)
    assert eager.shape == (7,)
    np.testing.assert_allclose(jax.jit(positional(case))(*arrays), eager, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(positional(case))(*arrays), eager, rtol=1e-6)


def test_permuting_pairs_permutes_losses(case):
    arrays = as_jax(inputs(case))
    order = np.random.default_rng(1).permutation(7)
    permuted = positional(case)(*(array[order] for array in arrays.values()))
    np.testing.assert_array_equal(permuted, positional(case)(*arrays.values())[order])


def test_gradient_equals_finite_differences(case):
    with jax.enable_x64(True):
        arrays = as_jax(inputs(case), jnp.float64)
        rest = [arrays[name] for name in case.arrays if name not in LOGPS]
        check_grads(lambda *logps: positional(case)(*logps, *rest), [arrays[name] for name in LOGPS], order=2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_value_and_gradient_are_finite_at_1e4_nats(case, sign):
    arrays = as_jax(inputs(case))
    arrays |= {name: jnp.zeros(7) for name in LOGPS}
    arrays["policy_chosen_logps"] = jnp.full(7, -1e4 * (sign < 0))
    arrays["policy_rejected_logps"] = jnp.full(7, -1e4 * (sign > 0))
    assert_finite(case, arrays)


def test_value_and_gradient_are_finite_for_fully_masked_rows(case):
    assert_finite(case, as_jax(inputs(case)) | {name: jnp.zeros(7) for name in LOGPS})


def assert_finite(case: Case, arrays: dict[str, jax.Array]) -> None:
    value = positional(case)(*arrays.values())
    gradients = jax.grad(lambda *a: positional(case)(*a).sum(), argnums=range(4))(*arrays.values())
    assert np.isfinite(value).all()
    assert np.isfinite(np.stack(gradients)).all()


def test_gradient_points_to_the_chosen_response(case):
    arrays = as_jax(inputs(case)).values()
    chosen, rejected = jax.grad(lambda *a: positional(case)(*a).sum(), argnums=(0, 1))(*arrays)
    assert (chosen < 0).all()
    assert (rejected > 0).all()


def test_no_gradient_into_constants(case):
    arrays = as_jax(inputs(case))
    scalars = {name: jnp.float32(value) for name, value in case.scalars.items()}

    def total(arguments):
        arrays = [arguments[name] for name in case.arrays]
        return case.loss(*arrays, **{name: arguments[name] for name in scalars}).sum()

    gradients = jax.grad(total)(arrays | scalars)
    for name in case.constants:
        np.testing.assert_array_equal(gradients[name], np.zeros_like(gradients[name]), err_msg=name)
    assert gradients["beta"] != 0


def test_mismatched_shape_raises_and_names_the_argument(case):
    for wrong in case.arrays:
        arrays = as_jax(inputs(case))
        arrays[wrong] = jnp.ones((7, 1))
        with pytest.raises(ValueError, match=rf"{wrong}.*shape|shape of {wrong}") as error:
            positional(case)(*arrays.values())
        assert "(7,)" in str(error.value)
        assert "(7, 1)" in str(error.value)


def test_scalar_of_wrong_shape_raises_and_names_the_argument(case):
    for wrong in case.scalars:
        scalars = case.scalars | {wrong: jnp.ones(3)}
        with pytest.raises(ValueError, match=rf"{wrong} has shape \(3,\), expected"):
            case.loss(*as_jax(inputs(case)).values(), **scalars)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(case, dtype):
    halves = as_jax(inputs(case), dtype)
    value = positional(case)(*halves.values())
    assert value.dtype == jnp.float32
    widened = {name: array.astype(jnp.float32) for name, array in halves.items()}
    np.testing.assert_array_equal(value, positional(case)(*widened.values()))


@pytest.mark.parametrize("dtype", [bool, np.int32])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if set(UNSAFE) <= set(case.arrays)])
def test_unsafe_flags_may_be_bool_or_integer(name, dtype):
    case = CASES[name]
    arrays = inputs(case)
    flags = {name: jnp.asarray(arrays[name].astype(dtype)) for name in UNSAFE}
    expected = positional(case)(*as_jax(arrays).values())
    np.testing.assert_array_equal(positional(case)(*(as_jax(arrays) | flags).values()), expected)
