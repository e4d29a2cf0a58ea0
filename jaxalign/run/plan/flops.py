"""FLOPs of the matrix products and attention kernels of a compiled program."""

import math
import re

import numpy as np

from jaxalign.run.plan.hlo import Computation, HloError, Instruction

# Matrix products per block of scores in each kernel of splash attention.
_SPLASH = {"splash_mha_fwd": 2, "splash_mqa_fwd": 2, "_dq": 3, "_dkv": 4}
# The numbers in bfloat16 that stand for one in float32, by the precision of a product.
_PARTS = {"default": 1, "high": 2, "highest": 3}


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel, of which the program says nothing more."""
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes


def kernel_flops(computation: Computation, kernel: Instruction, window: int | None = None) -> int:
    """FLOPs of a splash attention kernel over a causal mask, or the latest `window` tokens; 0 for an unknown kernel."""
    products = next((n for part, n in _SPLASH.items() if "splash" in kernel.name and part in kernel.name), 0)
    operands = [computation.instructions[name].shapes[0] for name in kernel.operands]
    floats = [x for x in operands if x.dtype in ("bf16", "f32", "f16") and len(x.dims) >= 3]
    if not products or len(floats) < 2:
        return 0
    query, key = floats[:2]
    # The fused backward kernel makes the gradient of the query too, in parts that are summed afterwards.
    products += "_dkv" in kernel.name and any(len(x.dims) > len(query.dims) for x in kernel.shapes)
    length, width = key.dims[-2], query.dims[-1]
    # The mask is given by blocks, [heads, queries, keys]. A window leaves fewer, and one of the two sides is shorter.
    num = max((size for x in operands if x.dtype == "s8" for size in x.dims[-2:]), default=1)
    scores = math.prod(query.dims[:-1]) * length * visible_blocks(num, length // num, window) // num**2
    return 2 * products * scores * width


def visible_blocks(num: int, size: int, window: int | None) -> int:
    """Blocks of scores, of num x num of size x size, in which some query sees some key."""
    # Of keys before that of the query:
    before = num - 1 if window is None else (window - 2) // size + 1
    return sum(min(block, before) + 1 for block in range(num))


def num_passes(computation: Computation, product: Instruction) -> int:
    """Products in bfloat16, which is all that the matrix units of TPUs multiply, that make up one product.

    An operand in float32 is a sum of parts in bfloat16; the products of small parts with each other are left out.
    """
    match = re.search(r"operand_precision=\{(\w+),(\w+)\}", product.attributes)
    if match is None:
        return 1
    dtypes = [computation.instructions[name].shapes[0].dtype for name in product.operands]
    left, right = (_PARTS.get(p, 1) if t == "f32" else 1 for p, t in zip(match.groups(), dtypes, strict=True))
    return sum(i + j < max(left, right) for i in range(left) for j in range(right))


def matrix_flops(computation: Computation, instruction: Instruction) -> int:
    """FLOPs of a product of matrices; 0 for everything else."""
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
