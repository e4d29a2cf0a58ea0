"""Estimates for people and for programs: tables, verdicts, JSON. Nothing is estimated here."""

import dataclasses
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxalign.config import Config
from jaxalign.parallel import AXES
from jaxalign.run.plan.estimate import Estimate

MAX_TENSOR = 8  # beyond that activations cross the mesh more than weights would
WIDE = 16  # over at most so many devices the compiler is seen to gather and to scatter, also on cubes
ROOMY = 0.6  # less than this share of the memory in use leaves room for something that needs more

NOTE = (
    "Bounds, not measurements: a step takes at least as long as the slowest of the three would take at the full rate "
    "of the chip, if the other two ran entirely beside it. No TPU was used."
)


def size_text(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def count_text(count: float) -> str:
    """A count of FLOPs in the unit that suits it."""
    for unit in ("", "K", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {unit}".rstrip()
        count /= 1000
    return f"{count:.2f} T"


def verdict(estimate: Estimate) -> str:
    """Whether it fits, and what limits the time of a step."""
    capacity = estimate.topology.chip.hbm_bytes
    if not estimate.fits:
        return f"does not fit: {size_text(estimate.needed)} per device are needed, {size_text(capacity)} are there"
    step = max(estimate.seconds.values())
    limit = {"compute": "compute", "memory": "memory bandwidth", "interconnect": "the interconnect"}
    return (
        f"fits: {size_text(estimate.needed)} of {size_text(capacity)} per device; bound by {limit[estimate.bound_by]}: "
        f"a step takes at least {step:.3g} s, MFU at most {estimate.mfu(step):.0%}"
    )


def first_change(config: Config, estimate: Estimate) -> str:
    """The first thing to try, by what is in the way; not tried here."""
    return _to_be_faster(config, estimate) if estimate.fits else _to_fit(config, estimate)


def _to_fit(config: Config, estimate: Estimate) -> str:
    data, fsdp, tensor = (estimate.mesh[axis] for axis in AXES)
    if estimate.remat != "full":
        return "model.remat: full"
    if config.micro_batch_size() % (2 * data * fsdp) == 0 and not config.loss.batch_level:
        return f"train.num_micro_batches: {2 * config.train.num_micro_batches}"
    if data > 1:
        return f"mesh.fsdp: {data * fsdp} with mesh.data: 1, so that no device holds a whole copy"
    if tensor < MAX_TENSOR and fsdp % 2 == 0:
        return f"mesh.tensor: {2 * tensor} with mesh.fsdp: {fsdp // 2}"
    return "a larger slice, or shorter data.max_prompt_length and data.max_response_length"


def _to_be_faster(config: Config, estimate: Estimate) -> str:
    data, fsdp, tensor = (estimate.mesh[axis] for axis in AXES)
    roomy = estimate.needed < ROOMY * estimate.topology.chip.hbm_bytes
    micro = config.train.num_micro_batches
    if estimate.bound_by != "compute" and micro > 1 and roomy:
        return f"train.num_micro_batches: {micro // 2}, as weights are moved once in each of them"
    if estimate.bound_by == "interconnect":
        if tensor > 1:
            return f"mesh.tensor: {tensor // 2} with mesh.fsdp: {2 * fsdp}"
        if fsdp > WIDE and "all-gather" not in estimate.collectives:
            return (
                f"mesh.fsdp: {WIDE} with mesh.data: {data * fsdp // WIDE}: of transfers between {fsdp} devices the "
                "compiler makes all-reduces here, twice the bytes"
            )
        return "a larger train.batch_size, so that each device computes more for the weights that it receives"
    if estimate.remat == "full" and roomy:
        return "model.remat: dots, which recomputes less and needs more memory"
    if estimate.bound_by == "memory":
        return "none that is known to help"
    return "none: compute is the limit, as it should be"


def print_estimate(config: Config, estimate: Estimate, console: Console) -> None:
    """Memory, work and bounds of one configuration on one slice, then the verdict."""
    topology, shape = estimate.topology, estimate.workload.shape
    console.print(
        f"\n{topology.name}: {len(topology.devices)} chips, mesh {estimate.mesh}, remat {estimate.remat}, "
        f"{estimate.num_micro_batches} x {shape.num_rows} rows of {shape.length} tokens; "
        f"compiled in {estimate.compile_seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_memory_table(estimate))
    if estimate.costs is not None:
        console.print(_work_table(estimate))
        console.print(_bound_table(estimate))
        console.print(NOTE, style="dim", soft_wrap=True)
        if estimate.costs.unknown_loops or estimate.costs.unknown_kernels:
            console.print(
                f"{estimate.costs.unknown_loops} loops of unknown length were counted once, "
                f"{estimate.costs.unknown_kernels} runs of unknown kernels not at all"
            )
    console.print(f"verdict       {verdict(estimate)}", highlight=False, soft_wrap=True)
    console.print(f"first change  {first_change(config, estimate)}", highlight=False, soft_wrap=True)


def _memory_table(estimate: Estimate) -> Table:
    table = Table("memory per device", box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    for name, size in estimate.memory.items():
        table.add_row(name, size_text(size))
    table.add_row("sum", size_text(estimate.needed), style="bold")
    table.add_row("capacity", size_text(estimate.topology.chip.hbm_bytes))
    return table


def _work_table(estimate: Estimate) -> Table:
    assert estimate.costs is not None
    table = Table("work of a step per device", box=SIMPLE_HEAD)
    table.add_column("amount", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("devices in a group", justify="right")
    table.add_row("FLOPs that must be done", count_text(estimate.required_flops), "", "")
    table.add_row("FLOPs of the program", count_text(estimate.costs.flops), "", "")
    if estimate.costs.bfloat16_flops > estimate.costs.flops:
        table.add_row(
            "these in bfloat16, as chips do float32", count_text(estimate.costs.bfloat16_flops), "", ""
        )
    table.add_row("of these in attention kernels", count_text(estimate.costs.kernel_flops), "", "")
    table.add_row("bytes of memory moved", size_text(estimate.costs.bytes), "", "")
    for kind, total in sorted(estimate.collectives.items()):
        sizes = ", ".join(map(str, total.group_sizes))
        table.add_row(f"{kind}, received", size_text(total.bytes), str(total.count), sizes)
    return table


def _bound_table(estimate: Estimate) -> Table:
    table = Table("bound", box=SIMPLE_HEAD)
    table.add_column("seconds", justify="right")
    table.add_column("MFU if it alone took time", justify="right")
    everything = {**estimate.seconds, "all three, one after the other": sum(estimate.seconds.values())}
    for name, seconds in everything.items():
        table.add_row(name, f"{seconds:.3g}", f"{estimate.mfu(seconds):.1%}" if seconds else "")
    return table


def as_dict(config: Config, estimate: Estimate) -> dict[str, Any]:
    """The estimate as JSON values."""
    chip, workload = estimate.topology.chip, estimate.workload
    step = max(estimate.seconds.values(), default=None)
    return {
        "topology": estimate.topology.name,
        "num_devices": len(estimate.topology.devices),
        "chip": dataclasses.asdict(chip),
        "mesh": estimate.mesh,
        "remat": estimate.remat,
        "num_micro_batches": estimate.num_micro_batches,
        "batch_size": config.train.batch_size,
        "rows": dataclasses.asdict(workload.shape),
        "tokens": workload.tokens,
        "memory": {**estimate.memory, "needed": estimate.needed, "capacity": chip.hbm_bytes},
        "flops": {
            "required": estimate.required_flops,
            "compiled": estimate.costs and estimate.costs.flops,
            "as_bfloat16": estimate.costs and estimate.costs.bfloat16_flops,
            "attention_kernels": estimate.costs and estimate.costs.kernel_flops,
        },
        "bytes_moved": estimate.costs and estimate.costs.bytes,
        "collectives": {kind: dataclasses.asdict(total) for kind, total in estimate.collectives.items()},
        "uncounted": {
            "loops": estimate.costs and estimate.costs.unknown_loops,
            "kernels": estimate.costs and estimate.costs.unknown_kernels,
        },
        "bound_seconds": {**estimate.seconds, "step": step},
        "mfu_bound": step and estimate.mfu(step),
        "mfu_without_overlap": step and estimate.mfu(sum(estimate.seconds.values())),
        "fits": estimate.fits,
        "verdict": verdict(estimate),
        "first_change": first_change(config, estimate),
        "compile_seconds": estimate.compile_seconds,
    }
