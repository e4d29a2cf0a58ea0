"""Summed response log-probs against a plain dense computation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.batch import PairBatch, Places, Rows
from jaxalign.training.logps import (
    pair_logps,
    rows_logps,
    sum_by_response,
    with_policy_mi,
    without_prompts,
)
from tests.training import toy

D, V, L = 5, 11, 10
# Columns (first, end) of the responses of each row: two in one row, up to the last column, one token, none.
RUNS = [[(3, 6), (6, 8)], [(6, 10)], [(9, 10)], []]
RESPONSES = [[0, 1], [2], [5], []]  # 2 * pair + branch; the responses 3 and 4 have no tokens
N, PAIRS = len(RUNS), 3
PREDICTORS = [[2, 3, 4, 2, 6], [5, 6, 7, 8], [8], []]  # of a rejected response first the end of the prompt


def make_rows(num_groups: int = 2, num_targets: int = 10) -> Rows:
    """Random tokens; the response tokens of each group of rows in a random order."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (N, L)).astype(np.int32)
    lists = np.full((3, num_groups, num_targets), -1, np.int32)
    per_group = N // num_groups
    for group in range(num_groups):
        found = []
        for row in range(group * per_group, (group + 1) * per_group):
            columns = [column for first, end in RUNS[row] for column in range(first, end)]
            owners = [
                owner
                for (first, end), owner in zip(RUNS[row], RESPONSES[row], strict=True)
                for _ in range(first, end)
            ]
            base = (row - group * per_group) * L
            for column, predictor, owner in zip(columns, PREDICTORS[row], owners, strict=True):
                found.append((base + predictor, tokens[row, column], owner))
        order = rng.permutation(len(found))
        lists[:, group, : len(found)] = np.array(found)[order].T
    lists[:2] = np.maximum(lists[:2], 0)
    zeros = np.zeros((N, L), np.int32)
    return Rows(tokens, Places(zeros, zeros, zeros), *lists)


def make_batch(rows: Rows) -> PairBatch:
    return dataclasses.replace(toy.make_batch(PAIRS), rows=rows)


def hidden_and_head() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    hidden, head = rng.normal(size=(N, L, D)), rng.normal(size=(D, V))
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32)


def dense_sums(hidden, head, tokens):
    """[PAIRS, 2], token by token as the tables above say."""
    logps = jax.nn.log_softmax(jnp.matmul(hidden, head, precision="highest"), axis=-1)
    sums = jnp.zeros(2 * PAIRS)
    for row in range(N):
        predictors = iter(PREDICTORS[row])
        for (first, end), owner in zip(RUNS[row], RESPONSES[row], strict=True):
            for column in range(first, end):
                sums = sums.at[owner].add(logps[row, next(predictors), tokens[row, column]])
    return sums.reshape(PAIRS, 2)


def sums(hidden, head, rows):
    return jax.jit(rows_logps, static_argnums=3)(hidden, head, rows, PAIRS)


@pytest.mark.parametrize(("num_groups", "num_targets"), [(1, 10), (1, 24), (2, 9), (4, 5)])
def test_sums_equal_dense_computation_however_rows_are_grouped(num_groups, num_targets):
    hidden, head = hidden_and_head()
    rows = make_rows(num_groups, num_targets)
    np.testing.assert_allclose(sums(hidden, head, rows), dense_sums(hidden, head, rows.tokens), rtol=1e-5)


def test_gradients_equal_dense_computation():
    hidden, head = hidden_and_head()
    rows = make_rows()
    scale = jnp.arange(1.0, 2 * PAIRS + 1).reshape(PAIRS, 2)
    got, expected = (
        jax.jit(jax.grad(lambda h, w, f=f: (scale * f(h, w)).sum(), argnums=(0, 1)))(hidden, head)
        for f in (lambda h, w: sums(h, w, rows), lambda h, w: dense_sums(h, w, rows.tokens))
    )
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_response_without_tokens_has_zero():
    assert np.flatnonzero(np.asarray(sums(*hidden_and_head(), make_rows())).reshape(-1) == 0).tolist() == [
        3,
        4,
    ]


def test_padding_of_the_lists_reaches_neither_value_nor_gradient():
    hidden, head = hidden_and_head()
    nothing = dataclasses.replace(make_rows(), response=np.full((2, 10), -1, np.int32))
    assert not np.asarray(sums(hidden, head, nothing)).any()
    gradients = jax.grad(lambda h, w: sums(h, w, nothing).sum(), argnums=(0, 1))(hidden, head)
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_not_a_number_in_padding_stays_there():
    logps = jnp.array([[1.0, jnp.nan, 2.0]])
    got = sum_by_response(logps, jnp.array([[0, -1, 3]]), 2)
    np.testing.assert_array_equal(got, [[1.0, 0.0], [0.0, 2.0]])


def test_model_is_given_the_rows():
    rows, seen = make_rows(), []

    def hidden_fn(given):
        seen.append(given)
        return hidden_and_head()[0]

    got = pair_logps(hidden_fn, hidden_and_head()[1], make_batch(rows))
    assert seen == [rows]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, dense_sums(*hidden_and_head(), rows.tokens), rtol=1e-5)


def test_head_of_another_width_raises_and_names_it():
    with pytest.raises(ValueError, match=r"head: got shape \(6, 11\), expected \[D, V\] with D = 5"):
        pair_logps(lambda rows: jnp.zeros((N, L, D)), jnp.zeros((D + 1, V)), make_batch(make_rows()))


def test_arrays_that_do_not_belong_together_are_refused():
    batch = make_batch(make_rows())
    hidden, head = hidden_and_head()
    with pytest.raises(AssertionError, match=r"\(4,\)"):
        pair_logps(lambda rows: hidden, head, dataclasses.replace(batch, weight=np.ones(4, np.float32)))
    with pytest.raises(AssertionError, match=r"\(3, 10, 5\)"):
        pair_logps(lambda rows: hidden[:3], head, batch)
    shorter = dataclasses.replace(make_rows(), target=np.zeros((2, 9), np.int32))
    with pytest.raises(AssertionError, match=r"\(2, 9\)"):
        pair_logps(lambda rows: hidden, head, make_batch(shorter))


def test_rows_alone_take_the_place_of_the_rows():
    batch = make_batch(make_rows())
    alone = make_rows(1)
    assert without_prompts(dataclasses.replace(batch, alone=alone)).rows is alone
    with pytest.raises(ValueError, match="make the loader with alone=True"):
        without_prompts(dataclasses.replace(batch, alone=None))


def test_policy_mi_is_nats_per_token_and_0_in_padding():
    batch = toy.make_batch(4, num_padding=1)
    policy, alone = jnp.full((4, 2), -6.0), jnp.full((4, 2), -9.0)
    mi = with_policy_mi(policy.at[3].set(0.0), alone.at[3].set(0.0), batch).mi
    np.testing.assert_allclose(mi[:3], 3.0 / batch.lengths[:3], rtol=1e-6)
    assert not np.asarray(mi[3]).any()
