"""Bytes that the instructions of a compiled program read from and write to the main memory of a device."""

from jaxalign.run.plan.collectives import COLLECTIVES, results
from jaxalign.run.plan.hlo import Computation, Instruction, Module, Shape

# Instructions that move nothing, and those whose work is counted elsewhere: starts at their start, loops in their body.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
    "slice-done", "send-done", "recv-done", *(f"{kind}-done" for kind in COLLECTIVES),
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def bytes_moved(module: Module, computation: Computation, instruction: Instruction) -> int:
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
    written = sum(x.bytes for x in results(instruction) if x.space == 0)
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
