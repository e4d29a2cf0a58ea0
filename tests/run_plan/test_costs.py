"""Costs read off real compiled programs, against what follows from their shapes by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxalign.run.plan.collectives import Collective
from jaxalign.run.plan.compile import no_persistent_cache
from jaxalign.run.plan.costs import Costs, count_costs
from jaxalign.run.plan.hlo import HloError, parse_hlo
from tests.run_plan.conftest import module_of

P = PartitionSpec
BYTES = 8 * 16 * 4  # of what each device holds of x
X = jax.ShapeDtypeStruct((16, 64), jnp.float32)


SPLIT = P("a", "b")


def on_mesh(function, out_specs=SPLIT) -> Costs:
    """Costs of a function of [8, 16] on each of 2 x 4 devices."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=SPLIT, out_specs=out_specs, check_vma=False)
    return count_costs(module_of(mapped, X), 8)


def gather(x):
    return lax.all_gather(x, "a", axis=0, tiled=True)


# Bytes that a device receives from the others: of an array of size s among n, s (n - 1) / n; twice for an all-reduce.
SINGLE = {
    "all-reduce": (lambda x: lax.psum(x, "b"), P("a", None), 4, 2 * BYTES * 3 // 4),
    "all-gather": (gather, P(None, "b"), 2, 2 * BYTES // 2),
    "reduce-scatter": (
        lambda x: lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True),
        P(("a", "b"), None),
        4,
        BYTES * 3 // 4,
    ),
    "all-to-all": (lambda x: lax.all_to_all(x, "b", 0, 0, tiled=True), P("a", "b"), 4, BYTES * 3 // 4),
    "collective-permute": (
        lambda x: lax.ppermute(x, "b", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        P("a", "b"),
        2,
        BYTES,
    ),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_collective_counts_what_a_device_must_receive(kind):
    function, out_specs, group_size, size = SINGLE[kind]
    (found,) = on_mesh(function, out_specs).collectives
    assert (found.kind, found.bytes, found.times, found.group_size) == (kind, size, 1, group_size)


def test_groups_are_the_devices_along_an_axis():
    (found,) = on_mesh(gather, P(None, "b")).collectives
    assert sorted(found.groups) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_loops_multiply_also_within_loops():
    def inner(x, _):
        return lax.psum_scatter(gather(x), "a", scatter_dimension=0, tiled=True) * 0.5, None

    def outer(x, _):
        return lax.scan(inner, lax.psum(x, "b") * 0.1, None, length=5)

    costs = on_mesh(lambda x: lax.scan(outer, x, None, length=3)[0])
    assert {(c.kind, c.times): c.bytes for c in costs.collectives} == {
        ("all-reduce", 3): 3 * 2 * BYTES * 3 // 4,
        ("all-gather", 15): 15 * BYTES,
        ("reduce-scatter", 15): 15 * BYTES,
    }
    assert costs.unknown_loops == 0


def test_flops_of_a_loop_multiply():
    def layers(x, weights):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.ones((32, 16)), jnp.ones((7, 16, 16))
    assert count_costs(module_of(layers, x, weights), 1).flops == 7 * 2 * 32 * 16 * 16


def test_loop_of_unknown_length_is_counted_once_and_said():
    def halve(x):
        return lax.while_loop(lambda x: (x @ x).sum() > 1.0, lambda x: x / 2, x)

    costs = count_costs(module_of(halve, jnp.ones((4, 4))), 1)
    assert costs.unknown_loops == 1


def test_bytes_of_a_plain_sum_are_its_operands_and_result():
    x = jnp.ones((1000, 100))
    assert count_costs(module_of(lambda a, b: a + b, x, x), 1).bytes == 3 * x.nbytes


def test_a_slice_of_an_operand_is_read_and_not_all_of_it():
    x = jnp.ones((64, 1000))
    costs = count_costs(module_of(lambda x, i: lax.dynamic_index_in_dim(x, i) * 2.0, x, 3), 1)
    assert costs.bytes <= 2 * 4000 + 100


def test_text_that_is_no_program_is_refused():
    with pytest.raises(HloError, match=r"no ENTRY computation: expected the text of a compiled program"):
        parse_hlo("HloModule nothing\n")


def layers_on(devices, num_layers, width, inner):
    """Gradients of stacked layers whose weights are split over all devices, compiled; and one forward pass' FLOPs."""
    mesh = Mesh(list(devices), ("fsdp",), axis_types=(AxisType.Auto,))
    rows, tokens = len(devices), 256

    def placed(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    def loss(weights, x):
        def layer(x, w):
            return lax.with_sharding_constraint(
                jax.nn.silu(x @ w[0]) @ w[1], NamedSharding(mesh, P("fsdp"))
            ), None

        x, _ = lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
        return (x.astype(jnp.float32) ** 2).sum()

    weights = (
        placed((num_layers, width, inner), None, "fsdp"),
        placed((num_layers, inner, width), None, "fsdp"),
    )
    x = placed((rows, tokens, width), "fsdp")
    shardings = jax.tree.map(lambda w: w.sharding, weights)
    step = jax.jit(jax.grad(loss), out_shardings=shardings)
    with no_persistent_cache():
        text = step.lower(weights, x).compile().as_text()
    return text, 2 * 2 * tokens * width * inner * num_layers


def test_tpu_program_counts_loops_recomputation_and_transfers(v5e4):
    text, forward = layers_on(v5e4.devices, num_layers=5, width=512, inner=1024)
    costs = count_costs(parse_hlo(text), 4)
    # The forward pass, half of it again (the second product of a layer is not needed again), and twice backwards.
    assert costs.flops == pytest.approx(3.5 * forward)
    assert costs.unknown_loops == costs.unknown_kernels == 0
    weights = 5 * 2 * 512 * 1024 * 2
    received = {c.kind: 0 for c in costs.collectives}
    for collective in costs.collectives:
        received[collective.kind] += collective.bytes
    # All weights forward and backward, and their gradients: 3/4 of them are on other devices.
    assert received["all-gather"] == pytest.approx(2 * weights * 3 / 4)
    gradients = received.get("reduce-scatter", 0) + received.get("all-reduce", 0) / 2
    assert gradients == pytest.approx(weights * 3 / 4, rel=0.2)


def test_cost_analysis_of_the_compiler_counts_a_loop_once(v5e4):
    """Why costs are counted here: should this fail, the compiler's figures can be used."""
    device = NamedSharding(Mesh(v5e4.devices[:1], ("x",)), P())
    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=device)

    def flops(length):
        step = jax.jit(lambda x: lax.scan(lambda y, _: (y @ x, None), x, None, length=length)[0])
        with no_persistent_cache():
            compiled = step.lower(x).compile()
        return compiled.cost_analysis()["flops"], count_costs(parse_hlo(compiled.as_text()), 1).flops

    theirs, ours = flops(100)
    assert ours == 100 * 2 * 256**3
    assert theirs < ours / 10


def test_collective_without_others_is_none():
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    alone = jax.shard_map(
        lambda x: lax.psum(x, "a"), mesh=mesh, in_specs=P("a"), out_specs=P(), check_vma=False
    )
    assert count_costs(module_of(alone, X), 1).collectives == ()


def test_group_size_is_that_of_the_first_group():
    assert Collective("all-gather", 1, 1, ((0, 1, 2), (3, 4, 5))).group_size == 3
