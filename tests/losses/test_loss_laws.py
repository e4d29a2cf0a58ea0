"""Laws that every loss obeys, over the table in cases.py. A new loss is a new row there."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxalign import losses
from tests.losses.cases import (
    ALL_LOGPS,
    CASES,
    DESIRABLE,
    FLAGS,
    LENGTHS,
    NUM_PAIRS,
    PAIR,
    Case,
    as_jax,
    gradient_deviation,
    gradients,
    inputs,
    value_deviation,
)

LAWS: dict[str, list[str]] = {}  # name of each law -> the losses that it is tested for
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def law(applies: Callable[[Case], bool] = lambda case: True) -> Callable:
    """Registers a test as a law and runs it for every loss of the table that it applies to."""

    def register(test: Callable) -> Callable:
        names = [name for name, case in CASES.items() if applies(case)]
        LAWS[test.__name__.removeprefix("test_")] = names
        return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)(test)

    return register


def test_every_public_loss_is_in_the_table():
    assert {f"{name}_loss" for name in CASES} == {name for name in losses.__all__ if name.endswith("_loss")}


def test_every_exception_of_the_table_has_a_reason():
    assert {
        name for name, case in CASES.items() if (case.direction == "everywhere") == bool(case.reason)
    } == set()


# Values and gradients


@law()
def test_value_equals_reference(case):
    assert value_deviation(case) < 2e-6


@law()
def test_value_equals_reference_to_1e_12_in_float64(case):
    with jax.enable_x64(True):
        assert jax.eval_shape(case, *as_jax(inputs(case), jnp.float64).values()).dtype == jnp.float64
        assert value_deviation(case, jnp.float64) < 1e-12


@law()
def test_gradient_equals_reference(case):
    assert gradient_deviation(case) < 2e-6


@law()
def test_gradient_equals_reference_to_1e_12_in_float64(case):
    with jax.enable_x64(True):
        assert gradient_deviation(case, jnp.float64) < 1e-12


@law()
def test_second_derivative_equals_finite_differences(case):
    with jax.enable_x64(True):
        arrays = list(as_jax(inputs(case), jnp.float64).values())
        rest = arrays[len(case.logps) :]
        slopes = jax.grad(lambda *logps: case(*logps, *rest).sum(), argnums=range(len(case.logps)))
        check_grads(slopes, arrays[: len(case.logps)], order=1, modes=["rev"])


@law()
def test_fixed_case_has_its_value(case):
    for changes, expected in case.fixed:
        arguments = PAIR | changes
        scalars = {name: changes[name] for name in case.scalars if name in changes}
        value = case(*[jnp.full(NUM_PAIRS, float(arguments[name])) for name in case.arrays], **scalars)
        np.testing.assert_allclose(value, np.full(NUM_PAIRS, expected), rtol=1e-6, atol=5e-7)


# Transformations


@law()
def test_jit_equals_eager(case):
    arrays = as_jax(inputs(case)).values()
    np.testing.assert_allclose(jax.jit(case)(*arrays), case(*arrays), **CLOSE)


@law(lambda case: not case.batch_level)
def test_vmap_over_pairs_equals_eager(case):
    arrays = as_jax(inputs(case)).values()
    np.testing.assert_allclose(jax.vmap(case)(*arrays), case(*arrays), **CLOSE)


@law(lambda case: case.batch_level)
def test_vmap_over_batches_equals_one_call_per_batch(case):
    batches = [as_jax(inputs(case, seed=seed)).values() for seed in (0, 1)]
    together = jax.vmap(case)(*map(jnp.stack, zip(*batches, strict=True)))
    np.testing.assert_allclose(together, [case(*batch) for batch in batches], **CLOSE)


@law(lambda case: bool(case.scalars))
def test_vmap_over_scalars_equals_one_call_per_value(case):
    arrays = as_jax(inputs(case)).values()
    scalars = {name: jnp.array([value, 1.2 * value]) for name, value in case.scalars.items()}
    together = jax.jit(jax.vmap(lambda scalars: case(*arrays, **scalars)))(scalars)
    single = [case(*arrays, **{name: float(value[i]) for name, value in scalars.items()}) for i in range(2)]
    np.testing.assert_allclose(together, single, **CLOSE)


@law()
def test_permuting_pairs_permutes_losses(case):
    arrays = as_jax(inputs(case))
    order = np.random.default_rng(1).permutation(NUM_PAIRS)
    permuted = case(*(array[order] for array in arrays.values()))
    np.testing.assert_allclose(permuted, case(*arrays.values())[order], **CLOSE)


@law()
def test_batch_of_no_pairs_gives_no_losses(case):
    assert jax.eval_shape(case, *(jnp.zeros(0) for _ in case.arrays)).shape == (0,)


# Extremes


def corners(case: Case, *nats: float) -> dict[str, jax.Array]:
    """Every combination of two log-probabilities."""
    combinations = np.array(list(itertools.product(nats, repeat=len(case.logps))))
    rows = np.resize(combinations, (NUM_PAIRS, len(case.logps)))
    return as_jax(inputs(case) | {case.arrays[i]: rows[:, i] for i in case.logps})


def assert_finite(case: Case, arrays: dict[str, jax.Array]) -> None:
    assert np.isfinite(case(*arrays.values())).all()
    assert np.isfinite(np.stack(gradients(case, arrays))).all()


@law()
def test_value_and_gradient_are_finite_at_1e4_nats(case):
    assert_finite(case, corners(case, 0.0, -1e4))


@law()
def test_value_and_gradient_are_finite_for_almost_certain_responses(case):
    assert_finite(case, corners(case, -1e-20, -1e-30))


@law(lambda case: bool(set(LENGTHS) & set(case.arrays)))
def test_value_and_gradient_are_finite_at_1e4_nats_per_token(case):
    arrays = corners(case, 0.0, -1e4)
    assert_finite(case, arrays | {name: jnp.ones_like(arrays[name]) for name in LENGTHS if name in arrays})


@law()
def test_value_and_gradient_are_finite_for_fully_masked_rows(case):
    empty = {name: jnp.zeros(NUM_PAIRS) for name in case.arrays if name in (*ALL_LOGPS, *LENGTHS)}
    assert_finite(case, as_jax(inputs(case)) | empty)


# Gradients flow where they should


def direction(case: Case, arrays: dict[str, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """How fast the loss falls as the chosen response rises and as the rejected one falls, per pair."""
    chosen, rejected = gradients(case, arrays)[:2]
    return -np.asarray(chosen), np.asarray(rejected)


@law(lambda case: case.direction == "everywhere" and not case.unpaired)
def test_gradient_raises_the_chosen_and_lowers_the_rejected_response(case):
    chosen, rejected = direction(case, as_jax(inputs(case)))
    assert (chosen > 0).all()
    assert (rejected > 0).all()


@law(lambda case: case.direction == "weakly")
def test_gradient_never_lowers_the_chosen_nor_raises_the_rejected_response(case):
    chosen, rejected = direction(case, as_jax(inputs(case)))
    assert (chosen >= 0).all()
    assert (rejected >= 0).all()
    assert (chosen + rejected).any()


@law(lambda case: case.direction == "at the start")
def test_gradient_widens_the_gap_where_the_policy_is_the_reference(case):
    arrays = inputs(case)
    start = {f"policy_{role}_logps": arrays[f"reference_{role}_logps"] for role in ("chosen", "rejected")}
    chosen, rejected = direction(case, as_jax(arrays | start))
    assert (chosen >= 0).all()
    assert (rejected > 0).all()


@law(lambda case: case.direction == "nowhere")
def test_gradient_points_both_ways(case):
    arrays = inputs(case)
    for role in ("chosen", "rejected"):  # half of the pairs at the start
        arrays[f"policy_{role}_logps"][::2] = arrays[f"reference_{role}_logps"][::2]
    chosen, rejected = direction(case, as_jax(arrays))
    assert (chosen > 0).any()
    assert (chosen < 0).any()
    np.testing.assert_allclose(chosen, rejected, **CLOSE)


@law(lambda case: case.unpaired)
def test_gradient_raises_desirable_and_lowers_undesirable_responses(case):
    arrays = as_jax(inputs(case))
    slope = gradients(case, arrays)[0]
    np.testing.assert_array_equal(slope < 0, arrays.get("desirable", jnp.ones(NUM_PAIRS)) > 0)
    assert (slope != 0).all()


def argument_gradients(case: Case) -> dict[str, jax.Array]:
    """Gradient of the summed loss by every argument, arrays and scalars, by name."""
    scalars = {name: jnp.float32(value) for name, value in case.scalars.items()}

    def total(arguments: dict[str, jax.Array]) -> jax.Array:
        arrays = [arguments[name] for name in case.arrays]
        return case.loss(*arrays, **{name: arguments[name] for name in scalars}).sum()

    return jax.grad(total)(as_jax(inputs(case)) | scalars)


@law(lambda case: bool(case.constants))
def test_no_gradient_flows_into_constants(case):
    slopes = argument_gradients(case)
    for name in case.constants:
        np.testing.assert_array_equal(slopes[name], np.zeros_like(slopes[name]), err_msg=name)


@law()
def test_gradient_flows_into_everything_else(case):
    slopes = argument_gradients(case)
    assert [name for name in slopes if name not in case.constants and not slopes[name].any()] == []


@law()
def test_every_argument_changes_the_loss(case):
    arrays = as_jax(inputs(case))
    before = case(*arrays.values())
    for name, array in arrays.items():
        changed = 1.0 - array if name in FLAGS else array + 1.0
        assert (case(*(arrays | {name: changed}).values()) != before).any(), name
    for name, value in case.scalars.items():
        assert (case(*arrays.values(), **{name: 1.2 * value}) != before).any(), name


# Shapes, numbers, types


@law()
def test_mismatched_shape_raises_and_names_the_argument(case):
    for wrong in case.arrays:
        arrays = as_jax(inputs(case)) | {wrong: jnp.ones((NUM_PAIRS, 1))}
        # A first argument sets the shape, so the message names the one that differs from it.
        named = wrong if wrong != case.arrays[0] else case.arrays[1]
        with pytest.raises(ValueError, match=rf"^{named} has shape .*, expected ") as error:
            case(*arrays.values())
        assert f"({NUM_PAIRS},)" in str(error.value)
        assert f"({NUM_PAIRS}, 1)" in str(error.value)


@law(lambda case: case.batch_level)
def test_single_pair_without_batch_dimension_raises(case):
    with pytest.raises(ValueError, match=r"shape \(\), expected \[B\]"):
        case(*(jnp.float32(-20.0) for _ in case.arrays))


@law(lambda case: bool(case.scalars))
def test_scalar_of_wrong_shape_raises_and_names_the_argument(case):
    for wrong in case.scalars:
        if wrong == "scale":  # may be one per pair
            continue
        with pytest.raises(
            ValueError, match=rf"^{wrong} has shape \({NUM_PAIRS},\), expected \(\) \(a scalar\)"
        ):
            case(*as_jax(inputs(case)).values(), **{wrong: jnp.ones(NUM_PAIRS)})


@law(lambda case: bool(case.scalars))
def test_senseless_scalar_raises_and_names_the_argument(case):
    senseless = {"beta": (0.0, -0.1)} | case.refused
    for wrong in case.scalars:
        for value in (*senseless.get(wrong, ()), np.nan, np.inf, -np.inf):
            with pytest.raises(ValueError, match=rf"^{wrong}={value} must be "):
                case(*as_jax(inputs(case)).values(), **{wrong: value})


@law()
def test_half_precision_is_computed_in_float32(case):
    for dtype in (jnp.bfloat16, jnp.float16):
        halves = as_jax(inputs(case), dtype)
        value = case(*halves.values())
        assert value.dtype == jnp.float32
        widened = (array.astype(jnp.float32) for array in halves.values())
        np.testing.assert_array_equal(value, case(*widened))


@law()
def test_numpy_arrays_are_taken_as_they_are(case):
    arrays = inputs(case)
    value = case(*arrays.values())
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, case(*as_jax(arrays).values()))


@law(lambda case: bool({*FLAGS, *LENGTHS} & set(case.arrays)))
def test_flags_and_lengths_may_be_integers_and_flags_bool(case):
    arrays = inputs(case)
    expected = case(*as_jax(arrays).values())
    for kinds, dtype in [((*FLAGS, *LENGTHS), np.int32), (FLAGS, np.bool_)]:
        cast = {name: arrays[name].astype(dtype) for name in case.arrays if name in kinds}
        np.testing.assert_array_equal(case(*(as_jax(arrays) | cast).values()), expected)


def test_first_row_of_an_unpaired_case_is_the_chosen_response_of_the_fixed_pair():
    assert DESIRABLE["policy_logps"] == PAIR["policy_chosen_logps"]
    assert DESIRABLE["reference_logps"] == PAIR["reference_chosen_logps"]
