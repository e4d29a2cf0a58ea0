"""Where TRL 1.16, run by TRL itself, computes something else than ours: each difference pinned down.

docs/trl.md tells them in words.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import adaptive, losses
from tests.losses import trl_losses
from tests.losses.cases import LOGPS
from tests.losses.trl_cases import KL_LOGPS, odds_ratio, random_pairs, responses_of

pytestmark = trl_losses.NEEDED
LENGTHS = ("chosen_length", "rejected_length")
POLICY_AND_LENGTHS = (*LOGPS[:2], *LENGTHS)
RESPONSES = ("policy_logps", "reference_logps", "desirable")


def call(loss, arrays, names=LOGPS, dtype=jnp.float64, **scalars) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(loss(*(jnp.asarray(arrays[name], dtype) for name in names), **scalars))


def pairs_of(chosen: float, rejected: float, length: int = 1) -> dict[str, np.ndarray]:
    """One pair of float32 log-probs under the policy; the reference gives 0 and both have the same length."""
    values = dict(zip(LOGPS, (chosen, rejected, 0.0, 0.0), strict=True))
    return {name: np.array([value], np.float32) for name, value in values.items()} | {
        name: np.array([length]) for name in LENGTHS
    }


# DPOTrainer


def test_ipo_of_trl_averages_over_tokens_and_the_paper_sums():
    pairs = random_pairs()
    theirs = trl_losses.each_alone(trl_losses.dpo, pairs, "ipo", beta=0.1).value
    of_paper = call(losses.ipo_loss, pairs, beta=0.1)
    assert (np.abs(theirs - of_paper) > 0.1).all()
    one_token = pairs | {name: np.ones(16, int) for name in LENGTHS}
    theirs = trl_losses.each_alone(trl_losses.dpo, one_token, "ipo", beta=0.1).value
    np.testing.assert_allclose(of_paper, theirs, rtol=1e-13)


def test_sft_of_trl_averages_over_the_tokens_of_a_batch_and_ours_over_responses():
    pairs = random_pairs()
    theirs = trl_losses.dpo(pairs, "sft", beta=0.1).value
    ours = call(losses.sft_loss, pairs, ("policy_chosen_logps", "chosen_length"))
    np.testing.assert_allclose(np.average(ours, weights=pairs["chosen_length"]), theirs, rtol=1e-13)
    assert abs(ours.mean() - theirs) > 0.1 * theirs


def test_sft_of_trl_is_nan_for_a_response_without_tokens_and_ours_is_0():
    pairs = pairs_of(0.0, -3.0, length=0)
    assert np.isnan(trl_losses.dpo(pairs, "sft", beta=0.1).value)
    assert call(losses.sft_loss, pairs, ("policy_chosen_logps", "chosen_length")) == 0


def test_sigmoid_of_trl_ignores_label_smoothing_and_cdpo_has_it():
    pairs = random_pairs()
    theirs = trl_losses.each_alone(trl_losses.dpo, pairs, "sigmoid", beta=0.1, label_smoothing=0.1).value
    np.testing.assert_allclose(call(losses.dpo_loss, pairs, beta=0.1), theirs, rtol=1e-13)
    assert (call(losses.cdpo_loss, pairs, beta=0.1, label_smoothing=0.1) != theirs).all()


@pytest.mark.parametrize(
    ("loss_type", "loss"), [("aot", losses.aot_loss), ("aot_unpaired", losses.aot_unpaired_loss)]
)
def test_aot_of_trl_can_smooth_labels_and_ours_never_does(loss_type, loss):
    pairs = random_pairs()
    smoothed = trl_losses.dpo(pairs, loss_type, beta=0.1, label_smoothing=0.1).value
    assert abs(smoothed - call(loss, pairs, beta=0.1).mean()) > 0.01


def test_discopop_of_trl_is_nan_in_float32_from_a_gap_of_minus_89_and_ours_is_finite():
    pairs = pairs_of(-1000.0, -100.0)
    theirs = trl_losses.dpo(pairs, "discopop", beta=0.1)
    assert np.isnan(theirs.value)
    assert np.isnan(theirs.gradient).all()
    np.testing.assert_allclose(call(losses.discopop_loss, pairs, dtype=jnp.float32, beta=0.1), [90.0])


@pytest.mark.parametrize(
    ("loss_type", "loss", "pair", "theirs", "ours"),
    [  # a tail of s(-20) is lost where TRL computes it as 1 - s(20)
        ("apo_zero", losses.apo_zero_loss, (200.0, -200.0), 1, 2),
        ("apo_down", losses.apo_down_loss, (-200.0, -400.0), 1, 2),
    ],
)
def test_apo_of_trl_loses_a_tail_in_float32_and_ours_keeps_it(loss_type, loss, pair, theirs, ours):
    pairs, tail = pairs_of(*pair), 1 / (1 + np.exp(20.0))
    value = trl_losses.dpo(pairs, loss_type, beta=0.1).value
    np.testing.assert_allclose(value, theirs * tail, rtol=1e-5)
    np.testing.assert_allclose(call(loss, pairs, dtype=jnp.float32, beta=0.1), [ours * tail], rtol=1e-5)


# CPOTrainer and ORPOTrainer


def token_batch(
    num_prompt: int, chosen_length: list[int], rejected_length: list[int]
) -> dict[str, np.ndarray]:
    """Token ids, masks and labels of TRL's collator: the labels of prompt and padding are -100."""
    rng, num_tokens = np.random.default_rng(0), num_prompt + max(chosen_length + rejected_length)
    batch = {}
    for role, lengths in (("chosen", chosen_length), ("rejected", rejected_length)):
        position = np.broadcast_to(np.arange(num_tokens), (len(lengths), num_tokens))
        real = position < num_prompt + np.array(lengths)[:, None]
        ids = np.where(real, rng.integers(1, 7, position.shape), 0)
        batch[f"{role}_input_ids"], batch[f"{role}_attention_mask"] = ids, real.astype(int)
        batch[f"{role}_labels"] = np.where(real & (position >= num_prompt), ids, -100)
    return batch


def logits_for(batch: dict[str, np.ndarray]) -> np.ndarray:
    shape = batch["chosen_labels"].shape
    return np.random.default_rng(1).normal(size=(2 * shape[0], shape[1], 7))


def our_step(loss, logits, batch) -> tuple[np.ndarray, np.ndarray]:
    """Our loss of summed log-probs and lengths, and its gradient in the logits."""
    labels = np.concatenate([batch["chosen_labels"], batch["rejected_labels"]])[:, 1:]
    lengths = (labels != -100).sum(axis=1).reshape(2, -1)

    def of_logits(logits):
        tokens = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), np.maximum(labels, 0)[..., None], -1)
        return loss(*jnp.where(labels != -100, tokens[..., 0], 0.0).sum(axis=1).reshape(2, -1), *lengths)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(of_logits))(jnp.asarray(logits)))


def test_whole_step_of_cpo_equals_ours_from_the_logits_on():
    batch = token_batch(3, [4, 4], [2, 5])
    logits = logits_for(batch)
    theirs = trl_losses.cpo_step(logits, batch, loss_type="sigmoid", beta=0.1, cpo_alpha=0.5)

    def cpo(chosen, rejected, chosen_length, _):
        return losses.cpo_loss(chosen, rejected, chosen_length, beta=0.1, alpha=0.5).mean()

    value, gradient = our_step(cpo, logits, batch)
    np.testing.assert_allclose(value, theirs.value, rtol=1e-13)
    np.testing.assert_allclose(gradient, theirs.gradient, atol=1e-15)


def test_likelihood_of_cpo_averages_over_the_tokens_of_a_batch_and_ours_over_responses():
    batch = token_batch(3, [2, 6], [2, 5])
    logits = logits_for(batch)
    theirs = trl_losses.cpo_step(logits, batch, loss_type="sigmoid", beta=0.1, cpo_alpha=0.5).value

    def of_tokens(chosen, rejected, chosen_length, _):
        preference = losses.cpo_loss(chosen, rejected, chosen_length, beta=0.1, alpha=0.0)
        return preference.mean() - 0.5 * chosen.sum() / float(chosen_length.sum())

    def of_responses(chosen, rejected, chosen_length, _):
        return losses.cpo_loss(chosen, rejected, chosen_length, beta=0.1, alpha=0.5).mean()

    np.testing.assert_allclose(our_step(of_tokens, logits, batch)[0], theirs, rtol=1e-13)
    assert abs(our_step(of_responses, logits, batch)[0] - theirs) > 1e-3


def test_simpo_of_trl_adds_a_likelihood_unless_it_is_turned_off():
    from trl.experimental.cpo import CPOConfig

    batch, default = token_batch(3, [4, 4], [2, 5]), CPOConfig.__dataclass_fields__["cpo_alpha"].default
    logits, simpo = logits_for(batch), {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.375}
    without = trl_losses.cpo_step(logits, batch, cpo_alpha=0.0, **simpo).value
    by_default = trl_losses.cpo_step(logits, batch, cpo_alpha=default, **simpo).value

    def ours(*arrays):
        return losses.simpo_loss(*arrays, beta=2.5, gamma=1.375).mean()

    def likelihood(chosen, _, chosen_length, __):
        return losses.sft_loss(chosen, chosen_length).mean()

    np.testing.assert_allclose(our_step(ours, logits, batch)[0], without, rtol=1e-13)
    np.testing.assert_allclose(our_step(likelihood, logits, batch)[0], by_default - without, rtol=1e-12)


def test_average_of_trl_is_nan_for_a_response_without_tokens_and_ours_is_0():
    batch = token_batch(3, [4, 4], [2, 0])
    logits, scalars = logits_for(batch), {"beta": 2.5}
    assert np.isnan(trl_losses.cpo_step(logits, batch, loss_type="simpo", **scalars).value)
    value, gradient = our_step(
        lambda *arrays: losses.simpo_loss(*arrays, gamma=0.0, **scalars).mean(), logits, batch
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_alphapo_of_trl_is_nan_in_float32_at_minus_104_nats_and_ours_is_finite():
    pairs = pairs_of(-104.0, -105.0)
    settings = {"beta": 2.5, "simpo_gamma": 0.0, "alpha": 0.25}
    assert np.isnan(trl_losses.cpo(pairs, "simpo", **settings).value)
    ours = call(losses.alphapo_loss, pairs, POLICY_AND_LENGTHS, jnp.float32, beta=2.5, gamma=0.0, alpha=0.25)
    assert np.isfinite(ours)


def orpo(*arrays):
    return losses.orpo_loss(*arrays, lam=0.1).mean()


def test_whole_step_of_orpo_equals_ours_where_no_prompt_token_is_predicted():
    batch = token_batch(1, [4, 4], [2, 5])
    logits = logits_for(batch)
    theirs = trl_losses.orpo_step(logits, batch, beta=0.1)
    value, gradient = our_step(orpo, logits, batch)
    np.testing.assert_allclose(value, theirs.value, rtol=1e-7)
    np.testing.assert_allclose(gradient, theirs.gradient, atol=1e-8)


def test_likelihood_of_orpo_takes_in_the_prompt_and_ours_the_response_alone():
    batch = token_batch(3, [4, 4], [2, 5])
    logits = logits_for(batch)
    theirs = trl_losses.orpo_step(logits, batch, beta=0.1).value
    with_prompt = batch | {
        "chosen_labels": np.where(batch["chosen_attention_mask"] == 1, batch["chosen_input_ids"], -100)
    }
    ours = our_step(orpo, logits, batch)[0]

    def likelihood(chosen, _, chosen_length, __):
        return losses.sft_loss(chosen, chosen_length).mean()

    of_response, of_both = (our_step(likelihood, logits, b)[0] for b in (batch, with_prompt))
    np.testing.assert_allclose(ours - of_response + of_both, theirs, rtol=1e-6)
    assert abs(ours - theirs) > 1e-3


def test_orpo_of_trl_rounds_to_float32_and_ours_keeps_float64():
    pairs = random_pairs()
    assert trl_losses.orpo(pairs, beta=0.1).value.dtype == np.float32
    assert call(odds_ratio, pairs, POLICY_AND_LENGTHS, lam=0.1).dtype == np.float64


def test_gradient_of_orpo_is_nan_in_trl_for_an_almost_certain_response_and_finite_in_ours():
    pairs = pairs_of(-1e-8, -5.0)
    theirs = trl_losses.orpo(pairs, beta=0.1)
    assert np.isfinite(theirs.value)
    assert np.isnan(theirs.gradient[0])
    ours = jax.grad(lambda chosen: losses.orpo_loss(chosen, *map(jnp.asarray, rest), lam=0.1).sum())
    rest = [pairs[name] for name in ("policy_rejected_logps", *LENGTHS)]
    assert np.isfinite(ours(jnp.asarray(pairs["policy_chosen_logps"])))


# KTOTrainer


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_kl_of_trl_is_the_mean_of_its_batch_and_our_rule_keeps_the_same_mean(sign):
    rows = responses_of(random_pairs())
    theirs = trl_losses.kto(rows, "kto", KL_LOGPS[:: int(sign)], beta=0.1).value
    rule = adaptive.kl_rule(adaptive.KlConfig(ema_rate=1.0))
    log_ratio = jnp.asarray(sign * (KL_LOGPS[0] - KL_LOGPS[1]), jnp.float32)
    kl = rule.value(rule.update(adaptive.mean_stats(log_ratio, jnp.ones(2)), rule.init()))
    assert kl == (0.375 if sign > 0 else 0.0)  # a negative estimate counts as 0 in both
    ours = call(losses.kto_loss, rows, RESPONSES, beta=0.1, kl=float(kl))
    np.testing.assert_allclose(ours.mean(), theirs, rtol=1e-13)


def test_kto_of_trl_has_no_gradient_in_float32_from_a_reward_of_17_on_and_ours_has():
    rows = responses_of(pairs_of(200.0, 200.0))
    rows["desirable"][:] = 1.0
    theirs = trl_losses.kto(rows, "kto", beta=0.1)
    assert theirs.value == 0
    assert (theirs.gradient == 0).all()
    rest = [jnp.asarray(rows[name]) for name in RESPONSES[1:]]
    slope = jax.grad(lambda logps: losses.kto_loss(logps, *rest, beta=0.1, kl=0.0).sum())
    np.testing.assert_allclose(slope(jnp.asarray(rows["policy_logps"])), -0.1 * np.exp(-20.0), rtol=1e-5)


def test_broken_response_vanishes_from_the_mean_of_trl_s_kto_and_shows_in_ours():
    rows = responses_of(random_pairs())
    rows["policy_logps"][3] = np.nan
    ours = call(losses.kto_loss, rows, RESPONSES, beta=0.1, kl=0.375)
    theirs = trl_losses.kto(rows, "kto", KL_LOGPS, beta=0.1).value
    np.testing.assert_allclose(np.nanmean(ours), theirs, rtol=1e-13)
    assert np.isnan(ours.mean())
