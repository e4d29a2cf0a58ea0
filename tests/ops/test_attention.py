"""Laws of the dense attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.ops.attention import causal_attention, is_visible


def _heads(seed: int, N: int = 2, L: int = 7, H: int = 4, K: int = 2, E: int = 6) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return (
        jax.random.normal(keys[0], (N, L, H, E)),
        jax.random.normal(keys[1], (N, L, K, E)),
        jax.random.normal(keys[2], (N, L, K, E)),
    )


def _by_loops(query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int | None) -> np.ndarray:
    """The definition, one query at a time, in float64."""
    N, L, H, E = query.shape
    out = np.zeros(query.shape)
    for n, q, h in np.ndindex(N, L, H):
        k = h // (H // key.shape[2])
        first = 0 if window is None else max(0, q - window + 1)
        scores = key[n, first : q + 1, k].astype(np.float64) @ query[n, q, h].astype(np.float64) / np.sqrt(E)
        weights = np.exp(scores - scores.max())
        out[n, q, h] = weights / weights.sum() @ value[n, first : q + 1, k]
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_attention_equals_its_definition(window: int | None, num_kv_heads: int) -> None:
    query, key, value = _heads(0, K=num_kv_heads)
    got = causal_attention(query, key, value, sliding_window=window)
    np.testing.assert_allclose(got, _by_loops(*map(np.asarray, (query, key, value)), window), atol=2e-6)


def test_later_tokens_do_not_change_earlier_ones() -> None:
    query, key, value = _heads(1)
    full = causal_attention(query, key, value)
    noise = [x.at[:, 4:].set(1e3) for x in (query, key, value)]
    np.testing.assert_array_equal(causal_attention(*noise)[:, :4], full[:, :4])


def test_window_of_one_returns_the_values() -> None:
    query, key, value = _heads(2, K=4)
    np.testing.assert_allclose(causal_attention(query, key, value, sliding_window=1), value, atol=1e-6)


def test_window_counts_the_query_itself() -> None:
    index = jnp.arange(4)
    seen = is_visible(index[:, None], index[None, :], sliding_window=2)
    np.testing.assert_array_equal(seen, np.tri(4, dtype=bool) & ~np.tri(4, k=-2, dtype=bool))


def test_softmax_is_float32_for_bfloat16_inputs() -> None:
    query, key, value = (x.astype(jnp.bfloat16) for x in _heads(3))
    got = causal_attention(query, key, value)
    exact = causal_attention(*(x.astype(jnp.float32) for x in (query, key, value)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=2e-2)


def test_gradient_is_finite_for_extreme_scores() -> None:
    query, key, value = _heads(4)
    gradient = jax.grad(lambda q: causal_attention(q * 1e4, key, value).sum())(query)
    assert np.isfinite(gradient).all()


def test_ungroupable_heads_are_refused_with_the_shapes() -> None:
    query, key, value = _heads(5, H=4, K=3)
    with pytest.raises(ValueError, match=r"query \(2, 7, 4, 6\), key \(2, 7, 3, 6\).*K dividing H"):
        causal_attention(query, key, value)
