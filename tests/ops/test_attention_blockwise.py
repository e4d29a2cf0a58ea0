"""Laws of the blockwise attention: it is the dense one, without the work that nobody needs and without its memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.batch import Places
from jaxalign.ops.attention import Attention, make_attention, plain_places
from tests.ops.rows import LAYOUTS, Layout, random_heads, random_places, value_and_gradients

OPTIONS: list[dict[str, Any]] = [
    {},
    {"sliding_window": 7},
    {"soft_cap": 0.8},
    {"sliding_window": 12, "soft_cap": 2.0, "scale": 0.7},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_blockwise_is_dense_in_value_and_gradient(layout: Layout, options: dict[str, Any]) -> None:
    # 45 tokens are five blocks and a half; the row is padded inside.
    places = random_places(layout, num_rows=3, length=45, seed=len(options))
    heads = random_heads(0, N=3, L=45)
    got, want = (
        value_and_gradients(attention, places, heads)
        for attention in (
            make_attention("blockwise", block_size=8, **options),
            make_attention("dense", **options),
        )
    )
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6)


@pytest.mark.parametrize("num_kv_heads", [1, 4])
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_blocks_and_grouping_change_nothing(num_kv_heads: int, block_size: int) -> None:
    places = random_places("packed shared", num_rows=2, length=32)
    heads = random_heads(1, L=32, K=num_kv_heads)
    got = value_and_gradients(make_attention("blockwise", block_size=block_size), places, heads)
    for x, y in zip(got, value_and_gradients(make_attention("dense"), places, heads), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6)


def test_blockwise_bfloat16_is_as_near_to_exact_as_dense() -> None:
    places = random_places("packed shared", num_rows=2, length=64)
    heads = random_heads(2, L=64, E=16, dtype=jnp.bfloat16)
    exact = value_and_gradients(make_attention("dense"), places, tuple(x.astype(jnp.float32) for x in heads))
    dense = value_and_gradients(make_attention("dense"), places, heads)
    blockwise = value_and_gradients(make_attention("blockwise", block_size=16), places, heads)
    for x, y, z in zip(blockwise, dense, exact, strict=True):
        assert np.abs(x - z).max() <= max(1.5 * np.abs(y - z).max(), 1e-2)


def test_output_has_the_dtype_of_the_query() -> None:
    heads = random_heads(3, dtype=jnp.bfloat16)
    attention = make_attention("blockwise", block_size=4)
    assert attention(*heads, attention.prepare(plain_places(2, 7))).dtype == jnp.bfloat16


def test_padding_stays_finite_and_gives_no_gradient() -> None:
    places = random_places("packed", num_rows=2, length=32)
    places = jax.tree.map(lambda x: x.at[:, 12:].set(0), places)  # whole blocks of nothing but padding
    attention = make_attention("blockwise", block_size=8)
    heads = random_heads(4, L=32)
    assert np.isfinite(attention(*heads, attention.prepare(places))).all()
    for gradient in value_and_gradients(attention, places, heads)[1:]:
        assert np.isfinite(gradient).all()
        assert not gradient[:, 12:].any()


def test_extreme_scores_stay_finite() -> None:
    query, key, value = random_heads(5, L=16)
    attention = make_attention("blockwise", block_size=4)
    for x in value_and_gradients(attention, plain_places(2, 16), (1e4 * query, key, value)):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("window", [None, 5])
def test_blocks_without_an_allowed_key_are_not_listed(window: int | None) -> None:
    places = random_places("packed shared", num_rows=4, length=48, seed=3)
    mask = np.asarray(make_attention("dense", sliding_window=window).prepare(places))
    mask = mask & np.asarray(places.segment > 0)[:, :, None]
    sees = mask.reshape(4, 6, 8, 6, 8).any(axis=(2, 4))
    blocks = make_attention("blockwise", sliding_window=window, block_size=8).prepare(places)
    for n, q in np.ndindex(4, 6):
        assert blocks.keys[n, q, : blocks.num_keys[n, q]].tolist() == np.flatnonzero(sees[n, q]).tolist()
        seen_by = blocks.queries[n, q, : blocks.num_queries[n, q]]
        assert seen_by.tolist() == np.flatnonzero(sees[n, :, q]).tolist()
    assert sees.sum() < 4 * 6 * 7 / 2  # a causal row without segments computes 21 blocks


def test_blocks_that_are_not_listed_are_not_read() -> None:
    segment = jnp.repeat(jnp.asarray([[1, 2]]), 16, axis=1)
    places = Places(segment, jnp.zeros_like(segment), jnp.arange(32)[None] % 16)
    heads = tuple(x.at[:, 16:].set(jnp.nan) for x in random_heads(6, N=1, L=32))
    for x in value_and_gradients(make_attention("blockwise", block_size=8), places, heads):
        assert np.isfinite(x[:, :16]).all()  # a mask alone would not do: 0 * nan is nan


def _temporary_bytes(attention: Attention, length: int) -> int:
    heads = [jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)] * 3

    def run(places: Places, *heads: jax.Array) -> Any:
        prepared = attention.prepare(places)
        return jax.grad(lambda *x: attention(*x, prepared).sum(), argnums=(0, 1, 2))(*heads)

    compiled = jax.jit(run).lower(jax.eval_shape(lambda: plain_places(1, length)), *heads).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_length() -> None:
    attention, dense = make_attention("blockwise", block_size=64), make_attention("dense")
    small, large = (_temporary_bytes(attention, length) for length in (2048, 8192))
    assert large < 4.5 * small
    assert _temporary_bytes(dense, 8192) > 20 * large


def test_rows_and_heads_on_eight_devices_are_as_on_one() -> None:
    mesh = jax.make_mesh((4, 2), ("rows", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    places = random_places("packed shared", num_rows=4, length=32)
    heads = random_heads(8, N=4, L=32)
    attention = make_attention("blockwise", block_size=8)
    prepared = attention.prepare(places)
    of_heads = jax.P("rows", None, "heads", None)
    specs = (of_heads, of_heads, of_heads, jax.P("rows"))
    on_mesh = jax.shard_map(attention, mesh=mesh, in_specs=specs, out_specs=of_heads, check_vma=False)
    np.testing.assert_allclose(jax.jit(on_mesh)(*heads, prepared), attention(*heads, prepared), atol=1e-6)


@pytest.mark.parametrize("length", [1, 5])
def test_rows_shorter_than_a_block_are_one_block(length: int) -> None:
    attention = make_attention("blockwise")
    places = plain_places(2, length)
    assert attention.prepare(places).column.shape == (2, 1, length)
    heads = random_heads(9, L=length)
    got = value_and_gradients(attention, places, heads)
    for x, y in zip(got, value_and_gradients(make_attention("dense"), places, heads), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6)


@pytest.mark.parametrize("other", [(2, 6), (2, 64), (2, 3), (1, 5)])
def test_places_of_other_rows_are_refused(other: tuple[int, int]) -> None:
    attention = make_attention("blockwise")
    heads = random_heads(9, L=5)
    with pytest.raises(ValueError, match=r"rows \[N, L\] = \(2, 5\), but was given what was prepared for"):
        attention(*heads, attention.prepare(plain_places(*other)))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_rows_without_tokens_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least one row of at least one token"):
        make_attention("blockwise").prepare(plain_places(*shape))
