"""Summed response log-probs against a plain dense computation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.batch import PairBatch
from jaxalign.data.loader import pad_batch
from jaxalign.training.logps import pair_logps, sum_response_logps, with_policy_mi, without_prompts
from tests.training import toy

D, V, L = 5, 11, 10
# (first, end) of each response: in the middle, up to the last position, one token, all but the first, none
RUNS = [(3, 7), (6, 10), (9, 10), (1, 10), (0, 0)]
N = len(RUNS)


def inputs(seed: int = 0):
    """hidden [N, L, D], head [D, V], tokens [N, L] and mask [N, L]."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((N, L), bool)
    for row, (first, end) in zip(mask, RUNS, strict=True):
        row[first:end] = True
    return (
        jnp.asarray(rng.normal(size=(N, L, D)), jnp.float32),
        jnp.asarray(rng.normal(size=(D, V)), jnp.float32),
        jnp.asarray(rng.integers(0, V, (N, L)), jnp.int32),
        jnp.asarray(mask),
    )


@jax.jit
def dense_sums(hidden, head, tokens, mask):
    logps = jax.nn.log_softmax(jnp.matmul(hidden[:, :-1], head), axis=-1)
    of_token = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(mask[:, 1:], of_token, 0.0).sum(axis=1)


def sums(hidden, head, tokens, mask, *, response_length=9, chunk_size=4):
    function = jax.jit(sum_response_logps, static_argnames=("response_length", "chunk_size", "train_head"))
    return function(
        hidden,
        head,
        tokens,
        mask,
        response_length=response_length,
        chunk_size=chunk_size,
        train_head=True,
    )


def test_sums_equal_dense_computation():
    np.testing.assert_allclose(sums(*inputs()), dense_sums(*inputs()), rtol=1e-5)


def test_gradients_equal_dense_computation():
    hidden, head, tokens, mask = inputs()
    scale = jnp.arange(1.0, N + 1)
    got, expected = (
        jax.jit(jax.grad(lambda h, w, f=f: (scale * f(h, w, tokens, mask)).sum(), argnums=(0, 1)))(
            hidden, head
        )
        for f in (sums, dense_sums)
    )
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("response_length", [10, 16, 50])
def test_longer_response_length_than_needed_changes_nothing(response_length):
    np.testing.assert_allclose(
        sums(*inputs(), response_length=response_length), sums(*inputs()), rtol=1e-6, atol=1e-6
    )


def test_tokens_outside_the_response_do_not_count_as_targets():
    hidden, head, tokens, mask = inputs()
    others = jnp.where(mask, tokens, (tokens + 1) % V)
    np.testing.assert_array_equal(sums(hidden, head, others, mask), sums(hidden, head, tokens, mask))
    assert (sums(hidden, head, (tokens + 1) % V, mask)[:-1] != sums(hidden, head, tokens, mask)[:-1]).all()


def test_response_up_to_the_last_position_counts_its_last_token():
    hidden, head, tokens, mask = inputs()
    changed = tokens.at[1, L - 1].set((tokens[1, L - 1] + 1) % V)
    difference = sums(hidden, head, changed, mask) - sums(hidden, head, tokens, mask)
    assert np.flatnonzero(difference).tolist() == [1]


def test_row_of_padding_gives_zero_and_finite_gradients():
    hidden, head, tokens, mask = inputs()
    nothing = jnp.zeros_like(mask)
    assert not np.asarray(sums(hidden, head, tokens, nothing)).any()
    gradients = jax.grad(lambda h, w: sums(h, w, tokens, nothing).sum(), argnums=(0, 1))(hidden, head)
    assert all((np.asarray(g) == 0).all() for g in gradients)


def make_pairs() -> PairBatch:
    """Two pairs, of which only tokens and masks are read."""
    _, _, tokens, mask = inputs()
    fields = dict.fromkeys(PairBatch.__dataclass_fields__)
    return PairBatch(
        **fields | {"tokens": tokens[:4].reshape(2, 2, L), "response_mask": mask[:4].reshape(2, 2, L)}
    )


def test_pair_logps_puts_each_branch_in_its_place():
    _, head, tokens, mask = inputs()
    table = jnp.asarray(np.random.default_rng(1).normal(size=(V, D)), jnp.float32)
    got = pair_logps(lambda tokens, _: table[tokens], head, make_pairs(), response_length=9, chunk_size=4)
    expected = dense_sums(table[tokens], head, tokens, mask)[:4].reshape(2, 2)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_model_sees_positions_from_zero_in_every_row():
    seen = {}

    def hidden_fn(tokens, positions):
        seen["tokens"], seen["positions"] = tokens, positions
        return jnp.zeros((*tokens.shape, D))

    pair_logps(hidden_fn, jnp.zeros((D, V)), make_pairs(), response_length=9)
    assert seen["tokens"].shape == (4, L)
    np.testing.assert_array_equal(seen["positions"], np.tile(np.arange(L, dtype=np.int32), (4, 1)))


def test_head_of_another_width_raises_and_names_it():
    with pytest.raises(ValueError, match=r"head: got shape \(6, 11\), expected \[D, V\] with D = 5"):
        pair_logps(
            lambda t, _: jnp.zeros((*t.shape, D)), jnp.zeros((D + 1, V)), make_pairs(), response_length=9
        )


def test_arrays_of_different_batches_are_refused():
    mixed = dataclasses.replace(toy.make_batch(4), weight=np.ones(3, np.float32))
    with pytest.raises(AssertionError, match=r"\(4,\)"):
        pair_logps(
            lambda tokens, _: jnp.zeros((*tokens.shape, 2)), jnp.zeros((2, 8)), mixed, response_length=4
        )


@pytest.mark.parametrize("empty", [[], [7], [7, 6]], ids=["nothing", "one token", "two tokens"])
def test_without_prompts_gives_the_rows_that_the_reference_pass_reads(empty):
    dataset = toy.make_dataset(np.zeros((6, toy.K), np.float32))
    dataset = dataclasses.replace(dataset, empty_prompt_ids=np.array(empty, np.int32))
    index = np.array([4, 0, -1, 5], np.int32)
    length = int(dataset.row_lengths.max()) + 3
    expected = pad_batch(dataset.without_prompts(), index, length)
    got = jax.jit(lambda batch: without_prompts(batch, dataset.empty_prompt_ids))(
        pad_batch(dataset, index, length)
    )
    np.testing.assert_array_equal(got.response_mask, expected.response_mask)
    real = expected.response_mask | (np.arange(length) < len(empty)) & (index >= 0)[:, None, None]
    np.testing.assert_array_equal(np.where(real, got.tokens, 0), np.where(real, expected.tokens, 0))


def test_policy_mi_is_nats_per_token_and_0_in_padding():
    batch = toy.make_batch(4, num_padding=1)
    policy, alone = jnp.full((4, 2), -6.0), jnp.full((4, 2), -9.0)
    mi = with_policy_mi(policy.at[3].set(0.0), alone.at[3].set(0.0), batch).mi
    np.testing.assert_allclose(mi[:3], 3.0 / batch.response_mask[:3].sum(axis=2), rtol=1e-6)
    assert not np.asarray(mi[3]).any()
