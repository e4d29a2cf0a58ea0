"""Checkpoints of the whole state: every leaf, on any mesh, and errors that name what does not fit."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.parallel import MeshConfig, make_mesh, replicated
from jaxalign.training.checkpoint import Checkpointer, CheckpointError
from jaxalign.training.state import TrainState, init_state, state_shardings
from tests.training import toy

CURSOR = {"step": 3, "seed": 7}


def distinct(state: TrainState, step: int = 3) -> TrainState:
    """The same structure with random values, another one in every element of every leaf."""
    rng, offset = np.random.default_rng(0), itertools.count(10)

    def fill(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.asarray(1000 * next(offset) + np.arange(x.size).reshape(x.shape), x.dtype)
        return jnp.asarray(next(offset) + rng.uniform(0.1, 0.9, x.shape), x.dtype)

    return dataclasses.replace(jax.tree.map(fill, state), step=jnp.int32(step))


def abstract_of(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_identical(got: TrainState, expected: TrainState) -> None:
    """Bit for bit, leaf by leaf: a leaf that is not saved cannot come back."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True)
    for (path, wanted), found in leaves:
        name = jax.tree_util.keystr(path)
        assert found.dtype == wanted.dtype, name
        assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes(), name


def save(directory, state: TrainState, **options) -> None:
    with Checkpointer(directory, **{"keep": 10, **options}) as checkpointer:
        checkpointer.save(state, CURSOR)


@pytest.fixture(scope="module")
def state():
    return distinct(toy.make_state())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A folder with one checkpoint of `state`, for tests that only read it."""
    directory = tmp_path_factory.mktemp("checkpoints")
    save(directory, state)
    return directory


def test_all_values_of_the_test_state_differ(state):
    values = np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(state)])
    assert len(np.unique(values)) == len(values)


def test_every_leaf_comes_back_bit_for_bit(saved, state):
    with Checkpointer(saved, keep=10) as checkpointer:
        restored, cursor = checkpointer.restore(abstract_of(state))
    assert_identical(restored, state)
    assert cursor == CURSOR


def test_bfloat16_and_float16_leaves_come_back_bit_for_bit(tmp_path, state):
    params = {"a": jnp.arange(4, dtype=jnp.bfloat16) / 3, "b": jnp.arange(4, dtype=jnp.float16) / 3}
    state = dataclasses.replace(state, params=params)
    save(tmp_path, state)
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        assert_identical(checkpointer.restore(abstract_of(state))[0], state)


def test_state_without_margin_and_balance_comes_back(tmp_path):
    state = distinct(toy.make_state(toy.make_objective("dpo")))
    assert state.adaptive == {}
    save(tmp_path, state)
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        assert_identical(checkpointer.restore(abstract_of(state))[0], state)


def test_only_the_newest_are_kept(tmp_path, state):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in range(1, 5):
            checkpointer.save(dataclasses.replace(state, step=jnp.int32(step)), CURSOR)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_newest_is_restored_unless_a_step_is_named(tmp_path, state):
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        for step in (1, 2):
            checkpointer.save(dataclasses.replace(state, step=jnp.int32(step)), {"step": step})
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        assert checkpointer.latest_step() == 2
        abstract = abstract_of(state)
        assert [checkpointer.restore(abstract, step)[1]["step"] for step in (None, 1, 2)] == [2, 1, 2]


def test_saving_a_step_twice_keeps_the_first(tmp_path, state):
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        checkpointer.save(state, CURSOR)
        checkpointer.save(state, {"step": 99})
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        checkpointer.save(state, {"step": 99})
        restored, cursor = checkpointer.restore(abstract_of(state))
    assert_identical(restored, state)
    assert cursor == CURSOR


def test_state_may_be_donated_while_it_is_being_saved(tmp_path):
    step, state = jax.jit(toy.make_step(), donate_argnums=0), toy.make_state()
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        for i in range(3):
            state, _ = step(state, toy.make_frozen(), toy.stacked(toy.make_batch(seed=i)))
            expected = jax.device_get(state)
            checkpointer.save(state, CURSOR)
            state, _ = step(state, toy.make_frozen(), toy.stacked(toy.make_batch(seed=i)))
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        assert_identical(checkpointer.restore(abstract_of(state))[0], expected)


def test_unfinished_save_is_ignored_and_removed(tmp_path, state):
    save(tmp_path, state)
    torn = tmp_path / "9.orbax-checkpoint-tmp-1"
    (torn / "state").mkdir(parents=True)
    (torn / "state" / "half").write_text("half a file")
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        assert checkpointer.latest_step() == 3
        assert_identical(checkpointer.restore(abstract_of(state))[0], state)
    assert not torn.exists()


def test_folder_without_checkpoint_is_an_error_that_names_it(tmp_path, state):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() is None
        with pytest.raises(CheckpointError, match=f"no complete checkpoint in {tmp_path}; train first"):
            checkpointer.restore(abstract_of(state))


def test_step_that_was_not_saved_is_an_error_with_those_that_were(saved, state):
    message = r"no checkpoint of step 5 in .*; there are \[3\]"
    with Checkpointer(saved, keep=10) as checkpointer, pytest.raises(CheckpointError, match=message):
        checkpointer.restore(abstract_of(state), 5)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"params": {"weights": jnp.zeros(3), "scale": jnp.zeros(())}},
            [
                "params.kernel: checkpoint has float32[8], this run nothing",
                "params.weights: checkpoint has nothing, this run float32[3]",
            ],
        ),
        (
            {"params": {"kernel": jnp.zeros(toy.V + 1), "scale": jnp.zeros((), jnp.bfloat16)}},
            [
                "params.kernel: checkpoint has float32[8], this run float32[9]",
                "params.scale: checkpoint has float32[], this run bfloat16[]",
            ],
        ),
        (
            {"params": {"kernel": jnp.zeros(toy.V - 1)}},
            ["params.kernel: checkpoint has float32[8], this run float32[7]"],
        ),
        ({"adaptive": {}}, ["adaptive.margin.margin: checkpoint has float32[3], this run nothing"]),
    ],
    ids=["other names", "larger", "smaller", "no margins"],
)
def test_state_of_another_configuration_is_an_error_that_names_every_leaf(saved, state, changes, lines):
    other = abstract_of(dataclasses.replace(state, **changes))
    with Checkpointer(saved, keep=10) as checkpointer, pytest.raises(CheckpointError) as error:
        checkpointer.restore(other)
    assert "checkpoint 3" in str(error.value)
    assert "another workdir" in str(error.value)
    for line in lines:
        assert line in str(error.value)
    assert "num_skipped" not in str(error.value)  # what fits is not listed


def test_other_optimizer_is_an_error_that_names_its_moments(saved, state):
    other = dataclasses.replace(state, opt_state=optax.sgd(0.1, momentum=0.9).init(state.params))
    message = "opt_state.0.trace.kernel: checkpoint has nothing, this run float32"
    with Checkpointer(saved, keep=10) as checkpointer, pytest.raises(CheckpointError, match=message):
        checkpointer.restore(abstract_of(other))


def test_parts_of_the_state_are_restored_by_name(saved, state):
    parts = {"params": abstract_of(state).params, "adaptive": abstract_of(state).adaptive}
    with Checkpointer(saved, keep=10) as checkpointer:
        restored, step = checkpointer.restore_parts(parts)
    assert step == 3
    assert restored.keys() == {"params", "adaptive"}
    assert_identical(restored["params"], state.params)
    assert_identical(restored["adaptive"], state.adaptive)


def test_part_that_was_not_saved_is_an_error_that_names_it(saved, state):
    parts = {"params": {"adapter": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    message = "params.adapter: checkpoint has nothing, this run float32"
    with Checkpointer(saved, keep=10) as checkpointer, pytest.raises(CheckpointError, match=message):
        checkpointer.restore_parts(parts)


def test_damaged_checkpoint_is_an_error_that_names_the_step(tmp_path, state):
    save(tmp_path, state)
    (tmp_path / "3" / "cursor" / "metadata").unlink()
    with (
        Checkpointer(tmp_path, keep=10) as checkpointer,
        pytest.raises(CheckpointError, match="checkpoint 3 in"),
    ):
        checkpointer.restore(abstract_of(state))


def sharded_state(mesh, spec: PartitionSpec) -> TrainState:
    """A state whose kernel [8, 16] and moments are split over the mesh."""
    params = {"kernel": jnp.zeros((8, 16)), "scale": jnp.zeros(())}
    optimizer, _ = toy.make_optimizers()

    def make():
        return init_state(params, optimizer, toy.make_objective().init(), seed=0)

    whole = replicated(mesh)
    shardings = {"kernel": NamedSharding(mesh, spec), "scale": whole}
    return jax.device_put(distinct(make()), state_shardings(jax.eval_shape(make), shardings, optimizer, mesh))


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [({"data": 1, "tensor": 8}, PartitionSpec(None, "tensor")), ({"data": 8}, PartitionSpec())],
)
def test_state_saved_on_one_mesh_is_restored_onto_another(tmp_path, sizes, spec):
    before = sharded_state(make_mesh(MeshConfig(data=1, fsdp=8)), PartitionSpec("fsdp"))
    save(tmp_path, before)
    after = sharded_state(make_mesh(MeshConfig(**sizes)), spec)
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        restored, _ = checkpointer.restore(abstract_of(after))
    assert_identical(restored, before)
    for wanted, got in zip(jax.tree.leaves(after), jax.tree.leaves(restored), strict=True):
        assert got.sharding == wanted.sharding


def test_moments_follow_their_parameters_and_all_else_is_replicated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    state = sharded_state(mesh, PartitionSpec("fsdp"))
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        split = PartitionSpec("fsdp") if "kernel" in name else PartitionSpec()
        assert x.sharding == NamedSharding(mesh, split), name
