"""The decoder as functions of plain nested dictionaries of arrays. No Flax type leaves this module.

`build_decoder` is the one entry; adapters are a second tree beside the base parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from jaxalign.batch import Places
from jaxalign.models.config import DecoderConfig
from jaxalign.models.decoder import (
    Attend,
    Decoder,
    DecoderSpec,
    Dims,
    Layer,
    LoraParam,
    RematPolicy,
    out_in_product,
)
from jaxalign.models.lora import LoraConfig
from jaxalign.ops.attention import Attention, make_attention

Params = dict[str, Any]  # nested, with arrays at the leaves
LayerParams = tuple[Params, Params]  # the base and the adapter of one layer; the latter may be empty
StepFn = Callable[[jax.Array, jax.Array, Sequence[Attend]], tuple[jax.Array, list[Any]]]  # see `make_step`


def unconstrained(x: jax.Array, dims: Dims) -> jax.Array:
    """Leave the sharding of an activation to the compiler."""
    return x


@dataclasses.dataclass(frozen=True)
class DecoderFns:
    """Functions of one decoder. Base parameters and adapter parameters are two separate trees."""

    spec: DecoderSpec

    @property
    def config(self) -> DecoderConfig:
        """The architecture."""
        return self.spec.config

    @property
    def lora(self) -> LoraConfig | None:
        """The settings of the adapters, None for a decoder without any."""
        return self.spec.lora

    def abstract_params(self) -> Params:
        """The tree of base parameters as `jax.ShapeDtypeStruct`."""
        return nnx.to_pure_dict(_structure(self.spec)[1])

    def abstract_lora(self) -> Params:
        """The tree of adapter parameters as `jax.ShapeDtypeStruct`; empty without adapters."""
        return nnx.to_pure_dict(_structure(self.spec)[2])

    def init(self, key: jax.Array) -> Params:
        """Random base parameters."""
        return jax.jit(lambda key: _initial(self.spec, key)[0])(key)

    def init_lora(self, key: jax.Array) -> Params:
        """Adapters without effect: A random, B zero. Raises ValueError for a decoder without adapters."""
        if self.spec.lora is None:
            raise ValueError("init_lora: this decoder was built without adapters; pass lora=LoraConfig(...)")
        # Under jit the base parameters, which are not returned, are never computed.
        return jax.jit(lambda key: _initial(self.spec, key)[1])(key)

    def hidden(
        self, params: Params, lora_params: Params | None, tokens: jax.Array, places: Places
    ) -> jax.Array:
        """Hidden states [N, L, D] after the final norm, from token ids and places, both [N, L].

        Without `lora_params` the base runs alone, also in a decoder that was built with adapters.
        """
        _check_one_shape(tokens, places)
        return self._module(params, lora_params)(tokens, places)

    def prefill(
        self, params: Params, lora_params: Params | None, tokens: jax.Array, places: Places
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Logits [N, V] float32 after the last column, and keys and values of all layers, each [layers, N, L, K, E]."""
        _check_one_shape(tokens, places)
        hidden, kept = self._module(params, lora_params).prefill(tokens, places)
        return self._logits(params, hidden[:, -1]), kept

    def split_layers(self, params: Params, lora_params: Params | None) -> list[LayerParams]:
        """The parameters of each layer by itself, as `make_step` wants them.

        A loop would copy its part of a stack each time, cast what is not in the compute dtype, and on a CPU repack
        kernels: here this is done once.
        """
        adapters = {} if lora_params is None else lora_params["layers"]
        cut = functools.partial(_of_layer, dtype=self.spec.compute_dtype)
        return [(cut(params["layers"], i), cut(adapters, i)) for i in range(self.config.num_layers)]

    def make_step(self, params: Params, layers: Sequence[LayerParams]) -> StepFn:
        """A function for one more token in each row, with `layers` from `split_layers` of the same parameters.

        It maps ids and positions [N], and an `Attend` for each layer, to the logits [N, V] float32 of the token after
        and the list of what the layers keep.
        """
        top = {name: x for name, x in params.items() if name != "layers"}
        params = {**_in_dtype(top, self.spec.compute_dtype), "layers": params["layers"]}
        module = self._module(params, None)
        spec = dataclasses.replace(self.spec, kernels_out_in=True, lora=self.lora if layers[0][1] else None)
        modules = [nnx.merge(_layer_structure(spec), *layer) for layer in layers]

        def step(
            tokens: jax.Array, positions: jax.Array, attends: Sequence[Attend]
        ) -> tuple[jax.Array, list[Any]]:
            hidden, kept = module.step(modules, tokens, positions, attends)
            return self._logits(params, hidden), kept

        return step

    def _module(self, params: Params, lora_params: Params | None) -> Decoder:
        """The module with these parameters. Raises ValueError for adapters that it was built without."""
        if lora_params is None:
            graphdef, _, _ = _structure(dataclasses.replace(self.spec, lora=None))
            return nnx.merge(graphdef, params)
        if self.spec.lora is None:
            raise ValueError(
                "lora_params given to a decoder built without adapters; pass lora=LoraConfig(...)"
            )
        graphdef, _, _ = _structure(self.spec)
        return nnx.merge(graphdef, params, lora_params)

    def head(self, params: Params) -> jax.Array:
        """The output projection [D, V] in the parameters' dtype; the embedding transposed if it is tied."""
        return params["embedding"].T if self.config.tie_embeddings else params["head"]

    def logits(
        self, params: Params, lora_params: Params | None, tokens: jax.Array, places: Places
    ) -> jax.Array:
        """Logits [N, L, V] float32, for short inputs: training never holds them all."""
        return self._logits(params, self.hidden(params, lora_params, tokens, places))

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Hidden states [n, D] or [N, L, D] to logits float32; a tied head is used as it lies, never transposed."""
        tied = self.config.tie_embeddings
        head = (params["embedding"] if tied else params["head"]).astype(hidden.dtype)
        if tied and hidden.ndim == 2:
            return out_in_product(hidden, head, jnp.float32)
        product = "...d,vd->...v" if tied else "...d,dv->...v"
        return jnp.einsum(product, hidden, head, preferred_element_type=jnp.float32)

    def logical_dims(self) -> Params:
        """A tuple of logical dimension names per base parameter, in the tree of `abstract_params`."""
        return _logical_dims(_structure(self.spec)[1])

    def lora_logical_dims(self) -> Params:
        """A tuple of logical dimension names per adapter parameter, in the tree of `abstract_lora`."""
        return _logical_dims(_structure(self.spec)[2])


def build_decoder(
    config: DecoderConfig,
    *,
    compute_dtype: Any,
    param_dtype: Any,
    remat: RematPolicy = "full",
    lora: LoraConfig | None = None,
    attention: Attention | None = None,
    constrain: Callable[[jax.Array, Dims], jax.Array] = unconstrained,
) -> DecoderFns:
    """The functions of a decoder, with dense attention unless another is given.

    `constrain(x, dims)` may pin the sharding of each named activation. Raises ValueError for an option that is none.
    """
    if attention is None:
        attention = make_attention("dense", sliding_window=config.sliding_window)
    if remat not in get_args(RematPolicy):
        raise ValueError(f"remat={remat!r}: expected one of {', '.join(get_args(RematPolicy))}")
    dtypes = {"compute_dtype": jnp.dtype(compute_dtype), "param_dtype": jnp.dtype(param_dtype)}
    for name, dtype in dtypes.items():
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name}={dtype}: expected a floating-point type such as float32 or bfloat16")
    return DecoderFns(
        DecoderSpec(config, remat=remat, lora=lora, attention=attention, constrain=constrain, **dtypes)
    )


@functools.cache
def _layer_structure(spec: DecoderSpec) -> nnx.GraphDef:
    """The module graph of one layer."""
    key = jax.random.key(0)
    layer = nnx.eval_shape(lambda: Layer(spec, nnx.Rngs(params=key, lora=key)))
    return nnx.split(layer, nnx.Param, LoraParam)[0]


@functools.cache
def _structure(spec: DecoderSpec) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The module graph, and the abstract base and adapter states."""
    key = jax.random.key(0)
    model = nnx.eval_shape(lambda: Decoder(spec, nnx.Rngs(params=key, lora=key)))
    return nnx.split(model, nnx.Param, LoraParam)


def _check_one_shape(tokens: jax.Array, places: Places) -> None:
    shapes = {x.shape for x in jax.tree.leaves(places)}
    if tokens.ndim != 2 or shapes != {tokens.shape}:
        raise ValueError(f"tokens {tokens.shape} and places {sorted(shapes)}: expected one shape [N, L]")


def _of_layer(stack: Params, index: int, dtype: jnp.dtype) -> Params:
    """The parameters of one layer in the dtype, kernels as [out, in]."""
    own = _in_dtype(jax.tree.map(lambda x: jax.lax.index_in_dim(x, index, keepdims=False), stack), dtype)
    return jax.tree_util.tree_map_with_path(lambda path, x: x.T if path[-1].key == "kernel" else x, own)


def _in_dtype(tree: Params, dtype: jnp.dtype) -> Params:
    """The parameters as the layers would cast them, but for the scales of norms, which are computed in float32."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "scale" else x.astype(dtype), tree
    )


def _initial(spec: DecoderSpec, key: jax.Array) -> tuple[Params, Params]:
    base_key, lora_key = jax.random.split(key)
    model = Decoder(spec, nnx.Rngs(params=base_key, lora=lora_key))
    _, base, lora = nnx.split(model, nnx.Param, LoraParam)
    return nnx.to_pure_dict(base), nnx.to_pure_dict(lora)


def _logical_dims(state: nnx.State) -> Params:
    def dims(path: tuple[Any, ...], variable: nnx.Variable) -> Dims:
        return ("layers", *variable.dims) if path[0] == "layers" else variable.dims

    flat = {path: dims(path, variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)
