"""The collectives of a compiled program, and what each device must receive from the others."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxalign.run.plan.groups import permute_pairs, replica_groups
from jaxalign.run.plan.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """One collective: its kind, bytes that a device receives over all its runs, and who takes part."""

    kind: str
    bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def group_size(self) -> int:
        """Devices that take part together."""
        return len(self.groups[0])


def find_collectives(module: Module, computation: Computation, num_devices: int) -> Iterator[Collective]:
    """The collectives of one run of a computation.

    A transfer that goes on beside other work appears in a chain of fusions: it is one collective.
    """
    chains: set[tuple[str, ...]] = set()
    for owner, instruction in module.with_fused(computation):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', instruction.attributes)
        if chain is not None:
            if chain.groups() in chains:
                continue
            chains.add(chain.groups())
        pairwise = kind == "collective-permute"
        groups = (permute_pairs if pairwise else replica_groups)(instruction.attributes, num_devices)
        num = len(groups[0])
        size = sum(shape.bytes for shape in results(instruction))
        # A reduce-scatter for TPU is a fusion of an all-reduce and the slice that the device keeps.
        if kind == "all-reduce" and owner.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            size *= num
        if num > 1:
            yield Collective(kind, _received(kind, size, num), 1, tuple(map(tuple, groups)))


def results(instruction: Instruction) -> tuple[Shape, ...]:
    """The arrays that a collective makes; the start of one also names its operands, or counters."""
    if instruction.opcode == "all-gather-start":
        return instruction.shapes[len(instruction.shapes) // 2 :]
    if instruction.opcode == "collective-permute-start":
        return instruction.shapes[1:2]
    return instruction.shapes


def _received(kind: str, size: int, num: int) -> int:
    """The least that each of `num` devices must receive; size is that of the whole array, on one device."""
    if kind == "collective-permute":
        return size
    return size * (num - 1) * (2 if kind == "all-reduce" else 1) // num
