"""Reproducible orders: the same on every machine and under every version of numpy."""

import hashlib

import numpy as np


def permutation(size: int, *key: int) -> np.ndarray:
    """A permutation of range(size), [size] int64, decided by the key alone.

    Made from raw generator bits: numpy keeps those fixed, but may change what `Generator.permutation` draws.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable")


def unit_draw(*key: int) -> float:
    """A number in [0, 1) of 32 random bits, decided by the key alone."""
    return int(np.random.Philox(np.random.SeedSequence(key)).random_raw(1)[0] >> np.uint64(32)) / 2**32


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
