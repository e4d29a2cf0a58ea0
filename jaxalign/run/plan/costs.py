"""What a compiled program does on one device in one run, loops multiplied out."""

import dataclasses
from dataclasses import dataclass

from jaxalign.run.plan.collectives import Collective, find_collectives
from jaxalign.run.plan.flops import is_kernel, kernel_flops, matrix_flops, num_passes
from jaxalign.run.plan.hlo import Module
from jaxalign.run.plan.traffic import bytes_moved


@dataclass(frozen=True)
class Costs:
    """Of one device in one run of the program.

    flops are those of matrix products, kernel_flops those among them of attention kernels. bfloat16_flops are what
    matrix units do for them: more in float32, other than in kernels, whose precision the program does not say. bytes
    are read from and written to main memory. unknown_loops were counted once, unknown_kernels not at all.
    """

    flops: int
    bfloat16_flops: int
    kernel_flops: int
    bytes: int
    collectives: tuple[Collective, ...]
    unknown_loops: int
    unknown_kernels: int


def count_costs(module: Module, num_devices: int, *, window: int | None = None) -> Costs:
    """The costs of a module compiled for so many devices; attention sees the latest `window` tokens, or all of them."""
    flops = bfloat16 = kernels = moved = unknown_kernels = 0
    collectives: list[Collective] = []
    runs, unknown_loops = module.runs()
    for computation, times in runs:
        found = list(find_collectives(module, computation, num_devices))
        collectives += [dataclasses.replace(c, bytes=c.bytes * times, times=times) for c in found]
        for owner, instruction in module.with_fused(computation):
            if is_kernel(instruction):
                of_kernel = kernel_flops(owner, instruction, window)
                kernels += times * of_kernel
                unknown_kernels += 0 if of_kernel else times
            elif product := matrix_flops(owner, instruction):
                flops += times * product
                bfloat16 += times * product * num_passes(owner, instruction)
        moved += times * sum(bytes_moved(module, computation, i) for i in computation.instructions.values())
    return Costs(
        flops=flops + kernels,
        bfloat16_flops=bfloat16 + kernels,
        kernel_flops=kernels,
        bytes=moved,
        collectives=tuple(collectives),
        unknown_loops=unknown_loops,
        unknown_kernels=unknown_kernels,
    )
