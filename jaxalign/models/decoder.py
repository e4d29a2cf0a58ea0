"""The decoder as Flax NNX modules: stacked layers under `lax.scan`, recomputed by policy.

Parameters carry the logical names of their dimensions in the metadata `dims`; which mesh axis serves a name
is decided elsewhere. Nothing outside `jaxalign.models` handles these modules: see functional.py.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.batch import Places
from jaxalign.models.config import DecoderConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.models.rope import apply_rope, rope_tables
from jaxalign.ops.attention import ATTENTION_RESULTS, Attention

RematPolicy = Literal["none", "full", "dots"]
Dims = tuple[str | None, ...]
Rope = tuple[jax.Array, jax.Array]
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""(query [N, L, H, E], key, value [N, L, K, E]) -> what the queries get [N, L, H, E], and what is kept of the layer."""


@dataclasses.dataclass(frozen=True)
class DecoderSpec:
    """Everything static about a decoder. `constrain(x, dims)` pins the sharding of an activation.

    `kernels_out_in` says that kernels lie as [out, in] and not as [in, out]: for a few tokens at a time a CPU then
    reads them as they lie in memory.
    """

    config: DecoderConfig
    compute_dtype: jnp.dtype
    param_dtype: jnp.dtype
    remat: RematPolicy
    lora: LoraConfig | None
    attention: Attention
    constrain: Callable[[jax.Array, Dims], jax.Array]
    kernels_out_in: bool = False


class LoraParam(nnx.Variable):
    """A parameter of an adapter, so that it can be told from the base."""


def _normal(spec: DecoderSpec, rngs: nnx.Rngs, shape: tuple[int, ...], dims: Dims) -> nnx.Param:
    value = 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(spec.param_dtype), dims=dims)


def out_in_product(tokens: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """x W for few tokens x [n, in] and a kernel [out, in], which is read as it lies: [n, out], summed in `dtype`."""
    product = jnp.matmul(kernel, tokens.T, preferred_element_type=dtype)
    # Written as it comes, transposed after: a CPU that writes it transposed takes more than twice as long.
    return jax.lax.platform_dependent(product, cpu=jax.lax.optimization_barrier, default=lambda x: x).T


class Linear(nnx.Module):
    """y = x W (+ b) (+ scale (x A) B), computed in the compute dtype."""

    def __init__(
        self, spec: DecoderSpec, name: str, shape: tuple[int, int], dims: Dims, bias: bool, rngs: nnx.Rngs
    ) -> None:
        self.spec = spec
        self.kernel = _normal(spec, rngs, shape, dims)
        self.has_bias = bias
        if bias:
            self.bias = nnx.Param(jnp.zeros(shape[1], spec.param_dtype), dims=dims[1:])
        self.lora = spec.lora if spec.lora is not None and name in spec.lora.targets else None
        if self.lora is not None:
            rank, bound = self.lora.rank, 1 / math.sqrt(shape[0])
            a = jax.random.uniform(rngs.lora(), (shape[0], rank), jnp.float32, -bound, bound)
            self.lora_a = LoraParam(a, dims=(dims[0], "rank"))
            self.lora_b = LoraParam(jnp.zeros((rank, shape[1]), jnp.float32), dims=("rank", dims[1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, L, in] -> [N, L, out]."""
        dtype = self.spec.compute_dtype
        tokens = x.reshape(-1, x.shape[2])  # or the gradient of the kernel would transpose its inputs (CPU)
        kernel = self.kernel[...].astype(dtype)
        y = out_in_product(tokens, kernel) if self.spec.kernels_out_in else tokens @ kernel
        if self.has_bias:
            y += self.bias[...].astype(dtype)[None]
        if self.lora is not None:
            low = tokens @ self.lora_a[...].astype(dtype)
            y += self.lora.scale * (low @ self.lora_b[...].astype(dtype))
        return y.reshape(*x.shape[:2], -1)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.spec = spec
        self.scale = nnx.Param(jnp.ones(spec.config.hidden_size, spec.param_dtype), dims=("model",))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, L, D] -> [N, L, D]."""
        tokens = x.reshape(-1, x.shape[2]).astype(jnp.float32)  # flat, as in Linear: 10 x faster sums on CPU
        mean_square = jnp.mean(jnp.square(tokens), axis=-1, keepdims=True)
        normed = tokens * jax.lax.rsqrt(mean_square + self.spec.config.rms_norm_eps)
        scaled = normed * self.scale[...].astype(jnp.float32)[None]
        return scaled.reshape(x.shape).astype(self.spec.compute_dtype)


class SelfAttention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs) -> None:
        self.spec = spec
        c = spec.config
        D, HE, KE = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.query = Linear(spec, "query", (D, HE), ("model", "heads"), c.qkv_bias, rngs)
        self.key = Linear(spec, "key", (D, KE), ("model", "kv_heads"), c.qkv_bias, rngs)
        self.value = Linear(spec, "value", (D, KE), ("model", "kv_heads"), c.qkv_bias, rngs)
        self.out = Linear(spec, "out", (HE, D), ("heads", "model"), c.out_bias, rngs)

    def __call__(self, x: jax.Array, rope: Rope, attend: Attend) -> tuple[jax.Array, Any]:
        """[N, L, D] and the tables of `rope_tables` -> [N, L, D], and what `attend` keeps."""
        N, L, _ = x.shape
        c, constrain = self.spec.config, self.spec.constrain

        def heads(y: jax.Array, name: str) -> jax.Array:
            return constrain(y.reshape(N, L, -1, c.head_dim), ("batch", "length", name, None))

        query = apply_rope(heads(self.query(x), "heads"), rope)
        key = apply_rope(heads(self.key(x), "kv_heads"), rope)
        value = heads(self.value(x), "kv_heads")
        mixed, kept = attend(query, key, value)
        return self.out(mixed.reshape(N, L, -1)), kept


class MLP(nnx.Module):
    """Gated feed-forward block: down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs) -> None:
        self.spec = spec
        c = spec.config
        D, F = c.hidden_size, c.intermediate_size
        self.gate = Linear(spec, "gate", (D, F), ("model", "ffn"), c.mlp_bias, rngs)
        self.up = Linear(spec, "up", (D, F), ("model", "ffn"), c.mlp_bias, rngs)
        self.down = Linear(spec, "down", (F, D), ("ffn", "model"), c.mlp_bias, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, L, D] -> [N, L, D]."""
        gated = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(self.spec.constrain(gated, ("batch", "length", "ffn")))


class Layer(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs) -> None:
        self.spec = spec
        self.attention_norm = RMSNorm(spec)
        self.attention = SelfAttention(spec, rngs)
        self.mlp_norm = RMSNorm(spec)
        self.mlp = MLP(spec, rngs)

    def __call__(self, x: jax.Array, rope: Rope, attend: Attend) -> tuple[jax.Array, Any]:
        """[N, L, D] -> [N, L, D], and what `attend` keeps."""
        mixed, kept = self.attention(self.attention_norm(x), rope, attend)
        x += mixed
        x += self.mlp(self.mlp_norm(x))
        return self.spec.constrain(x, ("batch", "length", "model")), kept


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm, and the head unless it is tied to the embedding."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs) -> None:
        self.spec = spec
        c = spec.config
        self.embedding = _normal(spec, rngs, (c.vocab_size, c.hidden_size), ("vocab", "model"))
        stack = nnx.split_rngs(splits=c.num_layers)(nnx.vmap(lambda keys: Layer(spec, keys)))
        self.layers = stack(rngs)
        self.final_norm = RMSNorm(spec)
        if not c.tie_embeddings:
            self.head = _normal(spec, rngs, (c.hidden_size, c.vocab_size), ("model", "vocab"))

    def __call__(self, tokens: jax.Array, places: Places) -> jax.Array:
        """Token ids and places [N, L] -> hidden states [N, L, D] after the final norm."""
        return self._all_layers(tokens, places, keep=False)[0]

    def prefill(self, tokens: jax.Array, places: Places) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """As a call, with the keys and values of all layers, each [layers, N, L, K, E]."""
        return self._all_layers(tokens, places, keep=True)

    def _all_layers(self, tokens: jax.Array, places: Places, *, keep: bool) -> tuple[jax.Array, Any]:
        x, rope = self._embedded(tokens, places.position)
        prepared = self.spec.attention.prepare(places)
        graphdef, stacked = nnx.split(self.layers)

        def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
            return self.spec.attention(query, key, value, prepared), (key, value) if keep else None

        def layer_step(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
            return nnx.merge(graphdef, layer)(x, rope, attend)

        x, kept = jax.lax.scan(_rematerialised(layer_step, self.spec.remat), x, stacked)
        return self.final_norm(x), kept

    def step(
        self, layers: Sequence[Layer], tokens: jax.Array, positions: jax.Array, attends: Sequence[Attend]
    ) -> tuple[jax.Array, list[Any]]:
        """The newest token of each row, ids and positions [N] -> hidden [N, D] after the final norm, what layers keep.

        The `layers` stand for the stack; each has an `attend` of its own.
        """
        x, rope = self._embedded(tokens[:, None], positions[:, None])
        everything = []
        for layer, attend in zip(layers, attends, strict=True):
            x, kept = layer(x, rope, attend)
            everything.append(kept)
        return self.final_norm(x)[:, 0], everything

    def _embedded(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Rope]:
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(self.spec.compute_dtype)
        return self.spec.constrain(x, ("batch", "length", "model")), rope_tables(self.spec.config, positions)


def _rematerialised(step: Callable, policy: RematPolicy) -> Callable:
    """The layer step, recomputed in the backward pass as the policy says."""
    if policy == "none":
        return step
    policies = jax.checkpoint_policies
    saveable = {
        "full": policies.nothing_saveable,
        "dots": policies.save_from_both_policies(
            policies.checkpoint_dots_with_no_batch_dims,
            policies.save_only_these_names(ATTENTION_RESULTS),
        ),
    }
    # A scan keeps forward and backward apart by itself, so the barriers against merging them are not needed.
    return jax.checkpoint(step, policy=saveable[policy], prevent_cse=False)
