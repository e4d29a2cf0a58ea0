"""Rotary position embedding: rotation tables from positions, and the rotation of query and key heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.models.config import DecoderConfig, Llama3RopeScaling


def rope_tables(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each [N, L, E/2] float32, of positions [N, L]."""
    frequencies = jnp.asarray(_frequencies(config), jnp.float32)
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate heads [N, L, H, E]; dimension i is paired with i + E/2, as in transformers' checkpoints."""
    cos, sin = (table[:, :, None, :] for table in rope)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per position of each pair of dimensions, [E/2] float64."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = _llama3_scaled(frequencies, config.rope_scaling)
    return frequencies


def _llama3_scaled(frequencies: np.ndarray, scaling: Llama3RopeScaling) -> np.ndarray:
    """Slow rotations divided by `factor`, fast ones kept, a linear blend between the two."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
