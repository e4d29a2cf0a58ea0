"""Compiled HLO text as instructions, and how often each computation runs. What they cost is in costs.py.

The compiler's own cost analysis counts the body of a loop once. A scan over layers inside a scan over micro-batches
would so be counted once of some hundred times: here trip counts multiply.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxalign.errors import JaxalignError

_COMMENT = re.compile(r"/\*.*?\*/")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_FORWARDING = ("copy", "convert", "bitcast", "reshape", "copy-done", "copy-start", "opt-barrier")


class HloError(JaxalignError, ValueError):
    """A program in a notation that is not known here: another version of the compiler."""


@dataclass(frozen=True)
class Shape:
    """An array; `space` is 0 in the main memory of the device, others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Size without padding."""
        if self.dtype == "pred":
            return math.prod(self.dims)
        digits = re.search(r"\d+", self.dtype)  # tokens have no size
        return 0 if digits is None else math.prod(self.dims) * int(digits.group()) // 8


@dataclass(frozen=True)
class Instruction:
    """One line: `name = shapes opcode(operands), attributes`; a tuple has several shapes."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str  # what stands between the parentheses
    attributes: str

    def called(self) -> str | None:
        """The computation that a fusion, call or loop runs."""
        match = _CALLED.search(self.attributes)
        return None if match is None else match[1]


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text; the root is what it returns."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    def constant(self, name: str) -> int | None:
        """The integer that an instruction holds, None if that is not known from the text."""
        found = self.source(name)
        is_number = found.opcode == "constant" and re.fullmatch(r"-?\d+", found.literal)
        return int(found.literal) if is_number else None

    def source(self, name: str) -> Instruction:
        """Where a value comes from, through copies."""
        found = self.instructions[name]
        while found.opcode in _FORWARDING and found.operands:
            found = self.instructions[found.operands[0]]
        return found


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation

    def runs(self) -> tuple[list[tuple[Computation, int]], int]:
        """The computations that control flow reaches, each with how often it runs, and the loops of unknown length.

        Those loops are counted once. Of the branches of a conditional all are counted. Computations within fusions
        are not listed: a fusion is one instruction.
        """
        found: list[tuple[Computation, int]] = []
        unknown = 0
        waiting = [(self.entry, 1)]
        while waiting:
            computation, times = waiting.pop()
            found.append((computation, times))
            for instruction in computation.instructions.values():
                trips = 1
                if instruction.opcode == "while":
                    known = self._trip_count(computation, instruction)
                    trips, unknown = (1, unknown + 1) if known is None else (known, unknown)
                waiting += [(self.computations[name], times * trips) for name in _runs_of(instruction)]
        return found, unknown

    def with_fused(self, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
        """Every instruction of a computation with where it stands, also those within fusions."""
        for instruction in computation.instructions.values():
            yield computation, instruction
            if instruction.opcode == "fusion":
                yield from self.with_fused(self.computations[instruction.called() or ""])

    def _trip_count(self, caller: Computation, loop: Instruction) -> int | None:
        """Iterations of a loop: as the compiler says, or from its counter, start and limit."""
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]  # type: ignore[index]
        body = self.computations[loop.called() or ""]
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter = condition.source(test.operands[0])
        limit = condition.constant(test.operands[1])
        start_of_loop = caller.source(loop.operands[0])
        if counter.opcode != "get-tuple-element" or limit is None or start_of_loop.opcode != "tuple":
            return None
        index = _index(counter)
        start = caller.constant(start_of_loop.operands[index])
        step = _step(body, index)
        if start is None or step is None:
            return None
        return max(0, -(-(limit - start) // step))


def parse_hlo(text: str) -> Module:
    """The module of `compiled.as_text()`. Raises HloError for a text without an entry computation."""
    computations: dict[str, Computation] = {}
    entry = None
    for name, is_entry, lines in _blocks(text):
        instructions = [_instruction(line) for line in lines]
        roots = [i for i, line in zip(instructions, lines, strict=True) if line.lstrip().startswith("ROOT ")]
        computation = Computation(name, {i.name: i for i in instructions}, roots[0])
        computations[name] = computation
        entry = computation if is_entry else entry
    if entry is None:
        raise HloError("no ENTRY computation: expected the text of a compiled program, compiled.as_text()")
    return Module(computations, entry)


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Name, whether it is the entry, and lines of each computation."""
    header = None
    lines: list[str] = []
    for line in text.splitlines():
        if header is None:
            header = _HEADER.match(line)
            lines = []
        elif _END.match(line):
            yield header[2], header[1] is not None, lines
            header = None
        elif _NAME.match(line):
            lines.append(_COMMENT.sub("", line))
        else:  # the metadata of a kernel may hold line breaks
            lines[-1] += line


def _instruction(line: str) -> Instruction:
    match = _NAME.match(line)
    if match is None:
        raise HloError(f"not an instruction of HLO text: {line[:200]!r}")
    rest = line[match.end() :]
    array = _ARRAY.match(rest)
    end = _closing(rest, 0) + 1 if array is None else array.end()
    opcode, _, _ = rest[end:].lstrip().partition("(")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=match[2],
        shapes=tuple(_shape(*found.groups()) for found in _ARRAY.finditer(rest[:end])),
        opcode=opcode,
        operands=tuple(_OPERAND.findall(inside)) if opcode != "constant" else (),
        literal=inside,
        attributes=rest[closing + 1 :],
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise HloError(f"unbalanced parentheses in HLO text: {text[:200]!r}")


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
    space = re.search(r"S\((\d+)\)", layout or "")
    sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
    return Shape(dtype, sizes, int(space[1]) if space else 0)


def _runs_of(instruction: Instruction) -> list[str]:
    """Computations that an instruction of control flow runs."""
    if instruction.opcode in ("while", "call", "async-start"):
        name = instruction.called()
        return [] if name is None else [name]
    if instruction.opcode == "conditional":
        return [
            name
            for match in _BRANCHES.findall(instruction.attributes)
            for name in _OPERAND.findall(match[0]) or [match[1]]
        ]
    return []


def _index(element: Instruction) -> int:
    return int(re.search(r"index=(\d+)", element.attributes)[1])  # type: ignore[index]


def _step(body: Computation, index: int) -> int | None:
    """What a loop adds to element `index` of its state, None unless that is a positive constant."""
    if body.root.opcode != "tuple":
        return None
    total = body.source(body.root.operands[index])
    if total.opcode != "add":
        return None
    sources = [body.source(name) for name in total.operands]
    if not any(s.opcode == "get-tuple-element" and _index(s) == index for s in sources):
        return None
    constants = [value for name in total.operands if (value := body.constant(name)) is not None]
    return constants[0] if len(constants) == 1 and constants[0] > 0 else None
