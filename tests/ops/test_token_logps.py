"""Token log-probs in chunks against the plain computation that holds all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.ops.token_logps import token_logps
from jaxalign.parallel import MeshConfig, make_mesh
from tests.ops.token_logps_dense import dense_logps, value_and_gradients

N, L, D, V = 2, 12, 6, 16


def inputs(seed: int = 0, length: int = L, dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """hidden [N, L, D], head [D, V] and targets [N, L]."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(N, length, D)), dtype)
    head = jnp.asarray(rng.normal(size=(D, V)), dtype)
    return hidden, head, jnp.asarray(rng.integers(0, V, (N, length)), jnp.int32)


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 100])
def test_values_and_gradients_equal_dense_log_softmax(chunk_size, soft_cap, train_head):
    def chunked(hidden, head, targets):
        return token_logps(
            hidden, head, targets, chunk_size=chunk_size, soft_cap=soft_cap, train_head=train_head
        )

    def dense(hidden, head, targets):
        return dense_logps(hidden, head if train_head else jax.lax.stop_gradient(head), targets, soft_cap)

    for got, expected in zip(
        value_and_gradients(chunked, *inputs()), value_and_gradients(dense, *inputs()), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_embedding_tied_to_the_head_gets_the_gradient_of_dense_log_softmax():
    hidden, head, targets = inputs()
    got, expected = (
        value_and_gradients(lambda h, e, t, f=function: f(h, e.T, t), hidden, head.T, targets)
        for function in (token_logps, dense_logps)
    )
    np.testing.assert_allclose(got[2], expected[2], rtol=1e-5, atol=1e-5)


def test_soft_cap_changes_the_values():
    capped = token_logps(*inputs(), soft_cap=3.0)
    assert float(jnp.abs(capped - token_logps(*inputs())).max()) > 0.1


def test_log_probs_of_all_tokens_sum_to_one():
    hidden, head, _ = inputs()
    # every token of the vocabulary in turn, after the same state
    repeated = jnp.repeat(hidden[:, :1], V, axis=1)
    every_token = jnp.tile(jnp.arange(V, dtype=jnp.int32), (N, 1))
    total = jnp.exp(token_logps(repeated, head, every_token, chunk_size=5)).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_no_tokens_have_no_log_probs():
    logps, *gradients = value_and_gradients(token_logps, *inputs(length=0))
    assert logps.shape == (N, 0)
    assert not np.asarray(gradients[1]).any()


def test_vmap_over_heads_equals_one_head_at_a_time():
    hidden, head, targets = inputs()
    heads = jnp.stack([head, 2 * head])
    got = jax.vmap(lambda head: jax.grad(lambda h: token_logps(h, head, targets).sum())(hidden))(heads)
    for one, head in zip(got, heads, strict=True):
        expected = jax.grad(lambda h, head=head: dense_logps(h, head, targets).sum())(hidden)
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


def float64_values_and_gradient(hidden, head, targets) -> tuple[np.ndarray, np.ndarray]:
    """[N, L] log-probs and [N, L, D], the gradient of each of them with respect to its own state."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logits = hidden @ head
    logps = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    one_hot = np.asarray(targets)[..., None] == np.arange(head.shape[1])
    return logps[one_hot].reshape(targets.shape), (one_hot - np.exp(logps)) @ head.T


def test_bfloat16_sum_over_1000_tokens_is_within_a_thousandth_of_a_nat_of_float64():
    # The inputs are bf16; all error beyond them must come from float32 sums, not from bf16 ones.
    arrays = inputs(length=1000, dtype=jnp.bfloat16)
    total = np.asarray(token_logps(*arrays, chunk_size=128), np.float64).sum(axis=1)
    expected = float64_values_and_gradient(*arrays)[0].sum(axis=1)
    np.testing.assert_allclose(total, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("train_head", [True, False])
def test_bfloat16_gradient_of_each_of_1000_tokens_is_within_1_percent_of_float64(train_head):
    hidden, head, targets = inputs(length=1000, dtype=jnp.bfloat16)
    # Half of the states are almost certain of their target, so that 1 - p is small beside the rounding of p.
    certain = 2 * jnp.moveaxis(head[:, targets], 0, 2)
    hidden = jnp.where((targets % 2 == 0)[..., None], certain, hidden)
    gradient = jax.grad(lambda h: token_logps(h, head, targets, train_head=train_head).sum())(hidden)
    expected = float64_values_and_gradient(hidden, head, targets)[1]
    error = np.linalg.norm(np.asarray(gradient, np.float64) - expected, axis=-1)
    assert np.linalg.norm(expected, axis=-1).min() < 0.01
    assert (error / np.linalg.norm(expected, axis=-1)).max() < 0.01


def test_result_is_float32_whatever_the_inputs_are():
    assert token_logps(*inputs(dtype=jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int16])
def test_targets_may_be_any_integers(dtype):
    hidden, head, targets = inputs()
    expected = token_logps(hidden, head, targets)
    np.testing.assert_array_equal(token_logps(hidden, head, targets.astype(dtype)), expected)


def test_each_gradient_has_the_dtype_of_its_own_input():
    hidden, head, targets = inputs(dtype=jnp.bfloat16)
    head = head.astype(jnp.float32)
    _, *gradients = value_and_gradients(token_logps, hidden, head, targets)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    _, *expected = value_and_gradients(dense_logps, hidden.astype(jnp.float32), head, targets)
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize("train_head", [True, False])
def test_gradient_stays_finite_where_one_logit_dominates(train_head):
    hidden, head, targets = inputs()
    results = value_and_gradients(
        lambda *x: token_logps(*x, train_head=train_head), 1e3 * hidden, head, targets
    )
    assert all(np.isfinite(x).all() for x in results)


@pytest.mark.parametrize("target", [-100, -1, V])
def test_target_outside_the_vocabulary_is_nan_and_changes_no_other_token(target):
    hidden, head, targets = inputs()
    logps = token_logps(hidden, head, targets.at[0, 3].set(target))
    expected = token_logps(hidden, head, targets).at[0, 3].set(jnp.nan)
    np.testing.assert_array_equal(logps, expected)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"targets": (N, L + 1)}, r"targets: got shape \(2, 13\), expected \[N, L\] of hidden \(2, 12, 6\)"),
        ({"hidden": (N, D)}, r"targets: got shape \(2, 12\), expected \[N, L\] of hidden \(2, 6\)"),
        ({"head": (D + 1, V)}, r"head: got shape \(7, 16\), expected \[D, V\] with D = 6"),
        ({"head": (D, 0)}, r"head: got shape \(6, 0\), expected \[D, V\] with D = 6 and V of at least 1"),
        ({"head": (V,)}, r"head: got shape \(16,\), expected \[D, V\] with D = 6"),
    ],
)
def test_wrong_shape_raises_and_names_the_argument(shapes, message):
    shapes = {"hidden": (N, L, D), "head": (D, V), "targets": (N, L), **shapes}
    with pytest.raises(ValueError, match=message):
        token_logps(
            jnp.zeros(shapes["hidden"]), jnp.zeros(shapes["head"]), jnp.zeros(shapes["targets"], jnp.int32)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size: got 0, expected an integer of at least 1 token"),
        ({"chunk_size": 2.0}, "chunk_size: got 2.0, expected an integer of at least 1 token"),
        ({"soft_cap": 0.0}, "soft_cap: got 0.0, expected a positive, finite number, or None"),
        ({"chunk_size": True}, "chunk_size: got True, expected an integer of at least 1 token"),
        ({"soft_cap": float("inf")}, "soft_cap: got inf, expected a positive, finite number, or None"),
        ({"soft_cap": float("nan")}, "soft_cap: got nan, expected a positive, finite number, or None"),
    ],
)
def test_option_out_of_range_raises_and_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        token_logps(*inputs(), **options)


def test_arrays_of_the_wrong_kind_raise_and_are_named():
    hidden, head, targets = inputs()
    with pytest.raises(ValueError, match="targets: got dtype float32, expected integer token ids"):
        token_logps(hidden, head, targets.astype(jnp.float32))
    with pytest.raises(ValueError, match="hidden: got dtype int32, expected floating-point numbers"):
        token_logps(hidden.astype(jnp.int32), head, targets)
    with pytest.raises(ValueError, match="head: got dtype complex64, expected floating-point numbers"):
        token_logps(hidden, head.astype(jnp.complex64), targets)


def test_chunk_size_may_be_any_integer():
    np.testing.assert_array_equal(
        token_logps(*inputs(), chunk_size=np.int64(4)), token_logps(*inputs(), chunk_size=4)
    )


def test_wide_target_beyond_int32_is_nan_and_not_another_token():
    hidden, head, targets = inputs()
    with jax.enable_x64(True):
        assert jnp.isnan(token_logps(hidden, head, targets.astype(jnp.int64) + 2**32)).all()


def test_split_vocabulary_and_batch_equal_one_device():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    hidden, head, targets = inputs()
    expected = value_and_gradients(lambda *x: token_logps(*x, chunk_size=5), hidden, head, targets)
    specs = PartitionSpec(("data", "fsdp")), PartitionSpec("fsdp", "tensor"), PartitionSpec(("data", "fsdp"))
    sharded = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip((hidden, head, targets), specs, strict=True)
    ]
    got = jax.jit(lambda *x: value_and_gradients(lambda *y: token_logps(*y, chunk_size=5), *x))(*sharded)
    for one, many in zip(expected, got, strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)
