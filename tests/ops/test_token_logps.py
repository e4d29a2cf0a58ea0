"""Token log-probs in chunks against the plain computation that holds all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.ops.token_logps import token_logps
from jaxalign.parallel import MeshConfig, make_mesh

N, L, D, V = 2, 12, 6, 16


def inputs(seed: int = 0, length: int = L, dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """hidden [N, L, D], head [D, V] and targets [N, L]."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(N, length, D)), dtype)
    head = jnp.asarray(rng.normal(size=(D, V)), dtype)
    return hidden, head, jnp.asarray(rng.integers(0, V, (N, length)), jnp.int32)


def dense_logps(hidden, head, targets, soft_cap=None):
    logits = jnp.matmul(hidden, head)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), targets[..., None], axis=-1)[..., 0]


def value_and_gradients(function, hidden, head, targets):
    """Log-probs, and the gradients of a sum in which every token counts differently."""
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=targets.shape), jnp.float32)

    def total(hidden, head):
        logps = function(hidden, head, targets)
        return (logps * cotangent).sum(), logps

    (_, logps), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(hidden, head)
    return logps, *gradients


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 100])
def test_values_and_gradients_equal_dense_log_softmax(chunk_size, soft_cap):
    def chunked(hidden, head, targets):
        return token_logps(hidden, head, targets, chunk_size=chunk_size, soft_cap=soft_cap)

    def dense(hidden, head, targets):
        return dense_logps(hidden, head, targets, soft_cap)

    for got, expected in zip(
        value_and_gradients(chunked, *inputs()), value_and_gradients(dense, *inputs()), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_soft_cap_changes_the_values():
    hidden, head, targets = inputs()
    capped = token_logps(hidden, head, targets, chunk_size=4, soft_cap=3.0)
    assert float(jnp.abs(capped - token_logps(hidden, head, targets, chunk_size=4)).max()) > 0.1


def test_log_probs_of_all_tokens_sum_to_one():
    hidden, head, _ = inputs()
    # every token of the vocabulary in turn, after the same state
    repeated = jnp.repeat(hidden[:, :1], V, axis=1)
    every_token = jnp.tile(jnp.arange(V, dtype=jnp.int32), (N, 1))
    np.testing.assert_allclose(
        jnp.exp(token_logps(repeated, head, every_token, chunk_size=5)).sum(axis=1), 1.0, rtol=1e-6
    )


def test_frozen_head_gets_zeros_and_hidden_the_same_gradient():
    hidden, head, targets = inputs()

    trained, frozen = (
        value_and_gradients(
            lambda *x, flag=flag: token_logps(*x, chunk_size=5, train_head=flag), hidden, head, targets
        )[1:]
        for flag in (True, False)
    )
    np.testing.assert_allclose(frozen[0], trained[0], rtol=1e-5, atol=1e-5)
    assert not np.asarray(frozen[1]).any()
    assert np.asarray(trained[1]).any()


def test_bfloat16_sum_over_1000_tokens_is_within_a_thousandth_of_a_nat_of_float64():
    # The inputs are bf16; all error beyond them must come from float32 sums, not from bf16 ones.
    hidden, head, targets = inputs(length=1000, dtype=jnp.bfloat16)
    total = np.asarray(token_logps(hidden, head, targets, chunk_size=128), np.float64).sum(axis=1)
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    logps = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    expected = np.take_along_axis(logps, np.asarray(targets)[..., None], axis=-1).sum(axis=(1, 2))
    np.testing.assert_allclose(total, expected, rtol=0, atol=1e-3)


def test_result_is_float32_whatever_the_inputs_are():
    assert token_logps(*inputs(dtype=jnp.bfloat16)).dtype == jnp.float32


def test_each_gradient_has_the_dtype_of_its_own_input():
    hidden, head, targets = inputs(dtype=jnp.bfloat16)
    head = head.astype(jnp.float32)
    _, *gradients = value_and_gradients(token_logps, hidden, head, targets)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    _, *expected = value_and_gradients(dense_logps, hidden.astype(jnp.float32), head, targets)
    for got, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=0, atol=0.05)


def test_gradient_stays_finite_where_one_logit_dominates():
    hidden, head, targets = inputs()
    logps, *gradients = value_and_gradients(token_logps, 1e3 * hidden, head, targets)
    assert all(np.isfinite(x).all() for x in (logps, *gradients))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"targets": (N, L + 1)}, r"targets: got shape \(2, 13\), expected \[N, L\] of hidden \(2, 12, 6\)"),
        ({"hidden": (N, D)}, r"targets: got shape \(2, 12\), expected \[N, L\] of hidden \(2, 6\)"),
        ({"head": (D + 1, V)}, r"head: got shape \(7, 16\), expected \[D, V\] with D = 6"),
        ({"head": (V,)}, r"head: got shape \(16,\), expected \[D, V\] with D = 6"),
    ],
)
def test_wrong_shape_raises_and_names_the_argument(shapes, message):
    shapes = {"hidden": (N, L, D), "head": (D, V), "targets": (N, L), **shapes}
    with pytest.raises(ValueError, match=message):
        token_logps(
            jnp.zeros(shapes["hidden"]), jnp.zeros(shapes["head"]), jnp.zeros(shapes["targets"], jnp.int32)
        )


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
