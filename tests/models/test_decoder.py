"""Laws of the decoder that hold without any other implementation. Parity with torch is in tests/hf."""

import dataclasses
from typing import Any

import chex
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.batch import Places
from jaxalign.models.config import DecoderConfig
from jaxalign.models.functional import DecoderFns, build_decoder
from jaxalign.models.lora import LoraConfig, merge_lora
from jaxalign.ops.attention import make_attention, plain_places

CONFIG = DecoderConfig(64, 32, 48, 3, 4, 2, 8, qkv_bias=True, tie_embeddings=True)
LORA = LoraConfig(rank=4, alpha=8.0, targets=("query", "out", "down"))


def _build(config: DecoderConfig = CONFIG, **options: Any) -> DecoderFns:
    return build_decoder(config, **{"compute_dtype": "float32", "param_dtype": "float32"} | options)


@pytest.fixture(scope="module")
def fns() -> DecoderFns:
    return _build(lora=LORA)


@pytest.fixture(scope="module")
def params(fns: DecoderFns) -> Any:
    return fns.init(jax.random.key(0))


@pytest.fixture(scope="module")
def adapter(fns: DecoderFns) -> Any:
    """Adapters with an effect: B is not zero."""
    zero = fns.init_lora(jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), zero)


@pytest.fixture(scope="module")
def inputs() -> tuple[jax.Array, Places]:
    return jax.random.randint(jax.random.key(3), (2, 6), 0, CONFIG.vocab_size), plain_places(2, 6)


def test_abstract_trees_describe_what_init_makes(fns: DecoderFns, params: Any) -> None:
    chex.assert_trees_all_equal_shapes_and_dtypes(fns.abstract_params(), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(fns.abstract_lora(), fns.init_lora(jax.random.key(0)))
    assert _build().abstract_lora() == {}


def test_every_dimension_has_a_logical_name(fns: DecoderFns) -> None:
    pairs = [
        (fns.abstract_params(), fns.logical_dims()),
        (fns.abstract_lora(), fns.lora_logical_dims()),
    ]
    for shapes, dims in pairs:
        jax.tree.map(lambda s, d: chex.assert_equal(len(s.shape), len(d)), shapes, dims)
    attention = fns.logical_dims()["layers"]["attention"]
    assert attention["query"]["kernel"] == ("layers", "model", "heads")
    assert attention["key"]["bias"] == ("layers", "kv_heads")
    assert fns.logical_dims()["embedding"] == ("vocab", "model")
    assert fns.lora_logical_dims()["layers"]["mlp"]["down"]["lora_a"] == ("layers", "ffn", "rank")


def test_zero_adapter_has_no_effect(fns: DecoderFns, params: Any, inputs: Any) -> None:
    base = fns.hidden(params, None, *inputs)
    np.testing.assert_array_equal(fns.hidden(params, fns.init_lora(jax.random.key(9)), *inputs), base)


def test_base_of_an_adapted_decoder_is_the_plain_decoder(
    fns: DecoderFns, params: Any, adapter: Any, inputs: Any
) -> None:
    plain = jax.jit(_build().hidden)(params, None, *inputs)
    np.testing.assert_array_equal(jax.jit(fns.hidden)(params, None, *inputs), plain)
    assert np.abs(fns.hidden(params, adapter, *inputs) - plain).max() > 1e-2


def test_merged_adapter_computes_the_same(fns: DecoderFns, params: Any, adapter: Any, inputs: Any) -> None:
    merged = merge_lora(params, adapter, LORA)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
    np.testing.assert_allclose(
        fns.hidden(merged, None, *inputs), fns.hidden(params, adapter, *inputs), atol=2e-5
    )


def test_padding_does_not_reach_real_tokens(fns: DecoderFns, params: Any, inputs: Any) -> None:
    tokens, places = inputs
    garbage = tokens.at[:, 4:].set(63)
    np.testing.assert_array_equal(
        fns.hidden(params, None, tokens, places)[:, :4],
        fns.hidden(params, None, garbage, places)[:, :4],
    )


def test_only_relative_positions_matter(fns: DecoderFns, params: Any, inputs: Any) -> None:
    tokens, places = inputs
    later = dataclasses.replace(places, position=places.position + 11)
    np.testing.assert_allclose(
        fns.hidden(params, None, tokens, later),
        fns.hidden(params, None, tokens, places),
        atol=2e-5,
    )


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_policy_changes_nothing_but_memory(remat: str, params: Any, adapter: Any, inputs: Any) -> None:
    def gradients(policy: str) -> Any:
        hidden = _build(lora=LORA, remat=policy).hidden
        return jax.jit(jax.grad(lambda p, a: jnp.square(hidden(p, a, *inputs)).sum(), (0, 1)))(
            params, adapter
        )

    chex.assert_trees_all_close(gradients(remat), gradients("none"), rtol=1e-5, atol=1e-4)


def _products(jaxpr: Any) -> list[tuple[int, ...]]:
    """The output shapes of all matrix products in a jaxpr, the inner ones included."""
    shapes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shapes.append(equation.outvars[0].aval.shape)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            shapes += _products(inner)
    return shapes


def test_remat_dots_runs_blockwise_attention_once_forward(params: Any, inputs: Any) -> None:
    def num_exponentials(remat: str) -> int:
        hidden = _build(remat=remat, attention=make_attention("blockwise")).hidden
        compiled = jax.jit(jax.grad(lambda p: jnp.square(hidden(p, None, *inputs)).sum())).lower(params)
        return compiled.compile().as_text().count(" exponential(")

    assert num_exponentials("dots") < num_exponentials("full")


def test_no_gradient_of_the_frozen_base_is_computed(
    fns: DecoderFns, params: Any, adapter: Any, inputs: Any
) -> None:
    def loss(params: Any, adapter: Any) -> jax.Array:
        return fns.hidden(params, adapter, *inputs).sum()

    kernel = (CONFIG.intermediate_size, CONFIG.hidden_size)
    of_adapter = _products(jax.make_jaxpr(jax.grad(loss, argnums=1))(params, adapter).jaxpr)
    of_base = _products(jax.make_jaxpr(jax.grad(loss, argnums=0))(params, adapter).jaxpr)
    assert {kernel, kernel[::-1]} & set(of_base)
    assert not {kernel, kernel[::-1]} & set(of_adapter)


def test_bfloat16_compute_keeps_float32_parameters(params: Any, inputs: Any) -> None:
    half = _build(compute_dtype="bfloat16")
    hidden = half.hidden(params, None, *inputs)
    assert hidden.dtype == jnp.bfloat16
    assert half.logits(params, None, *inputs).dtype == jnp.float32
    np.testing.assert_allclose(hidden.astype(jnp.float32), _build().hidden(params, None, *inputs), atol=0.1)
    assert {x.dtype for x in jax.tree.leaves(_build(param_dtype="bfloat16").abstract_params())} == {
        jnp.dtype("bfloat16")
    }


def test_tied_head_is_the_embedding(fns: DecoderFns, params: Any) -> None:
    np.testing.assert_array_equal(fns.head(params), params["embedding"].T)
    untied = _build(dataclasses.replace(CONFIG, tie_embeddings=False))
    assert untied.abstract_params()["head"].shape == (32, 64)


def test_constrain_sees_every_named_activation(params: Any, inputs: Any) -> None:
    seen: dict[tuple[str | None, ...], tuple[int, ...]] = {}

    def constrain(x: jax.Array, dims: tuple[str | None, ...]) -> jax.Array:
        seen[dims] = x.shape
        return x

    jax.eval_shape(_build(constrain=constrain).hidden, params, None, *inputs)
    assert seen == {
        ("batch", "length", "model"): (2, 6, 32),
        ("batch", "length", "heads", None): (2, 6, 4, 8),
        ("batch", "length", "kv_heads", None): (2, 6, 2, 8),
        ("batch", "length", "ffn"): (2, 6, 48),
    }


def test_wrong_use_is_refused_with_the_remedy(params: Any, adapter: Any, inputs: Any) -> None:
    with pytest.raises(ValueError, match="built without adapters; pass lora="):
        _build().hidden(params, adapter, *inputs)
    with pytest.raises(ValueError, match="built without adapters; pass lora="):
        _build().init_lora(jax.random.key(0))
    with pytest.raises(ValueError, match=r"tokens \(2, 6\) and places \[\(1, 6\)\]: expected one shape"):
        _build().hidden(params, None, inputs[0], plain_places(1, 6))
    with pytest.raises(ValueError, match="remat='some': expected one of none, full, dots"):
        _build(remat="some")
    with pytest.raises(ValueError, match="compute_dtype=int32: expected a floating-point type"):
        _build(compute_dtype="int32")
    with pytest.raises(ValueError, match=r"targets \['query', 'query'\] name a projection twice"):
        LoraConfig(targets=("query", "query"))
