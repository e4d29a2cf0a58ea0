"""Generation on a mesh: the same tokens as on one device, and no device ever holds the cache of another."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.models.functional import DecoderFns, Params
from jaxalign.models.generate import generate_tokens
from jaxalign.models.sampling import GREEDY, Sampling
from jaxalign.ops.attention import make_attention
from jaxalign.parallel import MeshConfig, make_constrain, make_mesh, tree_shardings
from jaxalign.parallel.kernels import MeshAttention
from jaxalign.run.plan.hlo import parse_hlo
from tests.models.generating import LORA, PROMPTS, adapter_of, decoder_of, generated, padded, params_of

ROWS = PROMPTS * 2
NUMBER = 7
SAMPLINGS = {"greedy": GREEDY, "top_p": Sampling(1.0, top_p=0.9), "top_k": Sampling(0.8, top_k=20)}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def on_mesh(architecture: str, mesh: Mesh) -> DecoderFns:
    window = decoder_of(architecture).config.sliding_window
    kernel = make_attention("blockwise", sliding_window=window)
    attention = MeshAttention(kernel=kernel, mesh=mesh)
    return decoder_of(architecture, lora=LORA, attention=attention, constrain=make_constrain(mesh))


def placed(tree: Params, dims: Any, mesh: Mesh) -> Params:
    return jax.device_put(tree, tree_shardings(dims, tree, mesh))


@functools.cache
def of_one_device(architecture: str, sampling: str) -> np.ndarray:
    decoder = decoder_of(architecture, lora=LORA)
    return generated(
        decoder, params_of(decoder), adapter_of(decoder), ROWS, width=12,
        sampling=SAMPLINGS[sampling], max_new_tokens=NUMBER,
    ).tokens  # fmt: skip


def arguments(decoder: DecoderFns, mesh: Mesh) -> tuple[Any, ...]:
    rows, lengths = padded(ROWS, 12)
    of_rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return (
        placed(params_of(decoder), decoder.logical_dims(), mesh),
        placed(adapter_of(decoder), decoder.lora_logical_dims(), mesh),
        *jax.device_put((rows, lengths, jax.random.split(jax.random.key(5), len(ROWS))), of_rows),
    )


@pytest.mark.parametrize(
    ("mesh", "architecture", "sampling"),
    [
        ((8, 1, 1), "tied", "top_k"),
        ((1, 4, 2), "window", "greedy"),
        ((2, 2, 2), "untied, biased", "top_p"),
        ((2, 1, 4), "tied", "top_k"),  # more tensor parts than key heads
    ],
    ids=str,
)
def test_any_mesh_gives_the_tokens_of_one_device(
    mesh: tuple[int, int, int], architecture: str, sampling: str
) -> None:
    grid = make_mesh(MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2]))
    decoder = on_mesh(architecture, grid)
    run = functools.partial(
        generate_tokens, decoder, sampling=SAMPLINGS[sampling], stop_ids=(), max_new_tokens=NUMBER
    )
    tokens = jax.jit(run)(*arguments(decoder, grid)).tokens
    np.testing.assert_array_equal(tokens, of_one_device(architecture, sampling))


def test_cache_is_never_gathered() -> None:
    grid = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    decoder = on_mesh("tied", grid)
    run = functools.partial(generate_tokens, decoder, sampling=GREEDY, stop_ids=(1,), max_new_tokens=NUMBER)
    module = parse_hlo(jax.jit(run).lower(*arguments(decoder, grid)).compile().as_text())
    everything = [
        x for computation in module.computations.values() for x in computation.instructions.values()
    ]
    own = (len(ROWS) // 4, 1, 12 + NUMBER, 8)  # rows over data and fsdp, the two key heads over tensor
    assert any(shape.dims == own for x in everything for shape in x.shapes)
    of_cache = [s.dims for x in everything for s in x.shapes if len(s.dims) == 4 and 12 + NUMBER in s.dims]
    assert max(np.prod(dims) for dims in of_cache) == np.prod(own)
    communicated = [s.dims for x in everything if x.opcode.startswith(COLLECTIVES) for s in x.shapes]
    assert communicated
    assert not [dims for dims in communicated if 12 + NUMBER in dims]


def test_layers_that_are_laid_out_for_the_steps_stay_spread() -> None:
    grid = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    decoder = on_mesh("tied", grid)
    params, adapter, *_ = arguments(decoder, grid)
    for base, _ in jax.jit(decoder.split_layers)(params, adapter):
        kernels = [x for x in jax.tree.leaves(base) if x.ndim == 2]
        assert len(kernels) == 7
        assert all(x.addressable_shards[0].data.size == x.size // 8 for x in kernels)
