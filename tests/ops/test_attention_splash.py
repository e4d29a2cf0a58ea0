"""Laws of splash attention: interpreted it is the dense one, and it compiles for TPUs that are not here."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.batch import PROMPT, REJECTED, Places
from jaxalign.ops.attention import make_attention, plain_places
from jaxalign.ops.splash import SplashAttention
from tests.conftest import ROOT
from tests.ops.rows import LAYOUTS, Layout, random_heads, random_places, value_and_gradients

OPTIONS: list[dict[str, Any]] = [{}, {"sliding_window": 9, "soft_cap": 1.0, "scale": 0.7}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splash_is_dense_in_value_and_gradient(layout: Layout, options: dict[str, Any]) -> None:
    places = random_places(layout, num_rows=2, length=96)
    heads = random_heads(0, L=96, E=16)
    got = value_and_gradients(make_attention("splash", interpret=True, **options), places, heads)
    for x, y in zip(got, value_and_gradients(make_attention("dense", **options), places, heads), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_rows_without_shared_prompts_are_not_unfolded() -> None:
    places = dataclasses.replace(random_places("packed", num_rows=2, length=96), unfolded_length=96)
    attention = make_attention("splash", interpret=True)
    assert attention.prepare(places).unfolding is None
    heads = random_heads(1, L=96, E=16)
    got = value_and_gradients(attention, places, heads)
    for x, y in zip(got, value_and_gradients(make_attention("dense"), places, heads), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unfolded_sequences_are_what_a_causal_kernel_needs(layout: Layout) -> None:
    places = random_places(layout, num_rows=5, length=64, seed=2)
    prepared = make_attention("splash").prepare(places)
    segment, branch, position = (np.asarray(x) for x in (places.segment, places.branch, places.position))
    source, sequence = np.asarray(prepared.unfolding.source), np.asarray(prepared.sequence)
    for row in range(5):
        seen = set()
        for s in np.unique(sequence[row][(sequence[row] > 0) & (sequence[row] < 1000)]):
            tokens = source[row][sequence[row] == s]
            assert len(set(segment[row, tokens])) == 1
            assert len(set(branch[row, tokens]) - {PROMPT}) <= 1
            np.testing.assert_array_equal(position[row, tokens], np.arange(len(tokens)))
            seen |= set(tokens.tolist())
        assert seen == set(np.flatnonzero(segment[row]).tolist())


def test_a_row_that_does_not_fit_unfolded_is_not_a_number() -> None:
    # 100 + 20 + 8 tokens need 228 places: 228 are enough, 128 would lose some.
    branch = jnp.repeat(jnp.arange(3), jnp.asarray([100, 20, 8]), total_repeat_length=128)[None]
    position = jnp.arange(128)[None] - jnp.where(branch == REJECTED, 20, 0)
    heads = random_heads(2, N=1, L=128, E=16)
    attention = make_attention("splash", interpret=True)
    for unfolded_length, fits in ((228, True), (128, False)):
        places = Places(jnp.ones_like(branch), branch, position, unfolded_length)
        assert np.isfinite(attention(*heads, attention.prepare(places))).all() == fits


def test_padding_of_an_unfolded_row_stays_finite_and_gives_no_gradient() -> None:
    places = random_places("packed shared", num_rows=2, length=96, seed=4)
    heads = random_heads(3, L=96, E=16)
    attention = make_attention("splash", interpret=True)
    assert np.isfinite(attention(*heads, attention.prepare(places))).all()
    padding = np.asarray(places.segment == 0)
    for gradient in value_and_gradients(attention, places, heads)[1:]:
        assert not gradient[padding].any()


@pytest.mark.parametrize(("length", "size"), [(1024, 512), (1152, 384), (640, 128), (128, 128)])
def test_blocks_divide_the_row(length: int, size: int) -> None:
    assert SplashAttention()._block_sizes(length).block_q == size


def test_block_size_must_be_whole_lanes() -> None:
    with pytest.raises(ValueError, match=r"block_size: got 100, expected a multiple of 128"):
        make_attention("splash", block_size=100)


@pytest.mark.parametrize(
    "case",
    [
        "v5e:4x4 2048 9 3 64 2560 bfloat16",
        pytest.param("v5p:2x2x4 1056 4 4 80 1056 float32", marks=pytest.mark.slow),
        pytest.param("v6e:4x4 1024 32 8 128 2048 bfloat16", marks=pytest.mark.slow),
    ],
)
def test_splash_compiles_for_a_tpu_pod(case: str) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the compiler for TPUs: pip install libtpu")
    # A process of its own: this one has settled on its devices.
    command = [sys.executable, "-m", "tests.ops.splash_for_tpu", *case.split()]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["3", "kernels"]  # forward, and two backward


def test_plain_rows_are_known_to_share_nothing() -> None:
    assert make_attention("splash").prepare(plain_places(2, 128)).unfolding is None


def test_splash_is_hashable_and_equal_by_its_options() -> None:
    assert hash(make_attention("splash", soft_cap=2.0)) == hash(make_attention("splash", soft_cap=2.0))
    assert make_attention("splash") != make_attention("splash", interpret=True)
