"""The train step on a unigram model of nine parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign.training.logps import pair_logps
from jaxalign.training.loss_table import LOSSES
from jaxalign.training.metrics import step_figures
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer
from jaxalign.training.state import init_state
from jaxalign.training.step import make_train_step, precomputed_reference
from tests.training import toy

GOLDEN_MAY_CHANGE = (
    "the step computes other values than before. That is right only where the definition of a loss, a rule, "
    "the optimizer or the order of the updates was changed on purpose; then put the new values here and say "
    "so in the commit"
)
GOLDEN = {
    1: {
        "loss": 1.109962,
        "grad_norm": 0.0576579,
        "learning_rate": 0.025,
        "scale": 0.9750002,
        "kernel": [0.324250, 0.136686, -0.149532, -0.321255, -0.170603, 0.059886, 0.312331, 0.250605],
        "margin": [0.63, 0.63, 0.5],
        "violation_rate": [0.75, 0.75, 0.0],
        "num_seen": [4, 4, 0],
        "gradient_weight": 0.648781,
        "chosen_mi": 0.580160,
    },
    5: {
        "loss": 1.047309,
        "grad_norm": 0.106164,
        "learning_rate": 0.0333333,
        "scale": 0.851550,
        "kernel": [0.360138, -0.0130683, -0.176184, -0.389204, -0.0013793, 0.133567, 0.454024, 0.153282],
        "margin": [1.049155, 1.001305, 0.5],
        "violation_rate": [0.537525, 0.425775, 0.0],
        "num_seen": [20, 20, 0],
        "gradient_weight": 0.649683,
        "chosen_mi": 0.493927,
    },
}


def run(num_steps, *, batch=None, objective=None, num_micro_batches=1):
    """State and sums after some steps over batches of different pairs, or one and the same batch."""
    step = jax.jit(toy.make_step(objective), donate_argnums=0)
    state, sums = toy.make_state(objective), None
    for i in range(num_steps):
        pairs = toy.make_batch(seed=i) if batch is None else batch
        state, sums = step(state, toy.make_frozen(), toy.stacked(pairs, num_micro_batches))
    return jax.device_get(state), jax.device_get(sums)


@jax.jit
def terms_of(params, adaptive, batch):
    """Per-pair terms and sums of the objective at these parameters and this adaptive state."""
    policy = toy.policy_logps(params, toy.make_frozen(), batch)
    return toy.make_objective().terms(policy, batch.reference_logps, batch, adaptive, toy.KEY)


def assert_trees_close(got, expected, **tolerance):
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, **tolerance, err_msg=jax.tree_util.keystr(path)),
        got,
        expected,
    )


def assert_trees_identical(got, expected):
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path)),
        got,
        expected,
    )


@pytest.fixture(scope="module")
def step():
    return jax.jit(toy.make_step(), donate_argnums=0)


@pytest.fixture(scope="module")
def broken_batch():
    """One pair of the first category has no reference."""
    batch = toy.make_batch()
    reference = batch.reference_logps.copy()
    reference[np.flatnonzero(batch.categories[:, 0])[0], 1] = np.nan
    return dataclasses.replace(batch, reference_logps=reference)


@pytest.mark.parametrize("num_steps", [1, 5])
def test_values_are_those_of_the_committed_run(num_steps):
    state, sums = run(num_steps)
    figures = {
        "loss": float(sums.loss / sums.pairs),
        "grad_norm": float(sums.grad_norm),
        "learning_rate": float(sums.learning_rate),
        "scale": float(state.params["scale"]),
        "kernel": state.params["kernel"].tolist(),
        "margin": state.adaptive["margin"].margin.tolist(),
        "violation_rate": state.adaptive["margin"].violation_rate.tolist(),
        "num_seen": state.adaptive["margin"].num_seen.tolist(),
        "gradient_weight": float(state.adaptive["balance"].gradient_weight),
        "chosen_mi": float(state.adaptive["balance"].chosen_mi),
    }
    for name, value in GOLDEN[num_steps].items():
        np.testing.assert_allclose(
            figures[name], value, rtol=1e-4, atol=2e-6, err_msg=f"{name}: {GOLDEN_MAY_CHANGE}"
        )


def test_loss_reads_the_margins_from_before_the_update(step):
    state = toy.make_state()
    for i in range(3):
        batch = toy.make_batch(seed=i)
        old = jax.device_get(state)
        state, sums = step(state, toy.make_frozen(), toy.stacked(batch))
        with_old, with_new = (
            float(terms_of(old.params, x.adaptive, batch)[0].loss.mean()) for x in (old, state)
        )
        assert float(sums.loss / sums.pairs) == pytest.approx(with_old, abs=1e-5)
        assert abs(with_old - with_new) > 1e-3


def test_new_adaptive_state_is_the_update_by_the_sums_of_the_batch(step):
    objective, state, batch = toy.make_objective(), toy.make_state(), toy.make_batch()
    old = jax.device_get(state)
    expected = objective.update(terms_of(old.params, old.adaptive, batch)[1], old.adaptive)
    new, _ = step(state, toy.make_frozen(), toy.stacked(batch))
    assert_trees_close(new.adaptive, expected, rtol=1e-6)
    assert (new.adaptive["margin"].margin[:2] != old.adaptive["margin"].margin[:2]).all()


def test_category_without_pairs_stays_bit_identical(step):
    state, batch = toy.make_state(), toy.make_batch()
    old = jax.device_get(state.adaptive["margin"])
    new = jax.device_get(step(state, toy.make_frozen(), toy.stacked(batch))[0].adaptive["margin"])
    assert_trees_identical(*(jax.tree.map(lambda x: x[2], margin) for margin in (new, old)))


def test_update_is_that_of_optax_on_the_mean_loss(step):
    state, batch = toy.make_state(), toy.make_batch()
    old = jax.device_get(state)
    optimizer, schedule = toy.make_optimizers()

    @jax.jit
    def expected_update(params):
        gradients = jax.grad(lambda p: terms_of(p, old.adaptive, batch)[0].loss.mean())(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates), optax.tree.norm(gradients)

    params, norm = expected_update(old.params)
    new, sums = step(state, toy.make_frozen(), toy.stacked(batch))
    assert_trees_close(new.params, params, rtol=1e-5)
    assert float(sums.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    assert float(sums.learning_rate) == pytest.approx(float(schedule(0)))


def test_reported_learning_rate_is_the_schedule_at_the_updates_made(broken_batch):
    step, (_, schedule) = jax.jit(toy.make_step(), donate_argnums=0), toy.make_optimizers()
    state, rates = toy.make_state(), []
    for batch in (toy.make_batch(), broken_batch, toy.make_batch(), toy.make_batch()):
        state, sums = step(state, toy.make_frozen(), toy.stacked(batch))
        rates.append(float(sums.learning_rate))
    # The second step is skipped: it must not use up a step of the schedule.
    assert rates == pytest.approx([float(schedule(i)) for i in (0, 1, 1, 2)])


def test_step_compiles_once():
    step = jax.jit(toy.make_step(), donate_argnums=0)
    state = toy.make_state()
    for i in range(3):
        state, _ = step(state, toy.make_frozen(), toy.stacked(toy.make_batch(seed=i)))
    assert step._cache_size() == 1


def test_structure_and_dtypes_of_the_state_do_not_change(step):
    state = toy.make_state()
    new, _ = jax.eval_shape(step, state, toy.make_frozen(), toy.stacked(toy.make_batch()))
    assert jax.tree.structure(new) == jax.tree.structure(state)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (new, state)]
    assert shapes[0] == shapes[1]


def test_step_donates_every_buffer_of_the_old_state(step):
    old = toy.make_state()
    step(old, toy.make_frozen(), toy.stacked(toy.make_batch()))
    kept = [path for path, x in jax.tree_util.tree_leaves_with_path(old) if not x.is_deleted()]
    assert kept == []


def test_frozen_parameters_survive_the_step(step):
    frozen = toy.make_frozen()
    step(toy.make_state(), frozen, toy.stacked(toy.make_batch()))
    assert not frozen["base"].is_deleted()


@pytest.mark.parametrize("num_micro_batches", [2, 4])
@pytest.mark.parametrize("name", ["cat_b_dpo", "group_dro", "kto", "bco"])
def test_micro_batches_give_the_update_of_one_batch(name, num_micro_batches):
    objective, batch = toy.make_objective(name), toy.make_batch(8, num_padding=1)
    got = run(2, batch=batch, objective=objective, num_micro_batches=num_micro_batches)
    assert_trees_close(got, run(2, batch=batch, objective=objective), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["group_dro", "beta_dpo", "kto", "bco", "aot", "aot_unpaired"])
def test_eight_devices_give_the_update_of_one(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    objective, batch = toy.make_objective(name), toy.make_batch(16, num_padding=3)
    spread = jax.device_put(toy.stacked(batch), NamedSharding(mesh, PartitionSpec(None, "data")))
    whole = jax.device_put(toy.make_state(objective), NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(toy.make_step(objective))
    got, expected = whole, toy.make_state(objective)
    for _ in range(2):
        got, sums = step(got, toy.make_frozen(), spread)
        expected, expected_sums = step(expected, toy.make_frozen(), toy.stacked(batch))
    assert_trees_close((got, sums), (expected, expected_sums), rtol=1e-5, atol=1e-6)


def test_pairs_kept_at_random_differ_from_step_to_step():
    objective, batch = toy.make_objective("beta_dpo"), toy.make_batch(16)

    step, state = jax.jit(toy.make_step(objective)), toy.make_state(objective)

    def loss_at(number):  # of one and the same state and batch
        at_number = dataclasses.replace(state, step=jnp.int32(number))
        _, sums = step(at_number, toy.make_frozen(), toy.stacked(batch))
        return float(sums.loss)

    assert len({loss_at(number) for number in range(4)}) > 1
    assert loss_at(3) == loss_at(3)


def test_gradients_of_bfloat16_parameters_add_up_in_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.make_params())
    optimizer = optax.sgd(1.0)

    def policy(params, frozen, batch):
        return toy.policy_logps(jax.tree.map(lambda x: x.astype(jnp.float32), params), frozen, batch)

    def norm(num_micro_batches):
        objective, schedule = toy.make_objective(), optax.constant_schedule(1.0)
        step = make_train_step(policy, precomputed_reference, objective, optimizer, schedule)
        state = init_state(params, optimizer, objective.init(), seed=0)
        batch = toy.stacked(toy.make_batch(64), num_micro_batches)
        new, sums = jax.jit(step)(state, toy.make_frozen(), batch)
        assert new.params["kernel"].dtype == jnp.bfloat16
        return float(sums.grad_norm)

    # 64 parts of one pair: a bf16 sum of them would be off by a percent.
    assert norm(64) == pytest.approx(norm(1), rel=4e-3)


def test_non_finite_pair_leaves_parameters_optimizer_and_adaptive_state_untouched(step, broken_batch):
    state, _ = step(toy.make_state(), toy.make_frozen(), toy.stacked(toy.make_batch()))
    old = jax.device_get(state)
    new, sums = step(state, toy.make_frozen(), toy.stacked(broken_batch))
    counters = {"step": old.step + 1, "num_skipped": 1, "num_skipped_in_a_row": 1}
    assert_trees_identical(new, dataclasses.replace(old, **{k: np.int32(v) for k, v in counters.items()}))
    figures = step_figures(jax.device_get(sums), toy.NAMES)
    assert figures["loss"] is None
    assert sums.not_finite[0] == 1


def test_skipped_steps_in_a_row_are_forgotten_after_a_good_one(step, broken_batch):
    state, counts = toy.make_state(), []
    for batch in (broken_batch, broken_batch, toy.make_batch(), broken_batch):
        state, _ = step(state, toy.make_frozen(), toy.stacked(batch))
        counts.append((int(state.step), int(state.num_skipped), int(state.num_skipped_in_a_row)))
    assert counts == [(1, 1, 1), (2, 2, 2), (3, 2, 0), (4, 3, 1)]


def test_infinite_gradient_of_a_finite_loss_skips_the_step():
    def policy(params, frozen, batch):
        # d sqrt(x) / dx is infinite at 0, the value is not
        return toy.policy_logps(params, frozen, batch) + jnp.sqrt(params["scale"] - 1.0)

    step = make_train_step(policy, precomputed_reference, toy.make_objective(), *toy.make_optimizers())
    new, sums = jax.jit(step)(toy.make_state(), toy.make_frozen(), toy.stacked(toy.make_batch()))
    assert np.isfinite(sums.loss)
    assert int(new.num_skipped) == 1
    assert_trees_identical(new.params, toy.make_params())


def test_padding_changes_neither_state_nor_figures():
    batch = toy.make_batch(8, num_padding=3)
    real = toy.select(batch, np.arange(5))
    assert_trees_close(run(2, batch=batch), run(2, batch=real), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("garbage", [1e4, np.inf, np.nan])
def test_garbage_in_padding_changes_neither_state_nor_figures(step, garbage):
    batch = toy.make_batch(8, num_padding=3)
    padding = batch.weight == 0
    spoilt = dataclasses.replace(
        batch,
        reference_logps=np.where(padding[:, None], np.float32(garbage), batch.reference_logps),
        mi=np.where(padding[:, None], np.float32(garbage), batch.mi),
        categories=np.where(padding[:, None], np.float32(1), batch.categories),
        rejected_unsafe=np.where(padding, np.float32(garbage), batch.rejected_unsafe),
    )
    clean, got = (step(toy.make_state(), toy.make_frozen(), toy.stacked(x)) for x in (batch, spoilt))
    assert_trees_identical(got, clean)
    assert int(got[0].num_skipped) == 0


def test_frozen_parameters_cost_no_optimizer_memory():
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(toy.make_state().opt_state)
    ]
    assert not any("base" in path for path in paths)
    assert sum("kernel" in path for path in paths) == 2  # two moments


# One does not know the rejected response, the other first lifts the chosen one back to the reference.
CHOSEN_ALONE = {"sft", "dpop"}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_widens_the_gap_or_raises_the_chosen_response(name):
    objective, batch = toy.make_objective(name), toy.make_batch()
    step, state, gaps = jax.jit(toy.make_step(objective)), toy.make_state(objective), []
    for _ in range(6):
        state, sums = step(state, toy.make_frozen(), toy.stacked(batch))
        gaps.append(float(sums.terms["rewards/chosen" if name in CHOSEN_ALONE else "rewards/margins"]))
    assert (np.diff(gaps) > 0).all()


def test_mutual_information_may_be_that_of_the_policy_itself():
    def alone(params, frozen, batch):
        return toy.policy_logps(params, frozen, batch) * 1.5 - 1.0

    objective, batch, frozen = toy.make_objective("b_dpo"), toy.make_batch(), toy.make_frozen()
    step = jax.jit(toy.make_step(objective, policy_logps_alone=alone))
    policy = np.asarray(toy.policy_logps(toy.make_params(), toy.make_frozen(), batch))
    mi = (policy - (1.5 * policy - 1.0)) / batch.lengths
    given = dataclasses.replace(batch, mi=mi.astype(np.float32))
    plain = jax.jit(toy.make_step(objective))
    expected = plain(toy.make_state(objective), frozen, toy.stacked(given))
    got = step(toy.make_state(objective), frozen, toy.stacked(batch))
    assert_trees_close(got, expected, rtol=1e-5, atol=1e-6)


def test_online_reference_is_read_from_the_frozen_parameters_without_a_gradient():
    def reference(frozen, batch):
        return toy.policy_logps(frozen["start"], frozen, batch)

    objective = toy.make_objective("dpo")
    step = make_train_step(toy.policy_logps, reference, objective, *toy.make_optimizers())
    state = toy.make_state(objective)
    frozen = {**toy.make_frozen(), "start": toy.make_params()}
    _, sums = jax.jit(step)(state, frozen, toy.stacked(toy.make_batch()))
    assert float(sums.loss / sums.pairs) == pytest.approx(np.log(2.0), abs=1e-6)
    assert float(sums.terms["rewards/accuracies"] / sums.pairs) == 0.5


class Bigram(linen.Module):
    """A user's own Linen model: a state per token, no attention."""

    @linen.compact
    def __call__(self, tokens):
        return linen.Dense(4)(linen.Embed(toy.V, 4)(tokens))


def test_linen_model_trains_through_its_apply_function():
    model, batch = Bigram(), toy.make_batch()
    variables = model.init(jax.random.key(0), batch.rows.tokens)

    def policy(params, frozen, batch):
        return pair_logps(lambda rows: model.apply(params, rows.tokens), frozen["head"], batch)

    frozen = {"head": jax.random.normal(jax.random.key(1), (4, toy.V))}
    batch = dataclasses.replace(batch, reference_logps=np.asarray(policy(variables, frozen, batch)))
    objective = toy.make_objective("dpo")
    optimizer, schedule = toy.make_optimizers()
    step = jax.jit(make_train_step(policy, precomputed_reference, objective, optimizer, schedule))
    state = init_state(variables, optimizer, objective.init(), seed=0)
    losses = []
    for _ in range(5):
        state, sums = step(state, frozen, toy.stacked(batch))
        losses.append(float(sums.loss / sums.pairs))
    assert losses[0] == pytest.approx(np.log(2.0), abs=1e-5)
    assert np.all(np.diff(losses) < 0)


def test_moments_of_bf16_parameters_are_float32_and_parameters_stay_bf16() -> None:
    params = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), lambda _: 1e-2)
    state = init_state(params, optimizer, {}, seed=0)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (2, 3)]
    assert [x.dtype for x in moments] == [jnp.float32, jnp.float32]
    assert state.params["kernel"].dtype == jnp.bfloat16
