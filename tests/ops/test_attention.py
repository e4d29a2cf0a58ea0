"""Laws of the dense attention, and of who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.batch import PROMPT, Places
from jaxalign.ops.attention import is_visible, make_attention, plain_places
from tests.ops.rows import LAYOUTS, Layout, random_heads, random_places


def _visible_by_words(places: Places, row: int, window: int | None) -> np.ndarray:
    """[L, L]: q sees k iff same segment, k not later in the row, and k in the prompt or in the branch of q."""
    segment, branch, position = (
        np.asarray(x)[row].tolist() for x in (places.segment, places.branch, places.position)
    )
    visible = np.zeros((len(segment), len(segment)), bool)
    for q, k in np.ndindex(visible.shape):
        same_segment = segment[q] == segment[k]
        not_later = k <= q
        prompt_or_own_branch = branch[k] == PROMPT or branch[k] == branch[q]
        in_window = window is None or position[q] - position[k] < window
        visible[q, k] = same_segment and not_later and prompt_or_own_branch and in_window
    return visible


def _by_loops(heads: tuple[jax.Array, ...], visible: np.ndarray, soft_cap: float | None) -> np.ndarray:
    """The definition, one query at a time, in float64; visible is [N, L, L]."""
    query, key, value = (np.asarray(x, np.float64) for x in heads)
    N, L, H, E = query.shape
    out = np.zeros(query.shape)
    for n, q, h in np.ndindex(N, L, H):
        k = h // (H // key.shape[2])
        scores = key[n, visible[n, q], k] @ query[n, q, h] / np.sqrt(E)
        if soft_cap is not None:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.exp(scores - scores.max())
        out[n, q, h] = weights / weights.sum() @ value[n, visible[n, q], k]
    return out


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_is_the_rule_in_words(layout: Layout, window: int | None) -> None:
    places = random_places(layout, num_rows=6, length=23, seed=window or 0)
    mask = np.asarray(make_attention("dense", sliding_window=window).prepare(places))
    for row in range(6):
        np.testing.assert_array_equal(mask[row], _visible_by_words(places, row, window))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (3, None), (None, 0.7), (5, 2.0)])
def test_dense_equals_its_definition(
    layout: Layout, num_kv_heads: int, window: int | None, soft_cap: float | None
) -> None:
    heads = random_heads(0, L=16, K=num_kv_heads)
    places = random_places(layout, num_rows=2, length=16)
    attention = make_attention("dense", sliding_window=window, soft_cap=soft_cap)
    visible = np.stack([_visible_by_words(places, row, window) for row in range(2)])
    got = attention(*heads, attention.prepare(places))
    np.testing.assert_allclose(got, _by_loops(heads, visible, soft_cap), atol=2e-6)


def test_scale_multiplies_the_scores() -> None:
    query, key, value = random_heads(1, E=4)
    prepared = make_attention("dense").prepare(plain_places(2, 7))
    scaled = make_attention("dense", scale=1.5)(query, key, value, prepared)
    np.testing.assert_allclose(scaled, make_attention("dense")(3 * query, key, value, prepared), atol=2e-6)


def test_shared_prompt_gives_what_two_sequences_give() -> None:
    branch = jnp.asarray([[0, 0, 0, 1, 1, 2, 2, 2]])
    position = jnp.asarray([[0, 1, 2, 3, 4, 3, 4, 5]])
    shared = Places(jnp.ones_like(branch), branch, position)
    heads = random_heads(2, N=1, L=8)
    attention = make_attention("dense", sliding_window=3)
    got = attention(*heads, attention.prepare(shared))
    rejected = jnp.asarray([0, 1, 2, 5, 6, 7])
    alone = attention(*(x[:, rejected] for x in heads), attention.prepare(plain_places(1, 6)))
    np.testing.assert_allclose(got[:, rejected], alone, atol=1e-6)


def test_later_tokens_do_not_change_earlier_ones() -> None:
    heads = random_heads(3)
    attention = make_attention("dense")
    prepared = attention.prepare(plain_places(2, 7))
    noise = [x.at[:, 4:].set(1e3) for x in heads]
    np.testing.assert_array_equal(attention(*noise, prepared)[:, :4], attention(*heads, prepared)[:, :4])


def test_window_of_one_returns_the_values() -> None:
    query, key, value = random_heads(4, K=4)
    attention = make_attention("dense", sliding_window=1)
    np.testing.assert_allclose(
        attention(query, key, value, attention.prepare(plain_places(2, 7))), value, atol=1e-6
    )


def test_window_counts_the_query_itself() -> None:
    query = key = Places(jnp.ones(4, jnp.int32), jnp.zeros(4, jnp.int32), jnp.arange(4))
    query, index = jax.tree.map(lambda x: x[:, None], query), jnp.arange(4)
    key = jax.tree.map(lambda x: x[None], key)
    seen = is_visible(query, key, query_index=index[:, None], key_index=index[None], sliding_window=2)
    np.testing.assert_array_equal(seen, np.tri(4, dtype=bool) & ~np.tri(4, k=-2, dtype=bool))


def test_softmax_is_float32_for_bfloat16_inputs() -> None:
    heads = random_heads(5, dtype=jnp.bfloat16)
    attention = make_attention("dense")
    prepared = attention.prepare(plain_places(2, 7))
    got, exact = attention(*heads, prepared), attention(*(x.astype(jnp.float32) for x in heads), prepared)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=2e-2)


def test_gradient_is_finite_for_extreme_scores() -> None:
    query, key, value = random_heads(6)
    attention = make_attention("dense")
    prepared = attention.prepare(plain_places(2, 7))
    gradient = jax.grad(lambda q: attention(q * 1e4, key, value, prepared).sum())(query)
    assert np.isfinite(gradient).all()


def test_ungroupable_heads_are_refused_with_the_shapes() -> None:
    heads = random_heads(7, H=4, K=3)
    attention = make_attention("dense")
    with pytest.raises(ValueError, match=r"query \(2, 7, 4, 6\), key \(2, 7, 3, 6\).*K dividing H"):
        attention(*heads, attention.prepare(plain_places(2, 7)))


@pytest.mark.parametrize("name", ["sliding_window", "soft_cap", "scale"])
def test_options_of_zero_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: got 0, expected a finite number above 0, or None"):
        make_attention("dense", **{name: 0})


def test_window_of_half_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sliding_window: got 2\.5, expected a whole number of positions"):
        make_attention("dense", sliding_window=2.5)  # type: ignore[arg-type]


def test_unknown_implementation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"implementation: got 'flash', expected .*dense"):
        make_attention("flash")  # type: ignore[arg-type]
