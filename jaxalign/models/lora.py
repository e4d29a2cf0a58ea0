"""Low-rank adapters: their settings, and folding them into the weights. The forward pass is in decoder.py."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, field_validator

from jaxalign.settings import Settings

Projection = Literal["query", "key", "value", "out", "gate", "up", "down"]


class LoraConfig(Settings):
    """Adapters of rank `rank` on the projections `targets`: y = x W + alpha / rank * (x A) B."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    targets: tuple[Projection, ...] = Field(
        ("query", "key", "value", "out", "gate", "up", "down"), min_length=1, strict=False
    )

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[Projection, ...]) -> tuple[Projection, ...]:
        if len(set(targets)) != len(targets):
            raise ValueError(f"targets {list(targets)} name a projection twice; name each once")
        return targets

    @property
    def scale(self) -> float:
        """The factor alpha / rank on the adapter's output."""
        return self.alpha / self.rank


def merge_lora(params: dict[str, Any], lora_params: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """Parameters with kernel + scale * A B in place of each adapted kernel; shapes and dtypes are kept."""
    merged = dict(params)
    if "lora_a" in lora_params:
        kernel = params["kernel"]
        update = jnp.matmul(lora_params["lora_a"], lora_params["lora_b"], precision=jax.lax.Precision.HIGHEST)
        merged["kernel"] = (kernel.astype(jnp.float32) + config.scale * update).astype(kernel.dtype)
        return merged
    for name, adapter in lora_params.items():
        merged[name] = merge_lora(params[name], adapter, config)
    return merged
