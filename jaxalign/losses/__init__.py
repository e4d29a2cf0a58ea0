"""Preference losses as pure functions: arrays in, one value per pair out.

One function per loss, no flags that change the formula. No I/O, configuration or state, no library but jax.
"""

from jaxalign.losses.balanced import b_dpo_loss, cat_b_dpo_loss
from jaxalign.losses.dpo import dpo_loss
from jaxalign.losses.log_ratios import log_ratios
from jaxalign.losses.safety import cat_dpo_loss, safe_dpo_loss

__all__ = ["b_dpo_loss", "cat_b_dpo_loss", "cat_dpo_loss", "dpo_loss", "log_ratios", "safe_dpo_loss"]
