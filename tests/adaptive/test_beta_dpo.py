"""Beta-DPO: which pairs are kept, with which probability, and how beta follows the gaps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign.adaptive import BetaDpoConfig, BetaDpoValue, beta_dpo_rule, beta_dpo_selection, gap_stats
from tests.reference import adaptive as reference

CONFIG = BetaDpoConfig(beta=0.1, alpha=0.6)
SEEN = BetaDpoValue(mean=jnp.float32(0.5), std=jnp.float32(1.0), seen=jnp.array(True))
UNSEEN = BetaDpoValue(mean=jnp.float32(0.0), std=jnp.float32(0.0), seen=jnp.array(False))
GAP = jnp.asarray(np.random.default_rng(0).normal(0.5, 1.0, 16), jnp.float32)
ONES = jnp.ones(16)
KEY = jax.random.key(0)
jitted = jax.jit(beta_dpo_selection, static_argnums=0)


def select(config=CONFIG, value=SEEN, gap=GAP, weight=ONES, key=KEY):
    return jitted(config, value, gap, weight, key)


def frequencies(config, value, gap, weight, num_draws: int = 4000) -> np.ndarray:
    """How often each pair is kept over many keys."""
    keys = jax.random.split(jax.random.key(1), num_draws)
    return np.asarray(jax.vmap(lambda key: select(config, value, gap, weight, key)[1])(keys)).mean(axis=0)


def assert_frequencies(observed, expected, num_draws: int = 4000):
    # Five standard errors: with a fixed seed this either always holds or never.
    error = np.sqrt(expected * (1 - expected) / num_draws)
    np.testing.assert_array_less(np.abs(observed - expected), 5 * error + 1e-6)


@pytest.mark.parametrize("keep_fraction", [0.05, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("num_real", [1, 2, 10, 16])
def test_exactly_the_rounded_share_of_real_pairs_is_kept(keep_fraction, num_real):
    config = dataclasses.replace(CONFIG, keep_fraction=keep_fraction)
    weight = jnp.zeros(16).at[np.random.default_rng(0).permutation(16)[:num_real]].set(1.0)
    for value in (SEEN, UNSEEN):
        _, keep = select(config, value, weight=weight)
        assert keep.sum() == max(1, round(keep_fraction * num_real))
        assert (keep <= weight).all()
        assert set(keep.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("value", [SEEN, UNSEEN], ids=["seen", "unseen"])
@pytest.mark.parametrize("padding", [0.5, jnp.nan, jnp.inf, -1e30])
def test_padding_is_never_kept_and_never_counts_whatever_it_holds(value, padding):
    weight = (jnp.arange(16) % 3 > 0).astype(jnp.float32)
    beta, keep = select(value=value, weight=weight)
    padded = select(value=value, gap=jnp.where(weight > 0, GAP, padding), weight=weight)
    assert (keep[weight == 0] == 0).all()
    np.testing.assert_array_equal(padded[1], keep)
    assert padded[0] == beta


def test_padding_is_not_kept_even_where_all_real_pairs_are_out_of_reach():
    value = dataclasses.replace(SEEN, std=jnp.float32(1e-20))
    for gap in (GAP, 1e18 * GAP, jnp.full(16, jnp.inf)):
        _, keep = select(value=value, gap=gap, weight=(jnp.arange(16) >= 6).astype(jnp.float32))
        assert keep[:6].sum() == 0
        assert keep.sum() == 8


def test_batch_of_padding_keeps_nothing_and_leaves_beta_alone():
    beta, keep = select(weight=jnp.zeros(16))
    assert keep.sum() == 0
    assert beta == np.float32(CONFIG.beta)


def test_same_key_same_mask_and_another_key_another_mask():
    masks = [select(key=jax.random.key(seed))[1].tolist() for seed in (0, 0, 1, 2, 3)]
    assert masks[0] == masks[1]
    assert len({tuple(mask) for mask in masks}) == 4


@pytest.mark.parametrize("value", [SEEN, UNSEEN], ids=["seen", "unseen"])
def test_selection_under_jit_equals_eager(value):
    eager = beta_dpo_selection(CONFIG, value, GAP, ONES, KEY)
    np.testing.assert_array_equal(select(value=value)[1], eager[1])
    np.testing.assert_allclose(select(value=value)[0], eager[0], rtol=1e-6)


def test_legacy_keys_draw_the_same_mask():
    np.testing.assert_array_equal(select(key=jax.random.PRNGKey(0))[1], select(key=jax.random.key(0))[1])


def test_selection_from_global_arrays_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    gap, weight = jax.device_put((GAP, ONES), NamedSharding(mesh, PartitionSpec("data")))
    value, key = jax.device_put((SEEN, KEY), NamedSharding(mesh, PartitionSpec()))
    beta, keep = select(CONFIG, value, gap, weight, key)
    np.testing.assert_array_equal(keep, select()[1])
    np.testing.assert_allclose(beta, select()[0], rtol=1e-6)


def test_selection_inside_shard_map_from_gathered_gaps_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def of_shard(gap, weight):
        gathered = jax.lax.all_gather((gap, weight), "data", tiled=True)
        beta, keep = select(CONFIG, SEEN, *gathered)
        start = jax.lax.axis_index("data") * gap.shape[0]
        return beta[None], jax.lax.dynamic_slice(keep, (start,), gap.shape)

    spec = PartitionSpec("data")
    beta, keep = jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=spec, out_specs=spec))(GAP, ONES)
    np.testing.assert_array_equal(keep, select()[1])
    np.testing.assert_allclose(beta, np.full(8, select()[0]), rtol=1e-6)


def test_permuting_the_pairs_permutes_the_choice_where_chance_does_not_decide():
    gap = jnp.where(jnp.arange(16) % 4 == 0, 60.0, 0.5)  # a quarter of them far out of reach
    config = dataclasses.replace(CONFIG, keep_fraction=0.75)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(select(config, gap=gap)[1], gap < 1)
    np.testing.assert_array_equal(select(config, gap=gap[order])[1], gap[order] < 1)


def test_permuting_the_pairs_permutes_their_probabilities():
    gap, order = jnp.array([0.5, 1.5, 2.0, -0.5]), np.array([2, 0, 3, 1])
    config = dataclasses.replace(CONFIG, keep_fraction=0.5)
    expected = reference.inclusion_probabilities(reference.keep_probabilities(gap, 0.5, 1.0), 2)
    assert_frequencies(frequencies(config, SEEN, gap[order], jnp.ones(4)), expected[order])


@pytest.mark.parametrize("num_kept", [1, 2, 3, 4])
def test_pairs_are_kept_with_the_probabilities_of_drawing_without_replacement(num_kept):
    gap, weight = jnp.array([0.5, 1.5, 2.5, -1.0, 0.0, 9.0]), jnp.array([1, 1, 1, 1, 1, 0])
    config = dataclasses.replace(CONFIG, keep_fraction=num_kept / 5)
    expected = reference.inclusion_probabilities(reference.keep_probabilities(gap[:5], 0.5, 1.0), num_kept)
    observed = frequencies(config, SEEN, gap, weight)
    assert observed[5] == 0
    assert_frequencies(observed[:5], expected)


@pytest.mark.parametrize(
    "value", [UNSEEN, dataclasses.replace(SEEN, std=jnp.float32(0))], ids=["unseen", "no_spread"]
)
def test_pairs_are_kept_uniformly_before_anything_is_known(value):
    config = dataclasses.replace(CONFIG, keep_fraction=0.5)
    observed = frequencies(config, value, jnp.array([0.0, 1.0, 50.0, -50.0]), jnp.ones(4))
    assert_frequencies(observed, np.full(4, 0.5))


def test_beta_equals_the_reference_over_the_kept_pairs():
    for seed in range(5):
        beta, keep = select(key=jax.random.key(seed))
        options = {"beta": CONFIG.beta, "alpha": CONFIG.alpha, "minimum": CONFIG.minimum}
        np.testing.assert_allclose(beta, reference.adapted_beta(GAP, keep, 0.5, **options), rtol=1e-6)


def test_beta_grows_when_the_gaps_exceed_their_running_mean_and_shrinks_when_they_fall_short():
    betas = [float(select(gap=GAP + shift)[0]) for shift in (-0.5, 0.0, 0.5, 1.0)]
    assert (np.diff(betas) > 0).all()
    assert select(gap=jnp.full(16, 0.75))[0] > CONFIG.beta > select(gap=jnp.full(16, 0.25))[0]
    np.testing.assert_allclose(select(gap=jnp.full(16, 0.5))[0], CONFIG.beta, rtol=1e-6)


def test_beta_settles_back_once_the_running_mean_caught_up():
    rule = beta_dpo_rule(CONFIG)
    state, betas = rule.update(gap_stats(GAP, ONES), rule.init()), []
    for _ in range(60):
        beta, _ = select(dataclasses.replace(CONFIG, keep_fraction=1.0), rule.value(state), GAP + 2.0)
        state = rule.update(gap_stats(GAP + 2.0, ONES), state)
        betas.append(float(beta))
    assert (np.diff(betas) <= 1e-7).all()
    np.testing.assert_allclose(betas[0], CONFIG.beta * (1 + 0.6 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(betas[-1], CONFIG.beta, rtol=1e-2)


def test_beta_stops_at_its_minimum():
    assert select(gap=GAP - 100)[0] == np.float32(CONFIG.minimum)


def test_alpha_0_and_nothing_seen_leave_beta_alone():
    assert select(dataclasses.replace(CONFIG, alpha=0.0))[0] == np.float32(CONFIG.beta)
    assert select(value=UNSEEN, gap=GAP + 100)[0] == np.float32(CONFIG.beta)


def test_broken_real_pair_is_kept_and_shows_in_beta():
    beta, keep = select(gap=GAP.at[3].set(jnp.nan))
    assert keep[3] == 1
    assert keep.sum() == 13
    assert np.isnan(beta)


def test_deviation_of_equal_gaps_is_exactly_0():
    rule = beta_dpo_rule(CONFIG)
    for gap in (1.3, -777.7, 1e-6, 0.0):
        for num_pairs in (1, 3, 7, 100):
            equal = jnp.full(num_pairs, gap)
            update = jax.jit(lambda h: rule.update(gap_stats(h, jnp.ones_like(h)), rule.init()))
            assert update(equal).std == 0.0


def test_selection_follows_the_precision_of_the_gaps():
    halves = select(gap=GAP.astype(jnp.bfloat16), weight=ONES.astype(jnp.bfloat16))
    assert halves[0].dtype == halves[1].dtype == jnp.float32
    with jax.enable_x64(True):
        wide = select(gap=jnp.asarray(np.asarray(GAP, np.float64)), weight=jnp.ones(16, jnp.float64))
        assert wide[0].dtype == wide[1].dtype == jnp.float64


def test_no_gradient_into_gaps_or_value():
    gradients = jax.grad(
        lambda h, m, s: sum(x.sum() for x in select(value=BetaDpoValue(m, s, SEEN.seen), gap=h)),
        argnums=(0, 1, 2),
    )(GAP, SEEN.mean, SEEN.std)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_gaps_and_weights_of_two_shapes_raise():
    with pytest.raises(ValueError, match=r"weight has shape \(15,\), expected \(16,\)"):
        select(weight=jnp.ones(15))
    with pytest.raises(ValueError, match=r"weight has shape \(15,\), expected \(16,\)"):
        gap_stats(GAP, jnp.ones(15))
