"""Schedules at their corners, what weight decay applies to, clipping, dtypes of the moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import ValidationError

from jaxalign.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule

PEAK = 0.5


def rates(schedule: str, num_steps: int, **options) -> list[float]:
    """Learning rate of every update, and one beyond the last."""
    config = OptimizerConfig(learning_rate=PEAK, schedule=schedule, **options)
    function = make_schedule(config, num_steps)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        return [float(function(i)) for i in range(num_steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "options", "middle", "end"),
    [
        ("constant", {}, PEAK, PEAK),
        ("linear", {}, PEAK / 2, 0.0),
        ("linear", {"final_fraction": 0.2}, 0.6 * PEAK, 0.2 * PEAK),
        ("cosine", {}, PEAK / 2, 0.0),
        ("cosine", {"final_fraction": 0.2}, 0.6 * PEAK, 0.2 * PEAK),
    ],
)
def test_schedule_runs_from_the_peak_to_the_final_fraction(schedule, options, middle, end):
    got = rates(schedule, 10, **options)
    assert [got[0], got[5], got[10]] == pytest.approx([PEAK, middle, end], abs=1e-7)
    assert (np.diff(got) <= 0).all()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [1, 2, 4])
def test_warm_up_reaches_the_peak_in_equal_parts(schedule, warmup_steps):
    got = rates(schedule, 12, warmup_steps=warmup_steps)
    expected = [PEAK * (i + 1) / warmup_steps for i in range(warmup_steps)]
    assert got[:warmup_steps] == pytest.approx(expected)
    assert got[warmup_steps] == pytest.approx(PEAK)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_every_update_of_the_run_moves(schedule, warmup_steps):
    assert min(rates(schedule, 12, warmup_steps=warmup_steps)[:12]) > 0


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_warm_up_as_long_as_the_run_raises(warmup_steps):
    message = f"optimizer.warmup_steps={warmup_steps} leaves nothing of 10 steps; lower it"
    with pytest.raises(ValueError, match=message):
        make_schedule(OptimizerConfig(warmup_steps=warmup_steps), 10)


def test_final_fraction_of_a_constant_schedule_is_refused():
    with pytest.raises(ValidationError, match="final_fraction has no effect with schedule: constant"):
        OptimizerConfig(schedule="constant", final_fraction=0.1)


def test_unknown_schedule_names_the_known_ones():
    with pytest.raises(ValidationError, match="'cosine', 'linear' or 'constant'"):
        OptimizerConfig(schedule="polynomial")


def decoder_like() -> dict:
    """The names and depth of the decoder's parameters."""
    return {
        "embed": {"embedding": jnp.ones((4, 2))},
        "layers": {
            "attention": {"query": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}},
            "mlp": {"up": {"lora_a": jnp.ones((3, 2, 1)), "lora_b": jnp.ones((3, 1, 2))}},
            "norm": {"scale": jnp.ones((3, 2))},
        },
        "final_norm": {"scale": jnp.ones(2)},
    }


def updated(params, gradients, **options):
    """Parameters after one update."""
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", **options)
    optimizer = make_optimizer(config, make_schedule(config, 10))

    @jax.jit
    def update(params, gradients):
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
            updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    return update(params, gradients)


def test_weight_decay_spares_scales_and_biases_alone():
    params = decoder_like()
    decayed = updated(params, jax.tree.map(jnp.zeros_like, params), weight_decay=0.1)
    for path, x in jax.tree_util.tree_leaves_with_path(decayed):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        np.testing.assert_allclose(x, 1.0 if name in ("scale", "bias") else 0.99, rtol=1e-6, err_msg=name)


def test_mask_follows_the_leaf_name_and_not_its_parents():
    params = {"scale": {"kernel": 1.0}, "kernel": {"bias": 1.0}}
    assert decay_mask(params) == {"scale": {"kernel": True}, "kernel": {"bias": False}}


def test_gradient_is_clipped_to_the_global_norm():
    config = OptimizerConfig(max_grad_norm=1.0)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"kernel": jnp.zeros(2), "bias": jnp.zeros(1)}
    gradients = {"kernel": jnp.array([30.0, 0.0]), "bias": jnp.array([40.0])}
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(gradients, optimizer.init(params), params)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(first_moment["kernel"], [0.06, 0.0], rtol=1e-5)  # (1 - b1) * 30 / 50
    np.testing.assert_allclose(first_moment["bias"], [0.08], rtol=1e-5)


def test_no_clipping_where_it_is_switched_off():
    config = OptimizerConfig(max_grad_norm=None)
    optimizer = make_optimizer(config, make_schedule(config, 10))
    params = {"kernel": jnp.zeros(2)}
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update({"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["kernel"], [3.0, 4.0], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_first_moment_has_the_configured_dtype(dtype):
    config = OptimizerConfig(moment_dtype=dtype)
    state = make_optimizer(config, make_schedule(config, 10)).init({"kernel": jnp.zeros(2)})
    assert optax.tree.get(state, "mu")["kernel"].dtype == jnp.dtype(dtype)
    assert optax.tree.get(state, "nu")["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("option", "value"),
    [("learning_rate", 0.0), ("b1", 1.0), ("eps", 0.0), ("max_grad_norm", 0.0), ("weight_decay", -0.1)],
)
def test_option_outside_its_range_is_refused(option, value):
    with pytest.raises(ValidationError, match=option):
        OptimizerConfig(**{option: value})
