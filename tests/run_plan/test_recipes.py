"""Every shipped recipe for TPUs fits the slice that it names."""

from pathlib import Path

import pytest

from jaxalign.config import load_config
from jaxalign.parallel.topology import tpu_topology
from jaxalign.run.plan.command import PairLengths, estimate_slice, find_architecture

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SLICES = {
    "smollm2_tpu": ("smollm2-135m", "v5e:2x2"),
    "llama3_8b_full_tpu": ("llama3-8b", "v5e:8x8"),
    "llama3_70b_lora_tpu": ("llama3-70b", "v5p:4x4x4"),
}


def test_every_recipe_for_tpus_is_planned():
    assert {path.stem for path in CONFIGS.glob("*_tpu.yaml")} == set(SLICES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLICES)
def test_recipe_fits_its_slice_and_is_bound_by_compute(name, v5e4):
    architecture, slice_name = SLICES[name]
    config = load_config(CONFIGS / f"{name}.yaml")
    model = find_architecture(config, architecture)
    estimate = estimate_slice(config, model, tpu_topology(slice_name), PairLengths())
    assert estimate.fits
    assert estimate.bound_by == "compute"
    assert estimate.costs.unknown_loops == estimate.costs.unknown_kernels == 0
    # Nobody does less than what must be done, and recomputing everything costs at most as much again.
    assert estimate.required_flops < estimate.costs.flops < 2 * estimate.required_flops
