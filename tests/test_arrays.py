"""What the pure functions take as an array, and how they treat what is no number, on whatever mesh it lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign import adaptive, losses

PAIR = ([-20.0], [-24.0], [-21.0], [-22.5])
RNG = np.random.default_rng(0)
LOGPS = [RNG.normal(-20.0, 5.0, 8).astype(np.float32) for _ in range(4)]


@pytest.mark.parametrize("convert", [list, tuple, np.array, np.float32, jnp.array], ids=lambda f: f.__name__)
def test_lists_and_arrays_of_any_kind_give_the_same(convert):
    loss = losses.dpo_loss(*(convert(x) for x in PAIR), beta=0.1)
    np.testing.assert_allclose(loss, [0.575939], atol=5e-7)


def test_plain_numbers_give_one_number():
    assert losses.dpo_loss(-20.0, -24, np.float16(-21), jnp.float32(-22.5), beta=0.1).shape == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", r"beta='x' is neither a number nor an array of numbers"),
        (None, r"beta=None is neither a number"),
        (1j, r"beta is complex64, expected real numbers"),
    ],
)
def test_what_is_no_real_number_is_refused_by_name(given, message):
    with pytest.raises(TypeError, match=message):
        losses.dpo_loss(*PAIR, beta=given)


def test_complex_log_probs_are_refused_by_name():
    with pytest.raises(TypeError, match="reference_chosen_logps is complex64, expected real numbers"):
        losses.dpo_loss(PAIR[0], PAIR[1], np.array([1j], np.complex64), PAIR[3], beta=0.1)


def test_broken_constants_stay_visible():
    zero = np.zeros(3, np.float32)
    broken = np.array([np.nan, 1.0, 0.0], np.float32)
    values = [
        losses.madpo_loss(zero, zero, zero, zero, broken, beta=0.1),
        losses.kto_loss(zero, zero, broken, beta=0.1, kl=0.0),
        losses.bco_loss(zero, zero, broken, beta=0.1),
        losses.apo_zero_unpaired_loss(zero, zero, broken, beta=0.1),
    ]
    for value in values:
        np.testing.assert_array_equal(np.isnan(value), [True, False, False])


def test_a_pair_belongs_to_a_category_only_above_zero():
    categories = np.array([[np.nan, -1.0], [1.0, 0.0], [0.5, 1.0]], np.float32)
    margins = adaptive.pair_margins(np.array([1.0, 2.0], np.float32), categories, reduce="sum")
    np.testing.assert_array_equal(margins, [0.0, 1.0, 3.0])
    stats = adaptive.category_stats(np.ones(3), categories, np.ones(3))
    np.testing.assert_array_equal(stats.pairs, [2.0, 1.0])


@pytest.fixture
def explicit():
    """A mesh whose axes are part of the types of arrays, as `jax.make_mesh` makes it by default."""
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))


def spread(mesh, *arrays):
    return [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in arrays]


@pytest.mark.parametrize("loss", [losses.aot_loss, losses.aot_unpaired_loss], ids=["aot", "aot_unpaired"])
def test_losses_that_sort_take_arrays_spread_over_explicit_axes(explicit, loss):
    def total(*logps):
        return loss(*logps, beta=0.1).sum()

    np.testing.assert_allclose(loss(*spread(explicit, *LOGPS), beta=0.1), loss(*LOGPS, beta=0.1), rtol=1e-6)
    with jax.set_mesh(explicit):
        gradient = jax.jit(jax.grad(total))(*spread(explicit, *LOGPS))
    np.testing.assert_allclose(gradient, jax.grad(total)(*LOGPS), rtol=1e-5)


def test_pairs_are_selected_alike_when_spread_over_explicit_axes(explicit):
    config = adaptive.BetaDpoConfig(beta=0.1, alpha=0.5)
    rule = adaptive.beta_dpo_rule(config)
    gap, weight = LOGPS[0] - LOGPS[1], np.ones(8, np.float32)
    value = rule.value(rule.update(adaptive.gap_stats(gap, weight), rule.init()))

    def select(gap, weight):
        return adaptive.beta_dpo_selection(config, value, gap, weight, jax.random.key(0))

    beta, keep = jax.jit(select)(*spread(explicit, gap, weight))
    expected_beta, expected_keep = select(gap, weight)
    np.testing.assert_array_equal(keep, expected_keep)
    np.testing.assert_allclose(beta, expected_beta, rtol=1e-6)


def test_gaps_of_several_batches_at_once_are_refused():
    config = adaptive.BetaDpoConfig(beta=0.1, alpha=0.5)
    value = adaptive.beta_dpo_rule(config).value(adaptive.beta_dpo_rule(config).init())
    with pytest.raises(ValueError, match=r"gap has shape \(2, 4\), expected \[B\]"):
        adaptive.beta_dpo_selection(config, value, np.ones((2, 4)), np.ones((2, 4)), jax.random.key(0))
