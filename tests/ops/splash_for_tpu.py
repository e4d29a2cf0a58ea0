"""Compile splash attention, forward and backward, for a TPU that is not there; run by test_attention_splash.py."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.batch import Places
from jaxalign.ops.attention import make_attention
from jaxalign.parallel.topology import tpu_topology


def num_kernels(topology: str, *, L: int, H: int, K: int, E: int, unfolded_length: int, dtype: str) -> int:
    """Pallas kernels in the program for a topology with a row on each of its devices, under shard_map."""
    devices = np.asarray(tpu_topology(topology).devices)
    sharding = NamedSharding(Mesh(devices, "data"), PartitionSpec("data"))

    def shaped(*shape: int, dtype: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((devices.size, L, *shape), dtype, sharding=sharding)

    attention = make_attention("splash", soft_cap=30.0, sliding_window=L // 2)
    spec = sharding.spec
    kernel = jax.shard_map(
        attention, mesh=sharding.mesh, in_specs=(spec,) * 4, out_specs=spec, check_vma=False
    )

    def gradients(places: Places, *heads: jax.Array) -> tuple[jax.Array, ...]:
        prepared = attention.prepare(places)
        return jax.grad(lambda *x: kernel(*x, prepared).astype(jnp.float32).sum(), argnums=(0, 1, 2))(*heads)

    places = Places(*(shaped(dtype="int32") for _ in range(3)), unfolded_length)
    compiled = jax.jit(gradients).lower(places, shaped(H, E), shaped(K, E), shaped(K, E)).compile()
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


if __name__ == "__main__":
    topology, *numbers, dtype = sys.argv[1:]
    L, H, K, E, unfolded_length = map(int, numbers)
    print(num_kernels(topology, L=L, H=H, K=K, E=E, unfolded_length=unfolded_length, dtype=dtype), "kernels")
