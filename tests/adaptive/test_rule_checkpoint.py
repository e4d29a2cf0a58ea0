"""Law of every adaptive rule: a state goes through a checkpoint bit for bit, and training goes on as if it had not."""

import jax
import orbax.checkpoint as ocp
import pytest

from tests.adaptive.cases import CASES, assert_identical, law, random_batch, seen_state, signature


@pytest.fixture(scope="module")
def restored(tmp_path_factory) -> dict:
    """The states of all rules, written and read as one checkpoint: a checkpoint each would take seconds."""
    states = {name: seen_state(case) for name, case in CASES.items()}
    path = tmp_path_factory.mktemp("checkpoint") / "states"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, states)
        checkpointer.wait_until_finished()
        abstract = {name: jax.eval_shape(case.rule.init) for name, case in CASES.items()}
        read = checkpointer.restore(path, abstract)
    return {id(CASES[name]): state for name, state in read.items()}


@law
def test_checkpoint_round_trip_and_continuation_are_bit_exact(case, restored):
    before, after = seen_state(case), restored[id(case)]
    assert signature(after) == signature(before)
    assert_identical(after, before)
    assert_identical(case.rule.value(after), case.rule.value(before))
    for seed in range(10, 13):
        before, after = (case.compiled_step(random_batch(seed), state)[0] for state in (before, after))
        assert_identical(after, before)
