"""FLOPs of the matrix products and attention kernels of a compiled program."""

import math
import re

import numpy as np

from jaxalign.run.plan.hlo import Computation, HloError, Instruction

# Matrix products per block of scores in each kernel of splash attention.
_SPLASH = {"splash_mha_fwd": 2, "splash_mqa_fwd": 2, "_dq": 3, "_dkv": 4}


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel, of which the program says nothing more."""
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes


def kernel_flops(computation: Computation, kernel: Instruction) -> int:
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
