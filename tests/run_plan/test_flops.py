"""FLOPs of single products and kernels: passes of float32, and blocks that a mask leaves."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from jaxalign.run.plan.costs import count_costs
from jaxalign.run.plan.flops import visible_blocks
from jaxalign.run.plan.hlo import parse_hlo
from tests.run_plan.conftest import module_of

FLOAT = jnp.ones((32, 16), jnp.float32)

# A kernel of splash attention over rows of 1,024 tokens in 8 blocks, two heads of 64; what it is given of the mask.
KERNEL = """\
HloModule one_kernel

ENTRY %main (query: bf16[3,2,1024,64], key: bf16[3,2,1024,64], mask: s8[MASK]) -> bf16[3,2,1024,64] {
  %mask = s8[MASK]{2,1,0} parameter(2)
  %query = bf16[3,2,1024,64]{3,2,1,0} parameter(0)
  %key = bf16[3,2,1024,64]{3,2,1,0} parameter(1)
  ROOT %NAME = bf16[3,2,1024,64]{3,2,1,0} custom-call(%mask, %query, %key), custom_call_target="tpu_custom_call"
}
"""


@pytest.mark.parametrize(("precision", "passes"), [("default", 1), ("high", 3), ("highest", 6)])
def test_float32_product_takes_several_in_bfloat16(precision, passes):
    module = module_of(lambda x: jnp.matmul(x, x.T, precision=precision), FLOAT)
    costs = count_costs(module, 1)
    assert costs.flops == 2 * 32 * 16 * 32
    assert costs.bfloat16_flops == passes * costs.flops


DOT = """\
HloModule one_product

ENTRY %main (a: LEFT[4,8], b: RIGHT[8,2]) -> f32[4,2] {
  %a = LEFT[4,8]{1,0} parameter(0)
  %b = RIGHT[8,2]{1,0} parameter(1)
  ROOT %dot = f32[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
operand_precision={highest,highest}
}
"""


@pytest.mark.parametrize(
    ("left", "right", "passes"),
    [("bf16", "bf16", 1), ("f32", "bf16", 3), ("bf16", "f32", 3), ("f32", "f32", 6)],
)
def test_only_float32_operands_have_several_parts(left, right, passes):
    costs = count_costs(parse_hlo(DOT.replace("LEFT", left).replace("RIGHT", right)), 1)
    assert (costs.flops, costs.bfloat16_flops) == (2 * 4 * 8 * 2, passes * 2 * 4 * 8 * 2)


@pytest.mark.parametrize("window", [None, 1, 2, 127, 128, 129, 130, 257, 258, 400, 1000, 5000])
def test_visible_blocks_are_those_of_the_mask(window):
    num, size = 6, 128
    mask = masks.LocalMask((num * size, num * size), (None if window is None else window - 1, 0), offset=0)
    info, _ = mask_info.process_mask(masks.MultiHeadMask([mask]), (size, size))
    assert visible_blocks(num, size, window) == np.count_nonzero(info.block_mask)


@pytest.mark.parametrize(
    ("name", "mask", "window", "products", "blocks"),
    [
        ("splash_mha_fwd", "1,8,8", None, 2, 36),
        ("splash_mha_fwd", "1,8,8", 1024, 2, 36),
        ("splash_mha_fwd", "1,8,2", 128, 2, 15),  # the grid has as many keys as the window leaves
        ("splash_mha_dkv", "1,2,8", 128, 4, 15),  # or queries, in this kernel
        ("splash_mha_dq", "1,8,3", 200, 3, 21),
    ],
)
def test_kernel_computes_the_blocks_that_a_window_leaves(name, mask, window, products, blocks):
    module = parse_hlo(KERNEL.replace("MASK", mask).replace("NAME", name))
    costs = count_costs(module, 1, window=window)
    assert costs.kernel_flops == costs.flops == 3 * 2 * products * 2 * 64 * blocks * 128**2
