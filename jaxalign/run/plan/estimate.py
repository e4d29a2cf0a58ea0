"""What one step of a configuration needs and does on a slice of TPUs, from the program that the TPUs would run."""

import time
from dataclasses import dataclass
from typing import Any

import jax

from jaxalign.config import Config
from jaxalign.models.config import DecoderConfig
from jaxalign.parallel import make_mesh
from jaxalign.parallel.topology import Topology
from jaxalign.run.plan.collectives import Collective
from jaxalign.run.plan.compile import TooLargeError, compile_step
from jaxalign.run.plan.costs import Costs, count_costs
from jaxalign.run.plan.hlo import parse_hlo
from jaxalign.run.plan.memory import memory_before, memory_of_program
from jaxalign.run.plan.workload import Workload, required_flops
from jaxalign.run.program import abstract_batch, build_program


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
    """Compile the step for the slice. Raises ConfigError or MeshError if it cannot run there, other than for memory."""
    mesh = make_mesh(config.mesh, list(topology.devices))
    program = build_program(config, architecture, mesh, num_steps)
    alone = None if workload.alone is None else workload.alone.shape
    batch = abstract_batch(config, workload.shape, alone, mesh)
    before = memory_before(program, batch)
    start = time.monotonic()
    costs = None
    try:
        compiled = compile_step(program, batch)
    except TooLargeError as error:
        memory = before | {"temporaries": max(0, error.needed - sum(before.values()))}
    else:
        memory = memory_of_program(program, before, compiled.memory_analysis())
        costs = count_costs(
            parse_hlo(compiled.as_text() or ""), len(topology.devices), window=architecture.sliding_window
        )
    return Estimate(
        topology=topology,
        mesh=dict(mesh.shape),
        remat=config.model.remat,
        num_micro_batches=config.train.num_micro_batches,
        workload=workload,
        memory=memory,
        required_flops=required_flops(config, architecture, workload) // len(topology.devices),
        costs=costs,
        compile_seconds=time.monotonic() - start,
        **_timing(costs, topology, list(mesh.devices.flat)),
    )


def _timing(costs: Costs | None, topology: Topology, devices: list[jax.Device]) -> dict[str, Any]:
    """Lower bounds of the seconds of a step, and its collectives by kind."""
    if costs is None:
        return {"collectives": {}, "seconds": {}}
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
        "compute": costs.bfloat16_flops / chip.peak_flops,
        "memory": costs.bytes / chip.hbm_bandwidth,
        "interconnect": sum(total.seconds for total in totals.values()),
    }
    return {"collectives": totals, "seconds": seconds}
