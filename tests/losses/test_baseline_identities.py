"""Exact relations between the baselines and DPO, SFT and each other: a part turned off leaves the simpler loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses

B = 16
RNG = np.random.default_rng(0)
LOGPS = [jnp.asarray(RNG.uniform(-70.0, -10.0, B), jnp.float32) for _ in range(4)]
POLICY, REFERENCE = LOGPS[:2], LOGPS[2:]
SWAPPED = [LOGPS[i] for i in (1, 0, 3, 2)]
LENGTHS = [jnp.asarray(RNG.integers(4, 40, B)) for _ in range(2)]
SCORES = [jnp.asarray(RNG.uniform(low, low + 2.0, B), jnp.float32) for low in (3.0, 0.0)]
ONE, ZERO = jnp.ones(B), jnp.zeros(B)
BETA = 0.1
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def values_and_gradients(loss, arrays):
    """The loss and the gradients of its sum by all arrays, eager and compiled."""

    def run(*arrays):
        value, pullback = jax.vjp(loss, *arrays)
        return value, *pullback(jnp.ones_like(value))

    return *run(*arrays), *jax.jit(run)(*arrays)


@functools.cache
def values_and_gradients_of_dpo():
    return values_and_gradients(dpo, LOGPS)


def assert_same(loss, expected, arrays=LOGPS):
    is_dpo = expected is dpo and arrays is LOGPS
    right = values_and_gradients_of_dpo() if is_dpo else values_and_gradients(expected, arrays)
    for value, wanted in zip(values_and_gradients(loss, arrays), right, strict=True):
        np.testing.assert_array_equal(value, wanted)


def dpo(*logps):
    return losses.dpo_loss(*logps, beta=BETA)


IS_DPO = {
    "cdpo_without_flips": lambda *x: losses.cdpo_loss(*x, beta=BETA, label_smoothing=0.0),
    "robust_dpo_without_flips": lambda *x: losses.robust_dpo_loss(*x, beta=BETA, label_smoothing=0.0),
    "rpo_without_likelihood": lambda *x: losses.rpo_loss(*x, LENGTHS[0], beta=BETA, alpha=0.0),
    "dpop_without_penalty": lambda *x: losses.dpop_loss(*x, beta=BETA, lam=0.0),
    "r_dpo_without_length_margin": lambda *x: losses.r_dpo_loss(*x, *LENGTHS, beta=BETA, alpha=0.0),
    "r_dpo_of_equal_lengths": lambda *x: losses.r_dpo_loss(*x, LENGTHS[0], LENGTHS[0], beta=BETA, alpha=0.02),
    "sigmoid_norm_of_one_token": lambda *x: losses.sigmoid_norm_loss(*x, ONE, ONE, beta=BETA),
    "odpo_without_offset": lambda *x: losses.odpo_loss(*x, *SCORES, beta=BETA, alpha=0.0),
    "odpo_of_score_gap_one": lambda *x: losses.odpo_loss(*x, ONE, ZERO, beta=BETA, alpha=0.7),
    "madpo_of_a_wrong_reward_model": lambda *x: losses.madpo_loss(*x, -3.0 * ONE, beta=BETA),
    "madpo_of_margin_zero": lambda *x: losses.madpo_loss(*x, ZERO, beta=BETA),
    "modpo_without_margin": lambda *x: losses.modpo_loss(
        *x, *SCORES, beta=BETA, weight=1.0, margin_weight=0.0
    ),
    "group_weight_one": lambda *x: losses.group_dro_loss(*x, ONE, beta=BETA),
    "all_pairs_kept": lambda *x: losses.beta_dpo_loss(*x, ONE, beta=BETA),
}


@pytest.mark.parametrize("loss", IS_DPO.values(), ids=IS_DPO.keys())
def test_part_turned_off_is_dpo_bit_for_bit(loss):
    assert_same(loss, dpo)


@pytest.mark.parametrize("loss", [losses.aot_loss, losses.aot_unpaired_loss])
def test_optimal_transport_of_a_batch_of_one_is_dpo(loss):
    arrays = [x[:, None] for x in LOGPS]
    one_by_one = jax.vmap(lambda *x: loss(*x, beta=BETA))(*arrays)
    np.testing.assert_allclose(one_by_one[:, 0], dpo(*LOGPS), **CLOSE)


def test_optimal_transport_has_the_mean_of_the_sorted_form():
    policy, reference = (jnp.sort(x[0] - x[1]) for x in (POLICY, REFERENCE))
    paired = losses.aot_loss(*LOGPS, beta=BETA)
    np.testing.assert_allclose(
        paired.mean(), -jax.nn.log_sigmoid(BETA * (policy - reference)).mean(), **CLOSE
    )
    chosen, rejected = map(jnp.sort, losses.log_ratios(*LOGPS))
    unpaired = losses.aot_unpaired_loss(*LOGPS, beta=BETA)
    np.testing.assert_allclose(
        unpaired.mean(), -jax.nn.log_sigmoid(BETA * (chosen - rejected)).mean(), **CLOSE
    )


def test_optimal_transport_ranks_ties_by_position_and_keeps_the_mean():
    tied = [jnp.ones(B), jnp.zeros(B), *REFERENCE]  # equal policy gaps, unequal reference gaps
    loss = losses.aot_loss(*tied, beta=BETA)
    ranked = jnp.sort(REFERENCE[0] - REFERENCE[1])
    np.testing.assert_allclose(loss, -jax.nn.log_sigmoid(BETA * (1.0 - ranked)), **CLOSE)
    backwards = losses.aot_loss(*(x[::-1] for x in tied), beta=BETA)
    np.testing.assert_array_equal(backwards, loss)


def test_mask_times_pairs_over_kept_pairs_makes_the_mean_that_of_the_kept():
    mask = (jnp.arange(B) % 4 > 0).astype(jnp.float32)
    loss = losses.beta_dpo_loss(*LOGPS, mask * B / mask.sum(), beta=BETA)
    np.testing.assert_allclose(loss.mean(), dpo(*LOGPS)[mask > 0].mean(), **CLOSE)


def test_unpaired_optimal_transport_forgets_who_was_whose_partner():
    other_partners = [LOGPS[0], LOGPS[1][::-1], LOGPS[2], LOGPS[3][::-1]]
    loss = losses.aot_unpaired_loss(*LOGPS, beta=BETA)
    np.testing.assert_array_equal(losses.aot_unpaired_loss(*other_partners, beta=BETA), loss)


def test_dpop_penalises_only_where_the_chosen_response_lost_probability():
    chosen, _ = losses.log_ratios(*LOGPS)
    excess = losses.dpop_loss(*LOGPS, beta=BETA, lam=5.0) - dpo(*LOGPS)
    np.testing.assert_array_equal(excess > 0, chosen < 0)
    np.testing.assert_array_equal(excess[chosen >= 0], 0.0)


def test_bounded_dpo_tends_to_dpo_as_the_mixture_tends_to_the_policy():
    bounded = losses.bounded_dpo_loss(*LOGPS, beta=BETA, lam=1.0 - 1e-7)
    near = losses.log_ratios(*LOGPS)[1] > -5.0  # further down the mixture still is the reference
    np.testing.assert_allclose(bounded[near], dpo(*LOGPS)[near], atol=1e-5)


def test_bounded_dpo_wins_no_more_once_the_rejected_response_is_gone():
    gone = [losses.bounded_dpo_loss(ZERO, x * ONE, ZERO, ZERO, beta=BETA, lam=0.5) for x in (-1e2, -1e4)]
    np.testing.assert_array_equal(gone[0], gone[1])


def test_robust_dpo_is_unbiased_under_label_flips():
    kept, flipped = (losses.robust_dpo_loss(*x, beta=BETA, label_smoothing=0.2) for x in (LOGPS, SWAPPED))
    np.testing.assert_allclose(0.8 * kept + 0.2 * flipped, dpo(*LOGPS), **CLOSE)


def test_cdpo_is_the_mean_of_dpo_over_label_flips():
    cdpo = losses.cdpo_loss(*LOGPS, beta=BETA, label_smoothing=0.2)
    np.testing.assert_allclose(cdpo, 0.8 * dpo(*LOGPS) + 0.2 * dpo(*SWAPPED), **CLOSE)


def test_exo_is_zero_where_the_policy_has_the_smoothed_preference():
    gap = jnp.log(0.9 / 0.1)[None] / BETA
    zero = jnp.zeros(1)
    loss, slope = jax.value_and_grad(
        lambda x: losses.exo_loss(x, zero, zero, zero, beta=BETA, label_smoothing=0.1).sum()
    )(gap)
    np.testing.assert_allclose([loss, slope[0]], 0.0, atol=1e-6)


def test_ipo_average_of_one_token_is_ipo():
    assert_same(
        lambda *x: losses.ipo_average_loss(*x, ONE, ONE, beta=BETA), lambda *x: losses.ipo_loss(*x, beta=BETA)
    )


def test_bfpo_of_two_safe_responses_is_ipo():
    assert_same(
        lambda *x: losses.bfpo_loss(*x, ZERO, ZERO, beta=BETA), lambda *x: losses.ipo_loss(*x, beta=BETA)
    )


@pytest.mark.parametrize(("unsafe", "target"), [((0, 0), 0.5), ((0, 1), 1.0), ((1, 0), -1.0), ((1, 1), -0.5)])
def test_bfpo_is_zero_at_the_target_of_the_safety_table(unsafe, target):
    flags = [jnp.array([x]) for x in unsafe]
    zero = jnp.zeros(1)
    loss = losses.bfpo_loss(jnp.array([target / 0.5]), zero, zero, zero, *flags, beta=0.5)
    np.testing.assert_array_equal(loss, 0.0)


def test_cal_dpo_is_dpo_with_beta_one_plus_half_of_sppo():
    parts = losses.dpo_loss(*LOGPS, beta=1.0) + 0.5 * losses.sppo_loss(*LOGPS, beta=BETA)
    np.testing.assert_allclose(losses.cal_dpo_loss(*LOGPS, beta=BETA), parts, **CLOSE)


def test_discopop_is_logistic_below_and_exponential_above_a_gap_of_zero():
    chosen, rejected = losses.log_ratios(*LOGPS)
    gap = BETA * (chosen - rejected)
    expected = jnp.where(gap > 0, jnp.exp(-gap), dpo(*LOGPS))
    clear = jnp.abs(gap) > 1.0  # away from the transition
    loss = losses.discopop_loss(*LOGPS, beta=BETA, temperature=0.05)
    assert clear.mean() > 0.5
    np.testing.assert_allclose(loss[clear], expected[clear], **CLOSE)


def test_rpo_adds_the_sft_loss_of_the_chosen_response():
    sft = losses.sft_loss(LOGPS[0], LENGTHS[0])
    rpo = losses.rpo_loss(*LOGPS, LENGTHS[0], beta=BETA, alpha=0.5)
    np.testing.assert_allclose(rpo, dpo(*LOGPS) + 0.5 * sft, **CLOSE)


def test_cpo_is_dpo_with_a_uniform_reference_plus_the_sft_loss():
    sft = losses.sft_loss(LOGPS[0], LENGTHS[0])
    cpo = losses.cpo_loss(*POLICY, LENGTHS[0], beta=BETA, alpha=0.5)
    np.testing.assert_allclose(cpo, dpo(*POLICY, -40.0 * ONE, -40.0 * ONE) + 0.5 * sft, **CLOSE)


def test_orpo_without_odds_ratio_is_sft_of_the_chosen_response():
    assert_same(
        lambda *x: losses.orpo_loss(*x, *LENGTHS, lam=0.0),
        lambda *x: losses.sft_loss(x[0], LENGTHS[0]) + 0.0 * x[1],
        POLICY,
    )


def test_alphapo_is_simpo_at_alpha_zero_and_tends_to_it():
    scalars = {"beta": 2.5, "gamma": 1.375}
    simpo = losses.simpo_loss(*POLICY, *LENGTHS, **scalars)
    at_zero = losses.alphapo_loss(*POLICY, *LENGTHS, **scalars, alpha=0.0)
    np.testing.assert_allclose(at_zero, simpo, **CLOSE)
    for sign in (1.0, -1.0):
        alphapo = losses.alphapo_loss(*POLICY, *LENGTHS, **scalars, alpha=sign * 1e-5)
        np.testing.assert_allclose(alphapo, simpo, rtol=2e-3, atol=1e-4)


def test_simpo_without_target_on_one_token_is_cpo_without_likelihood():
    simpo = losses.simpo_loss(*POLICY, ONE, ONE, beta=BETA, gamma=0.0)
    np.testing.assert_array_equal(simpo, losses.cpo_loss(*POLICY, ONE, beta=BETA, alpha=0.0))


@pytest.mark.parametrize(
    ("paired", "single"),
    [
        (losses.apo_zero_loss, losses.apo_zero_unpaired_loss),
        (losses.bco_pair_loss, losses.bco_loss),
        (lambda *x, beta: losses.bco_pair_loss(*x, beta=beta, reward_shift=0.3),
         lambda *x, beta: losses.bco_loss(*x, beta=beta, reward_shift=0.3)),
    ],
    ids=["apo_zero", "bco", "bco_with_shift"],
)  # fmt: skip
def test_pair_is_the_sum_of_a_desirable_and_an_undesirable_response(paired, single):
    chosen = single(POLICY[0], REFERENCE[0], ONE, beta=BETA)
    rejected = single(POLICY[1], REFERENCE[1], ZERO, beta=BETA)
    np.testing.assert_allclose(paired(*LOGPS, beta=BETA), chosen + rejected, **CLOSE)


@pytest.mark.parametrize("kl", [0.0, -0.5])
def test_kto_without_divergence_is_apo_zero_of_single_responses(kl):
    desirable = (jnp.arange(B) % 2).astype(bool)
    assert_same(
        lambda *x: losses.kto_loss(*x, desirable, beta=BETA, kl=kl),
        lambda *x: losses.apo_zero_unpaired_loss(*x, desirable, beta=BETA),
        [POLICY[0], REFERENCE[0]],
    )


def test_kto_weighs_desirable_and_undesirable_responses_apart():
    desirable = (jnp.arange(B) % 2).astype(jnp.float32)
    arrays = POLICY[0], REFERENCE[0], desirable
    weighted = losses.kto_loss(*arrays, beta=BETA, kl=0.2, desirable_weight=2.0, undesirable_weight=0.0)
    plain = losses.kto_loss(*arrays, beta=BETA, kl=0.2)
    np.testing.assert_allclose(weighted, 2.0 * desirable * plain, **CLOSE)


def test_nca_is_least_at_a_chosen_reward_of_log_2():
    zero = jnp.zeros(1)
    slope = jax.grad(lambda x: losses.nca_loss(x, zero, zero, zero, beta=0.5).sum())(jnp.log(2.0)[None] / 0.5)
    np.testing.assert_allclose(slope, 0.0, atol=1e-7)


def test_odpo_of_equal_scores_is_zero_and_of_swapped_scores_nan():
    value, slope = jax.value_and_grad(
        lambda x: losses.odpo_loss(x, *LOGPS[1:], ONE, ONE, beta=BETA, alpha=1.0).sum()
    )(LOGPS[0])
    assert value == 0.0
    np.testing.assert_array_equal(slope, 0.0)
    assert jnp.isnan(losses.odpo_loss(*LOGPS, ZERO, ONE, beta=BETA, alpha=1.0)).all()


def test_madpo_weight_falls_beyond_tau_and_rises_within():
    margins = jnp.array([-1.0, 0.0, 1.0, 2.0, 4.0, 30.0])
    logps = [x[:6] for x in LOGPS]
    weight = losses.madpo_loss(*logps, margins, beta=BETA) / dpo(*logps)
    np.testing.assert_array_equal(np.sign(weight[:5].round(6) - 1.0), [-1, 0, 1, 0, -1])
    np.testing.assert_allclose(weight[5], 1.0, atol=1e-6)  # both sigmoids are 1


def test_modpo_of_two_equal_objectives_asks_for_the_gap_that_the_margin_leaves():
    margins = [4.0 * ONE, ONE]
    loss = losses.modpo_loss(*LOGPS, *margins, beta=BETA, weight=0.5, margin_weight=0.5)
    chosen, rejected = losses.log_ratios(*LOGPS)
    np.testing.assert_allclose(loss, -jax.nn.log_sigmoid(2 * BETA * (chosen - rejected) - 3.0), **CLOSE)


def test_empty_response_has_an_average_of_zero():
    np.testing.assert_array_equal(losses.sft_loss(jnp.zeros(3), jnp.array([0, 0, 0])), 0.0)
