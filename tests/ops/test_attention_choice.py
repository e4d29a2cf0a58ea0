"""Laws of the choice of an attention: what runs where, and what is refused; and what cuDNN is asked to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.ops.attention import default_implementation, make_attention, plain_places, supported
from jaxalign.ops.cudnn import CudnnAttention
from tests.ops.rows import LAYOUTS, Layout, random_heads, random_places, value_and_gradients


@pytest.mark.parametrize(("platform", "name"), [("cpu", "blockwise"), ("tpu", "splash"), ("gpu", "cudnn")])
def test_each_platform_has_its_kernel(platform: str, name: str) -> None:
    assert default_implementation(platform) == name
    assert supported(name, platform, head_dim=64, dtype="bfloat16") is None


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("name", ["dense", "blockwise"])
def test_plain_jax_runs_everywhere(platform: str, name: str) -> None:
    assert supported(name, platform, head_dim=7, dtype="float32", soft_cap=30.0) is None


@pytest.mark.parametrize(
    ("name", "platform", "head", "reason"),
    [
        ("splash", "cpu", {}, "splash attention runs on tpu alone, not on cpu"),
        ("cudnn", "tpu", {}, "cudnn attention runs on gpu alone, not on tpu"),
        ("cudnn", "gpu", {"dtype": "float32"}, "bfloat16 or float16, and the heads are float32"),
        ("cudnn", "gpu", {"head_dim": 60}, "a multiple of 8, at most 128, and these have 60"),
        ("cudnn", "gpu", {"head_dim": 512}, "a multiple of 8, at most 128, and these have 512"),
        ("cudnn", "gpu", {"soft_cap": 30.0}, "no soft cap of scores, and the model has one of 30.0"),
    ],
)
def test_what_cannot_run_is_named_with_the_reason(name: str, platform: str, head: dict, reason: str) -> None:
    got = supported(name, platform, **{"head_dim": 64, "dtype": "bfloat16", **head})
    assert got is not None
    assert reason in got


@pytest.mark.parametrize(
    ("name", "option"),
    [("dense", "block_size"), ("cudnn", "block_size"), ("dense", "interpret"), ("blockwise", "interpret")],
)
def test_options_of_other_implementations_are_refused(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{name} attention has no {option}; leave it out"):
        make_attention(name, **{option: 8})


@pytest.mark.parametrize("name", ["blockwise", "splash"])
def test_block_size_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="block_size: got 0, expected"):
        make_attention(name, block_size=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 7])
def test_what_cudnn_is_asked_is_what_dense_computes(layout: Layout, window: int | None) -> None:
    places = random_places(layout, num_rows=2, length=32)
    heads = random_heads(0, L=32, E=8, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # inside of jax dtypes are mixed
        got = value_and_gradients(CudnnAttention(window, implementation="xla"), places, heads)
    want = value_and_gradients(make_attention("dense", sliding_window=window), places, heads)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, atol=0.05)


@pytest.mark.parametrize(
    ("dtype", "length", "soft_cap", "reason"),
    [
        (jnp.float32, 8, None, "the heads are float32"),
        (jnp.bfloat16, 7, None, "rows of an even length, and these have 7 tokens"),
        (jnp.bfloat16, 8, 2.0, "has no soft cap"),
    ],
)
def test_cudnn_refuses_what_it_cannot_compute(
    dtype: jnp.dtype, length: int, soft_cap: float | None, reason: str
) -> None:
    attention = make_attention("cudnn", soft_cap=soft_cap)
    heads = random_heads(1, L=length, E=8, dtype=dtype)
    prepared = attention.prepare(plain_places(2, length))
    with pytest.raises(ValueError, match=rf"{reason}.*; use blockwise attention"):
        jax.eval_shape(attention, *heads, prepared)
