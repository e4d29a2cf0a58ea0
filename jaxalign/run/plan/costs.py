"""What a compiled program does on one device in one run: matrix FLOPs, bytes of main memory, collectives.

Read off the scheduled HLO, loops multiplied out. What counts as how much is said here and nowhere else.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxalign.run.plan.groups import permute_pairs, replica_groups
from jaxalign.run.plan.hlo import Computation, HloError, Instruction, Module, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Instructions that move nothing, and those whose work is counted elsewhere: starts at their start, loops in their body.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
    "slice-done", "send-done", "recv-done", *(f"{kind}-done" for kind in COLLECTIVES),
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
# Matrix products per block of scores in each kernel of splash attention.
_SPLASH = {"splash_mha_fwd": 2, "splash_mqa_fwd": 2, "_dq": 3, "_dkv": 4}


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


@dataclass(frozen=True)
class Costs:
    """Of one device in one run of the program.

    flops are those of matrix products, kernel_flops those among them of attention kernels; bytes are read from and
    written to main memory. unknown_loops were counted once, unknown_kernels not at all.
    """

    flops: int
    kernel_flops: int
    bytes: int
    collectives: tuple[Collective, ...]
    unknown_loops: int
    unknown_kernels: int


def count_costs(module: Module, num_devices: int) -> Costs:
    """The costs of a module that was compiled for so many devices."""
    flops = kernel_flops = moved = unknown_kernels = 0
    collectives: list[Collective] = []
    runs, unknown_loops = module.runs()
    for computation, times in runs:
        found = list(_collectives(module, computation, num_devices))
        collectives += [dataclasses.replace(c, bytes=c.bytes * times, times=times) for c in found]
        for owner, instruction in _nested(module, computation):
            if _is_kernel(instruction):
                of_kernel = _kernel_flops(owner, instruction)
                kernel_flops += times * of_kernel
                unknown_kernels += 0 if of_kernel else times
            flops += times * _matrix_flops(owner, instruction)
        moved += times * sum(_moved(module, computation, i) for i in computation.instructions.values())
    return Costs(
        flops + kernel_flops, kernel_flops, moved, tuple(collectives), unknown_loops, unknown_kernels
    )


def _nested(module: Module, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
    """Every instruction with its computation, also those within fusions."""
    for instruction in computation.instructions.values():
        yield computation, instruction
        if instruction.opcode == "fusion":
            yield from _nested(module, module.computations[instruction.called() or ""])


# Collectives


def _collectives(module: Module, computation: Computation, num_devices: int) -> Iterator[Collective]:
    """The collectives of one run of a computation.

    A transfer that goes on beside other work appears in a chain of fusions: it is one collective.
    """
    chains: set[tuple[str, ...]] = set()
    for owner, instruction in _nested(module, computation):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', instruction.attributes)
        if chain is not None:
            if chain.groups() in chains:
                continue
            chains.add(chain.groups())
        # A reduce-scatter for TPU is a fusion of an all-reduce and the slice that the device keeps.
        if kind == "all-reduce" and owner.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
            size = _total(instruction.shapes)
        else:
            size = _total(_results(instruction))
            size *= (
                1 if kind != "reduce-scatter" else len(replica_groups(instruction.attributes, num_devices)[0])
            )
        if kind == "collective-permute":
            groups = permute_pairs(instruction.attributes)
        else:
            groups = replica_groups(instruction.attributes, num_devices)
        if len(groups[0]) > 1:
            yield Collective(kind, _received(kind, size, len(groups[0])), 1, tuple(map(tuple, groups)))


def _results(instruction: Instruction) -> tuple[Shape, ...]:
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


def _total(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes)


# FLOPs


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes


def _kernel_flops(computation: Computation, kernel: Instruction) -> int:
    """FLOPs of a splash attention kernel over a causal mask; 0 for a kernel that is not known."""
    products = next((n for part, n in _SPLASH.items() if "splash" in kernel.name and part in kernel.name), 0)
    operands = [computation.instructions[name].shapes[0] for name in kernel.operands]
    floats = [x for x in operands if x.dtype in ("bf16", "f32", "f16") and len(x.dims) >= 3]
    if not products or len(floats) < 2:
        return 0
    query, key = floats[:2]
    # The fused backward kernel makes the gradient of the query too, in parts that are summed afterwards.
    products += "_dkv" in kernel.name and any(len(x.dims) > len(query.dims) for x in kernel.shapes)
    blocks = max((x.dims[-1] for x in operands if x.dtype == "s8"), default=1)
    scores = math.prod(query.dims[:-1]) * key.dims[-2]
    return int(2 * products * scores * query.dims[-1] * (blocks + 1) / (2 * blocks))


def _matrix_flops(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left = computation.instructions[instruction.operands[0]].shapes[0].dims
    (out,) = instruction.shapes
    if instruction.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        summed = [left[int(n)] for n in (match[1] if match else "").split(",") if n]
        return 2 * math.prod(out.dims) * math.prod(summed)
    right = computation.instructions[instruction.operands[1]].shapes[0].dims
    return _convolution_flops(left, right, out.dims, instruction.attributes)


def _convolution_flops(
    left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], attributes: str
) -> int:
    """A product of matrices is a convolution on TPU, a batch of them one with a window; padding is not counted."""
    match = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", attributes)
    if match is None:
        raise HloError(f"a convolution without dim_labels: {attributes[:200]!r}")
    of_left, of_right, of_out = match.groups()
    products = out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", attributes) or [""])[0]))
    for axis in sorted(label for label in of_out if label.isdigit()):
        option = {key: value.split("x")[int(axis)] for key, value in window.items()}
        products *= _window_positions(left[of_left.index(axis)], out[of_out.index(axis)], option)
    count = re.search(r"batch_group_count=(\d+)", attributes)
    return 2 * products // (int(count[1]) if count else 1)


def _window_positions(size: int, out: int, window: dict[str, str]) -> int:
    """How many (output, window) positions of one dimension fall on an element of the input."""
    before = int(window.get("pad", "0_0").split("_")[0])
    dilation = int(window.get("lhs_dilate", "1"))
    start = np.arange(out) * int(window.get("stride", "1")) - before
    place = start[:, None] + np.arange(int(window["size"])) * int(window.get("rhs_dilate", "1"))
    return int(((place >= 0) & (place < (size - 1) * dilation + 1) & (place % dilation == 0)).sum())


# Main memory


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that one run of an instruction reads from and writes to main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or '"AllocateBuffer"' in instruction.attributes:
        return 0
    if opcode == "fusion":
        return _moved_by_fusion(module, computation, instruction)
    operands = [computation.instructions[name].shapes for name in instruction.operands]
    if opcode in ("copy-start", "slice-start"):  # (result, operand, context) in some order
        target = instruction.shapes[0] if opcode == "copy-start" else instruction.shapes[1]
        size = target.bytes
        return size * (target.space == 0) + size * (operands[0][0].space == 0)
    written = sum(x.bytes for x in _results(instruction) if x.space == 0)
    if opcode in _SLICES:
        return written + sum(x.bytes for x in instruction.shapes) * (operands[0][0].space == 0)
    if opcode == "dynamic-update-slice":
        update = operands[1][0]
        return update.bytes * (update.space == 0) + update.bytes * (instruction.shapes[0].space == 0)
    return written + sum(x.bytes for shapes in operands for x in shapes if x.space == 0)


def _moved_by_fusion(module: Module, computation: Computation, fusion: Instruction) -> int:
    """A fusion reads its operands and writes its results once; of those that it slices, only the slice."""
    inner = module.computations[fusion.called() or ""]
    parameters = {int(i.literal): i for i in _parameters(inner)}
    moved = 0
    for number, name in enumerate(fusion.operands):
        shape = computation.instructions[name].shapes[0]
        if shape.space == 0:
            moved += min(shape.bytes, _read(module, inner, parameters[number]))
    roots = [inner.root.name] if inner.root.opcode != "tuple" else inner.root.operands
    for name, shape in zip(roots, fusion.shapes, strict=False):
        if shape.space == 0:
            moved += _written(inner, inner.source(name), shape)
    return moved


def _read(module: Module, inner: Computation, value: Instruction) -> int:
    """Bytes of a value that the instructions of a fusion look at."""
    total = 0
    for user in inner.instructions.values():
        if value.name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _read(module, inner, user)
        elif user.opcode == "fusion":
            within = module.computations[user.called() or ""]
            number = str(user.operands.index(value.name))
            total += _read(module, within, next(i for i in _parameters(within) if i.literal == number))
        elif user.opcode in _SLICES and user.operands[0] == value.name:
            total += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # overwritten in place
        elif user.opcode not in ("tuple", "custom-call", *COLLECTIVES):
            return value.shapes[0].bytes
    return total


def _parameters(computation: Computation) -> list[Instruction]:
    return [i for i in computation.instructions.values() if i.opcode == "parameter"]


def _written(inner: Computation, root: Instruction, shape: Shape) -> int:
    if root.opcode == "dynamic-update-slice":
        return inner.instructions[root.operands[1]].shapes[0].bytes
    # Results that a fusion only passes on; the transfer itself is counted as a collective.
    return 0 if root.opcode in ("parameter", "custom-call", *COLLECTIVES) else shape.bytes
