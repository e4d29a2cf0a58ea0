"""The objective: each loss through its table, the adaptive state that it reads and the signals that it gives."""

import dataclasses
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from jaxalign import adaptive, losses
from jaxalign.training.loss_settings import LossConfig, SafeDpoConfig
from jaxalign.training.loss_table import LOSSES
from jaxalign.training.objective import ViolationConfig, resolved_gap, reward_accuracy
from tests.training import toy

BATCH_LEVEL = {"aot", "aot_unpaired", "beta_dpo"}


@pytest.fixture(scope="module")
def batch():
    return toy.make_batch()


@pytest.fixture(scope="module")
def policy(batch):
    return jax.jit(toy.policy_logps)(toy.make_params(), toy.make_frozen(), batch)


def adapted(name, policy, batch, objective=None):
    """The state after one update, so that no value is an initial one."""
    objective = objective or toy.make_objective(name)
    if not objective.rule_configs:
        return {}

    @jax.jit
    def one_update(policy, batch):
        state = objective.init()
        return objective.update(
            objective.terms(policy, batch.reference_logps, batch, state, toy.KEY)[1], state
        )

    return one_update(policy, batch)


def terms_and_stats(name, policy, batch, state=None, **changes):
    objective = toy.make_objective(name, **changes)
    state = adapted(name, policy, batch, objective) if state is None else state
    return objective.terms(policy, batch.reference_logps, batch, state, toy.KEY)


def terms_of(name, policy, batch, state=None, **changes):
    return terms_and_stats(name, policy, batch, state, **changes)[0]


def named_values(name, policy, batch):
    """What the arguments of the pure losses stand for, by their names, straight from the rules."""
    config, state = toy.CONFIGS[name], adapted(name, policy, batch)
    option = config.model_dump()
    lengths = batch.lengths.astype(np.float32)
    columns = {"policy": policy, "reference": batch.reference_logps, "length": lengths, "score": batch.scores}
    values = {
        **{f"{k}_{side}_logps": columns[k][:, i] for k in ("policy", "reference") for i, side in BRANCHES},
        **{f"{side}_{k}": columns[k][:, i] for k in ("length", "score") for i, side in BRANCHES},
        **{f"{side}_margin_reward": batch.scores[:, i] for i, side in BRANCHES},
        "reward_margin": batch.scores[:, 0] - batch.scores[:, 1],
        "chosen_unsafe": batch.chosen_unsafe,
        "rejected_unsafe": batch.rejected_unsafe,
        "policy_logps": policy[:, 0],
        "length": lengths[:, 0],
        **option,
    }
    gap = (policy - batch.reference_logps) @ jnp.array([1.0, -1.0])
    for rule, part in state.items():
        match rule:
            case "margin":
                value = adaptive.margin_rule(toy.MARGIN).value(part)
                values["margin"] = adaptive.pair_margins(value, batch.categories, reduce=config.margin_reduce)
            case "balance":
                value = adaptive.balance_rule(toy.BALANCE).value(part)
                weights = adaptive.balance_weights(toy.BALANCE, value, batch.mi[:, 0], batch.mi[:, 1])
                values |= {"chosen_weight": weights[0], "rejected_weight": weights[1], "scale": value.scale}
            case "group_dro":
                names = ("step_size", "maximum_factor")
                rule_config = adaptive.GroupDroConfig(toy.K, **{name: option[name] for name in names})
                value = adaptive.group_dro_rule(rule_config).value(part)
                values["group_weight"] = adaptive.group_weights(value, batch.categories)
            case "beta_dpo":
                rule_config = adaptive.BetaDpoConfig(**{k: v for k, v in option.items() if k != "name"})
                value = adaptive.beta_dpo_rule(rule_config).value(part)
                beta, keep = adaptive.beta_dpo_selection(rule_config, value, gap, batch.weight, toy.KEY)
                values |= {"beta": beta, "keep": keep * len(keep) / keep.sum()}
            case "kl":
                values["kl"] = jnp.maximum(part.mean, 0.0)
            case "reward_shift":
                values["reward_shift"] = part.mean
    return values


BRANCHES = ((0, "chosen"), (1, "rejected"))


def call(loss, values):
    parameters = inspect.signature(loss).parameters.values()
    arrays = [values[p.name] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    options = {p.name: values[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in values}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in values]
    assert not missing
    return loss(*arrays, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_the_function_called_with_the_old_state(name, policy, batch):
    got = terms_of(name, policy, batch).loss
    loss, values = getattr(losses, f"{name}_loss"), named_values(name, policy, batch)
    if "desirable" not in inspect.signature(loss).parameters:
        np.testing.assert_allclose(got, call(loss, values), rtol=1e-6)
        return
    sides = [
        values
        | {
            "policy_logps": policy[:, i],
            "reference_logps": batch.reference_logps[:, i],
            "desirable": np.full(len(policy), 1.0 - i, np.float32),
        }
        for i in (0, 1)
    ]
    np.testing.assert_allclose(got, np.mean([call(loss, side) for side in sides], axis=0), rtol=1e-6)


def test_losses_differ_on_this_batch(policy, batch):
    likelier = policy + 3  # KTO's KL term is 0 while the policy is less likely than the reference
    values = {np.asarray(terms_of(name, likelier, batch).loss).tobytes() for name in LOSSES}
    assert len(values) == len(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_no_loss_of_a_real_pair(name, policy, batch):
    state = adapted(name, policy[:5], toy.select(batch, np.arange(5)))
    clean = terms_of(name, policy[:5], toy.select(batch, np.arange(5)), state)
    weight = (np.arange(8) < 5).astype(np.float32)
    padded = dataclasses.replace(batch, weight=weight)
    got = terms_of(name, policy, padded, state)
    if name == "beta_dpo":  # which pairs are kept is drawn anew
        kept = np.asarray(got.adaptive["pair_weight"])
        assert not kept[5:].any()
        np.testing.assert_allclose(
            kept.sum(), 5.0, rtol=1e-6
        )  # the mean over kept pairs is that over real ones
        return
    np.testing.assert_allclose(got.loss[:5], clean.loss, rtol=1e-6)


def test_table_covers_exactly_the_losses_of_the_configuration():
    options = typing.get_args(typing.get_args(LossConfig)[0])
    names = [name for option in options for name in typing.get_args(option.model_fields["name"].annotation)]
    assert sorted(LOSSES) == sorted(names)
    assert {f"{name}_loss" for name in names} == {name for name in losses.__all__ if name.endswith("_loss")}


@pytest.mark.parametrize("name", LOSSES)
def test_state_is_that_of_the_rules_that_the_loss_reads(name):
    assert tuple(sorted(toy.make_objective(name).init())) == tuple(sorted(toy.CONFIGS[name].rules))


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_flows_into_adaptive_state(name, policy, batch):
    state = adapted(name, policy, batch)
    gradients = jax.grad(lambda s: terms_of(name, policy, batch, s).loss.sum(), allow_int=True)(state)
    floats = [g for g in jax.tree.leaves(gradients) if g.dtype == jnp.float32]
    assert bool(floats) == bool(toy.CONFIGS[name].rules)
    assert not any(np.asarray(g).any() for g in floats)


def test_gradient_reaches_the_policy_and_no_signal(policy, batch):
    state = adapted("cat_b_dpo", policy, batch)
    gradients = jax.jacobian(lambda p: jax.tree.map(jnp.sum, vars(terms_of("cat_b_dpo", p, batch, state))))(
        policy
    )
    for field, gradient in gradients.items():
        flows = any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
        assert flows == (field == "loss"), field


def test_rewards_are_beta_times_the_log_ratios(policy, batch):
    terms = terms_of("dpo", policy, batch)
    expected = 0.1 * (np.asarray(policy) - batch.reference_logps)
    np.testing.assert_allclose(terms.chosen_reward, expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(terms.rejected_reward, expected[:, 1], rtol=1e-6)
    np.testing.assert_allclose(terms.reward_gap, expected[:, 0] - expected[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("name", ["safe_dpo", "cat_dpo", "b_dpo", "cat_b_dpo"])
def test_violation_is_that_of_the_plain_gap_whatever_the_loss_weights(name, temperature, policy, batch):
    violation = ViolationConfig(threshold=0.05, temperature=temperature)
    plain = terms_of("dpo", policy, batch, violation=violation)
    weighted = terms_of(name, policy, batch, violation=violation)
    np.testing.assert_array_equal(weighted.violation, plain.violation)
    np.testing.assert_array_equal(weighted.reward_gap, plain.reward_gap)
    assert 0 < float(plain.violation.sum()) < len(batch.weight)


def test_weights_leave_the_margin_update_as_it_is(policy, batch):
    margins = []
    for name in ("cat_dpo", "cat_b_dpo"):
        state = adapted(name, policy, batch)
        weights = terms_of(name, policy, batch, state).adaptive.get("chosen_weight", np.ones(1))
        assert (np.asarray(weights) != 1).any() == ("_b_" in name)
        margins.append(jax.tree.leaves(state["margin"]))
    for plain, weighted in zip(*margins, strict=True):
        np.testing.assert_array_equal(plain, weighted)


def test_violation_reads_threshold_and_temperature(policy, batch):
    soft = terms_of("dpo", policy, batch, violation=ViolationConfig(threshold=0.2, temperature=0.5))
    gap = np.asarray(soft.reward_gap, np.float64)
    np.testing.assert_allclose(soft.violation, 1 / (1 + np.exp(-(0.2 - gap) / 0.5)), rtol=1e-5)


def test_terms_hold_what_the_rules_of_the_loss_give_and_nothing_else(policy, batch):
    given = {name: set(terms_of(name, policy, batch).adaptive) for name in ("dpo", "cat_dpo", "b_dpo", "kto")}
    weights = {"chosen_weight", "rejected_weight", "scale"}
    assert given == {"dpo": set(), "cat_dpo": {"margin"}, "b_dpo": weights, "kto": {"kl"}}


def test_rewards_of_a_loss_without_summed_log_ratios_are_a_tenth_of_them(policy, batch):
    for name in ("simpo", "alphapo", "orpo", "sft", "sigmoid_norm"):
        expected = 0.1 * (np.asarray(policy) - batch.reference_logps)[:, 0]
        np.testing.assert_allclose(terms_of(name, policy, batch).chosen_reward, expected, rtol=1e-6)


def test_stats_are_plain_sums_over_real_pairs(policy, batch):
    terms, stats = terms_and_stats("cat_b_dpo", policy, batch)
    margin, balance = stats["margin"], stats["balance"]
    np.testing.assert_allclose(margin.pairs, batch.categories.sum(axis=0))
    np.testing.assert_allclose(margin.violations, np.asarray(terms.violation) @ batch.categories)
    np.testing.assert_allclose(balance.chosen_mi, batch.mi[:, 0].sum(), rtol=1e-6)
    np.testing.assert_allclose(balance.rejected_mi, batch.mi[:, 1].sum(), rtol=1e-6)
    np.testing.assert_allclose(balance.gradient_weight, (1 - np.exp(-terms.loss)).sum(), rtol=1e-5)


def test_running_kl_and_reward_shift_see_both_rows_of_every_pair(policy, batch):
    log_ratio = np.asarray(policy) - batch.reference_logps
    kl = terms_and_stats("kto", policy, batch)[1]["kl"]
    shift = terms_and_stats("bco", policy, batch)[1]["reward_shift"]
    np.testing.assert_allclose((kl.total, kl.count), (log_ratio.sum(), 16), rtol=1e-5)
    np.testing.assert_allclose((shift.total, shift.count), (0.2 * log_ratio.sum(), 16), rtol=1e-5)


def test_group_losses_are_those_of_plain_dpo(policy, batch):
    stats = terms_and_stats("group_dro", policy, batch)[1]["group_dro"]
    plain = losses.dpo_loss(*policy.T, *batch.reference_logps.T, beta=0.2)
    np.testing.assert_allclose(stats.loss, np.asarray(plain) @ batch.categories, rtol=1e-5)


PER_PAIR = sorted(name for name in LOSSES if toy.CONFIGS[name].rules and name not in BATCH_LEVEL)


@pytest.mark.parametrize("name", PER_PAIR)
def test_stats_of_two_halves_add_up_to_those_of_the_batch(name, policy, batch):
    state = adapted(name, policy, batch)

    def stats(index):
        return terms_and_stats(name, policy[index], toy.select(batch, index), state)[1]

    halves = jax.tree.map(jnp.add, stats(np.arange(4)), stats(np.arange(4, 8)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), halves, stats(np.arange(8)))


@pytest.mark.parametrize("name", [*PER_PAIR, "beta_dpo"])
def test_padding_changes_no_statistic_even_where_it_holds_garbage(name, policy, batch):
    weight = batch.weight.copy()
    weight[-2:] = 0
    garbage = np.where(weight > 0, np.float32(0), np.float32(np.nan))
    padded = dataclasses.replace(
        batch,
        weight=weight,
        reference_logps=batch.reference_logps + garbage[:, None],
        mi=batch.mi - np.where(weight > 0, np.float32(0), np.float32(np.inf))[:, None],
    )
    state = adapted(name, policy, batch)
    got = terms_and_stats(name, policy, padded, state)[1]
    clean = toy.select(batch, np.arange(6))
    expected = terms_and_stats(name, policy[:6], clean, state)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


@pytest.mark.parametrize("xp", [jnp, np], ids=["jax", "numpy"])
def test_gap_below_the_resolution_of_the_sums_is_a_tie(xp):
    reference = np.array([[-300.0, -200.0], [-300.0, -200.0], [-20.0, -24.0]], np.float32)
    policy = reference + np.array([[1e-3, 0.0], [-0.01, 0.0], [1.0, -1.5]], np.float32)
    gap = resolved_gap(xp.asarray(policy), xp.asarray(reference), xp)
    np.testing.assert_allclose(gap, [0.0, -0.01, 2.5], rtol=0.01)
    assert np.asarray(gap)[0] == 0.0


@pytest.mark.parametrize("xp", [jnp, np], ids=["jax", "numpy"])
def test_tie_counts_one_half(xp):
    accuracy = reward_accuracy(xp.asarray(np.array([0.3, 0.0, -0.2, np.nan], np.float32)), xp)
    np.testing.assert_array_equal(accuracy, [1.0, 0.5, 0.0, np.nan])


def test_unchanged_policy_is_right_half_of_the_time(batch):
    noise = np.random.default_rng(3).normal(0, 1e-6, batch.reference_logps.shape).astype(np.float32)
    terms = terms_of("dpo", batch.reference_logps + noise, batch)
    assert (np.asarray(terms.accuracy) == 0.5).all()
    assert not np.asarray(terms.violation).any()


def test_beta_must_be_positive():
    with pytest.raises(ValidationError, match="greater than 0"):
        SafeDpoConfig(name="safe_dpo", beta=0.0)


def test_temperature_must_be_positive():
    with pytest.raises(ValidationError, match="greater than 0"):
        ViolationConfig(temperature=0.0)
