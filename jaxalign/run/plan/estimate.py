"""Compiles the train step of a configuration for a slice of TPUs, and reads off what it would need and do there."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxalign.config import Config, ConfigError
from jaxalign.models.config import DecoderConfig
from jaxalign.parallel import AXES, device_bytes, make_mesh
from jaxalign.parallel.topology import Topology
from jaxalign.run.plan.costs import Collective, Costs, count_costs
from jaxalign.run.plan.hlo import parse_hlo
from jaxalign.run.plan.workload import Workload, required_flops
from jaxalign.run.program import Program, abstract_batch, build_program
from jaxalign.training.state import widened

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class CollectiveTotal:
    """All collectives of one kind in a step: bytes that a device receives, and the least seconds that this takes."""

    count: int
    bytes: int
    seconds: float
    group_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Estimate:
    """What one step of a configuration needs and does on each device of a slice. Bytes and FLOPs are per device.

    `memory` is by part; of a program that does not fit, temporaries are what the compiler says it lacks. Such a
    program has no costs, seconds or collectives. `seconds` are lower bounds: work / the rate of the chip.
    """

    topology: Topology
    mesh: dict[str, int]
    remat: str
    num_micro_batches: int
    workload: Workload
    memory: dict[str, int]
    required_flops: int
    costs: Costs | None
    collectives: dict[str, CollectiveTotal]
    seconds: dict[str, float]
    compile_seconds: float

    @property
    def needed(self) -> int:
        """Bytes of memory that a device needs."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for everything."""
        return self.costs is not None

    @property
    def bound_by(self) -> str:
        """What takes longest: compute, memory or interconnect."""
        return max(self.seconds, key=self.seconds.__getitem__)

    def mfu(self, seconds: float) -> float:
        """The share of the peak at which a step of so many seconds would do the FLOPs that it must."""
        return self.required_flops / (self.topology.chip.peak_flops * seconds)


def estimate_step(
    config: Config, architecture: DecoderConfig, topology: Topology, workload: Workload, num_steps: int
) -> Estimate:
    """Compile the step for the slice. Raises ConfigError if it does not suit the slice, other than by its memory."""
    config.check_devices(len(topology.devices))
    try:
        mesh = make_mesh(config.mesh, list(topology.devices))
    except NotImplementedError as error:
        axes = dict(zip(AXES, config.mesh.shape(len(topology.devices)), strict=True))
        raise ConfigError(
            f"mesh {axes} cannot be laid on the chips of {topology.name}: {error}; use sizes that are products of "
            "its dimensions"
        ) from error
    program = build_program(config, architecture, mesh, num_steps)
    alone = None if workload.alone is None else workload.alone.shape
    batch = abstract_batch(config, workload.shape, alone, mesh)
    start = time.monotonic()
    step = cast(jax.stages.Wrapped, program.step)
    lowered = step.lower(program.abstract_state, program.abstract_frozen, batch)
    known = _known_memory(program, batch)
    estimate = Estimate(
        topology=topology,
        mesh=dict(mesh.shape),
        remat=config.model.remat,
        num_micro_batches=config.train.num_micro_batches,
        workload=workload,
        memory=known,
        required_flops=required_flops(config, architecture, workload) // len(topology.devices),
        costs=None,
        collectives={},
        seconds={},
        compile_seconds=0.0,
    )
    try:
        with no_persistent_cache():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        lacking = _lacking(str(error))
        if lacking is None:
            raise
        memory = known | {"temporaries": max(0, lacking - sum(known.values()))}
        return dataclasses.replace(estimate, memory=memory, compile_seconds=time.monotonic() - start)
    seconds = time.monotonic() - start
    costs = count_costs(parse_hlo(compiled.as_text() or ""), len(topology.devices))
    return dataclasses.replace(
        estimate,
        memory=_memory(program, known, compiled.memory_analysis()),
        costs=costs,
        compile_seconds=seconds,
        **_timing(costs, topology, list(mesh.devices.flat)),
    )


@contextlib.contextmanager
def no_persistent_cache() -> Iterator[None]:
    """Programs for devices that are not here can be written to jax's cache, but not read from it again."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is used is remembered
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _known_memory(program: Program, batch: Any) -> dict[str, int]:
    """Bytes of what is there before the step, exact from shapes and shardings."""
    state = program.abstract_state
    parts = {
        "trained parameters": state.params,
        "optimizer state": state.opt_state,
        "frozen parameters": program.abstract_frozen,
        "batch": batch,
    }
    return {name: _bytes(tree) for name, tree in parts.items()}


def _bytes(tree: Any) -> int:
    return device_bytes(tree, jax.tree.map(lambda x: x.sharding, tree))


def _memory(program: Program, known: dict[str, int], analysis: Any) -> dict[str, int]:
    """All that the compiled program occupies, by part.

    The compiler does not say which of its temporaries are gradients: those of the trained parameters, in float32, are
    taken to be among them.
    """
    params = program.abstract_state.params
    shardings = jax.tree.map(lambda x: x.sharding, params)
    gradients = min(device_bytes(jax.eval_shape(widened, params), shardings), analysis.temp_size_in_bytes)
    return known | {
        "gradients": gradients,
        "activations and other temporaries": analysis.temp_size_in_bytes - gradients,
        # Tiles of arrays are padded, the state holds a few numbers more, and results that reuse no argument.
        "padding and other results": analysis.argument_size_in_bytes
        - sum(known.values())
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }


def _lacking(message: str) -> int | None:
    """Bytes that a program needs which did not fit, None for an error of another kind."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)\)", message)
    return None if found is None else int(float(found[1]) * _SIZES[found[2]])


def _timing(costs: Costs, topology: Topology, devices: list[jax.Device]) -> dict[str, Any]:
    """Lower bounds of the seconds of a step, and its collectives by kind."""
    chip = topology.chip
    by_kind: dict[str, list[tuple[Collective, float]]] = {}
    for collective in costs.collectives:
        links = min(topology.links([devices[n] for n in group]) for group in collective.groups)
        by_kind.setdefault(collective.kind, []).append(
            (collective, collective.bytes / (links * chip.link_bandwidth))
        )
    totals = {
        kind: CollectiveTotal(
            count=sum(c.times for c, _ in found),
            bytes=sum(c.bytes for c, _ in found),
            seconds=sum(seconds for _, seconds in found),
            group_sizes=tuple(sorted({c.group_size for c, _ in found})),
        )
        for kind, found in by_kind.items()
    }
    seconds = {
        "compute": costs.flops / chip.peak_flops,
        "memory": costs.bytes / chip.hbm_bandwidth,
        "interconnect": sum(total.seconds for total in totals.values()),
    }
    return {"collectives": totals, "seconds": seconds}
