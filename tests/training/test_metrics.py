"""Figures are exact sums over exact counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.training.metrics import PairSums, adaptive_figures, pair_figures, pair_sums, worst_category
from jaxalign.training.objective import PairTerms
from tests.training import toy


@jax.jit
def terms_and_sums(policy, batch) -> tuple[PairTerms, PairSums]:
    objective = toy.make_objective()
    terms, _ = objective.terms(policy, batch.reference_logps, batch, objective.init(), toy.KEY)
    return terms, pair_sums(terms, policy, batch)


def policy_of(batch) -> np.ndarray:
    return np.array(jax.jit(toy.policy_logps)(toy.make_params(), toy.make_frozen(), batch))


def sums_of(batch, policy=None) -> PairSums:
    return jax.device_get(terms_and_sums(policy_of(batch) if policy is None else policy, batch)[1])


def figures_of(*batches) -> dict[str, float | None]:
    """Figures of the batches together: their sums added."""
    total = jax.tree.map(lambda *x: sum(np.float64(y) for y in x), *[sums_of(batch) for batch in batches])
    return pair_figures(total, toy.NAMES)


def assert_same_figures(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def batch():
    return toy.make_batch(12)


@pytest.fixture(scope="module")
def figures(batch):
    return figures_of(batch)


def test_order_of_the_pairs_changes_no_figure(batch, figures):
    assert_same_figures(figures_of(toy.select(batch, np.random.default_rng(1).permutation(12))), figures)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_split_into_batches_of_any_size_changes_no_figure(size, batch, figures):
    parts = [np.arange(12)[i : i + size] for i in range(0, 12, size)]
    assert_same_figures(figures_of(*(toy.select(batch, part) for part in parts)), figures)


def test_padding_changes_no_figure_even_where_it_holds_garbage():
    batch = toy.make_batch(15, num_padding=3)
    spoilt = jax.tree.map(
        lambda x: (
            np.where(np.arange(15).reshape(-1, *[1] * (x.ndim - 1)) < 12, x, np.float32(np.nan))
            if x.dtype == np.float32
            else x
        ),
        batch,
    )
    spoilt = dataclasses.replace(spoilt, weight=batch.weight)
    assert_same_figures(figures_of(spoilt), figures_of(toy.select(batch, np.arange(12))))


def test_infinite_log_probs_of_padding_change_no_figure():
    batch = toy.make_batch(8, num_padding=3)
    policy = policy_of(batch)
    expected = pair_figures(sums_of(batch, policy), toy.NAMES)
    policy[5:] = [np.inf, -np.inf]
    assert pair_figures(sums_of(batch, policy), toy.NAMES) == expected
    assert expected["pairs"] == 5.0


def test_figures_equal_means_taken_pair_by_pair(batch, figures):
    policy = policy_of(batch)
    terms = jax.device_get(terms_and_sums(policy, batch)[0])
    for name, x in {
        "loss": terms.loss,
        "rewards/chosen": terms.chosen_reward,
        "rewards/rejected": terms.rejected_reward,
        "rewards/accuracies": terms.accuracy,
        "rewards/margins": terms.reward_gap,
        "violation_rate": terms.violation,
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
        "adaptive/margin": terms.adaptive["margin"],
        "adaptive/weight_chosen": terms.adaptive["chosen_weight"],
        "adaptive/weight_rejected": terms.adaptive["rejected_weight"],
        "adaptive/scale": terms.adaptive["scale"],
    }.items():
        np.testing.assert_allclose(figures[name], np.mean(x, dtype=np.float64), rtol=1e-5, err_msg=name)
    inside = batch.categories[:, 1] > 0
    loss = np.asarray(terms.loss, np.float64)[inside].mean()
    np.testing.assert_allclose(figures["category/Drugs/loss"], loss, rtol=1e-5)
    assert figures["category/Drugs/pairs"] == inside.sum()
    assert figures["response_tokens"] == batch.lengths.sum()


def test_only_categories_that_are_present_have_figures(batch, figures):
    present = {name.split("/")[1] for name in figures if name.startswith("category/")}
    assert present == {"Violence", "Drugs"}
    assert not batch.categories[:, 2].any()


def test_non_finite_figure_is_none_and_never_zero(batch):
    reference = batch.reference_logps.copy()
    row = int(np.flatnonzero((batch.categories == [1, 0, 0]).all(axis=1))[0])
    reference[row] = np.nan
    broken = pair_figures(sums_of(dataclasses.replace(batch, reference_logps=reference)), toy.NAMES)
    assert broken["loss"] is None
    assert broken["category/Violence/loss"] is None
    assert broken["category/Drugs/loss"] is not None
    assert broken["pairs"] == 12.0


def test_non_finite_pairs_are_counted_by_category_and_without_one(batch):
    reference = batch.reference_logps.copy()
    both = int(np.flatnonzero((batch.categories == [1, 1, 0]).all(axis=1))[0])
    none = np.flatnonzero(batch.categories.sum(axis=1) == 0)[:2]
    reference[[both, *none]] = np.inf
    counts = sums_of(dataclasses.replace(batch, reference_logps=reference)).not_finite
    assert counts.tolist() == [1.0, 1.0, 0.0, 2.0]


def test_batch_of_padding_alone_has_no_mean():
    nothing = toy.make_batch(2, num_padding=2)
    figures = pair_figures(sums_of(nothing), toy.NAMES)
    assert figures["loss"] is None
    assert figures["pairs"] == 0.0


def test_adaptive_figures_name_seen_categories_only():
    objective = toy.make_objective()
    state = toy.make_state(objective)
    seen = dataclasses.replace(
        state.adaptive["margin"],
        num_seen=jnp.array([3, 0, 0], jnp.int32),
        violation_rate=jnp.array([0.25, 0.0, 0.0]),
    )
    figures = adaptive_figures(objective.figures(state.adaptive | {"margin": seen}), toy.NAMES)
    assert figures["adaptive/margin/Violence"] == 0.5
    assert figures["adaptive/violation/Violence"] == 0.25
    assert not any("Drugs" in name for name in figures)
    assert figures["adaptive/balance/num_seen"] == 0.0


def test_group_weights_are_figures_by_category_and_scalars_are_not():
    objective = toy.make_objective("group_dro")
    state = toy.make_state(objective)
    part = dataclasses.replace(state.adaptive["group_dro"], num_seen=jnp.array([3, 0, 0], jnp.int32))
    figures = adaptive_figures(objective.figures({"group_dro": part}), toy.NAMES)
    assert set(figures) == {"adaptive/group_weight/Violence", "adaptive/group_factor/Violence"}
    assert figures["adaptive/group_weight/Violence"] == pytest.approx(1 / 3)


def test_losses_without_state_have_no_adaptive_figures():
    objective = toy.make_objective("dpo")
    assert adaptive_figures(objective.figures(objective.init()), toy.NAMES) == {}


def test_worst_category_prefers_the_running_rate():
    figures = {
        "adaptive/violation/Violence": 0.2,
        "adaptive/violation/Drugs": 0.4,
        "category/Violence/violation_rate": 0.9,
    }
    assert worst_category(figures) == ("Drugs", 0.4)


def test_worst_category_of_the_batch_without_running_rates():
    figures = {"category/Violence/violation_rate": 0.5, "category/Drugs/violation_rate": None, "loss": 9.0}
    assert worst_category(figures) == ("Violence", 0.5)


def test_no_worst_category_without_categories():
    assert worst_category({"loss": 1.0, "violation_rate": 0.5}) is None
