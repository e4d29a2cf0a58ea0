"""Preference losses as pure functions: arrays in, one value per pair out.

One function per loss, no flags that change the formula. No I/O, configuration or state, no library but jax.
Every scalar must be finite: one that is not, or is outside of its range, raises a ValueError that names it, unless
it is traced, when its value is not known.
"""

from jaxalign.losses.anchored import bounded_dpo_loss, dpop_loss, rpo_loss
from jaxalign.losses.balanced import b_dpo_loss, cat_b_dpo_loss
from jaxalign.losses.batch_level import aot_loss, aot_unpaired_loss
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.label_noise import cdpo_loss, exo_loss, robust_dpo_loss
from jaxalign.losses.length import r_dpo_loss, sigmoid_norm_loss
from jaxalign.losses.log_ratios import log_ratios
from jaxalign.losses.per_response import apo_down_loss, apo_zero_loss, bco_pair_loss, nca_loss
from jaxalign.losses.reference_free import alphapo_loss, cpo_loss, orpo_loss, sft_loss, simpo_loss
from jaxalign.losses.reweighted import beta_dpo_loss, group_dro_loss
from jaxalign.losses.safety import bfpo_loss, cat_dpo_loss, safe_dpo_loss
from jaxalign.losses.scored import madpo_loss, modpo_loss, odpo_loss
from jaxalign.losses.shapes import discopop_loss, hinge_loss
from jaxalign.losses.squared import cal_dpo_loss, ipo_average_loss, ipo_loss, sppo_loss
from jaxalign.losses.unpaired import apo_zero_unpaired_loss, bco_loss, kto_loss

__all__ = [
    "alphapo_loss",
    "aot_loss",
    "aot_unpaired_loss",
    "apo_down_loss",
    "apo_zero_loss",
    "apo_zero_unpaired_loss",
    "b_dpo_loss",
    "bco_loss",
    "bco_pair_loss",
    "beta_dpo_loss",
    "bfpo_loss",
    "bounded_dpo_loss",
    "cal_dpo_loss",
    "cat_b_dpo_loss",
    "cat_dpo_loss",
    "cdpo_loss",
    "cpo_loss",
    "discopop_loss",
    "dpo_loss",
    "dpop_loss",
    "exo_loss",
    "group_dro_loss",
    "hinge_loss",
    "ipo_average_loss",
    "ipo_loss",
    "kto_loss",
    "log_ratios",
    "madpo_loss",
    "modpo_loss",
    "nca_loss",
    "odpo_loss",
    "orpo_loss",
    "r_dpo_loss",
    "robust_dpo_loss",
    "rpo_loss",
    "safe_dpo_loss",
    "sft_loss",
    "sigmoid_norm_loss",
    "simpo_loss",
    "sppo_loss",
]
