"""Compiling a step for devices that are not here. What the compiled program says is read elsewhere."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxalign.errors import JaxalignError
from jaxalign.run.program import Program

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLargeError(JaxalignError):
    """The compiler found no room for a program that needs so many bytes of memory on each device."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} bytes per device are needed")
        self.needed = needed


def compile_step(program: Program, batch: Any) -> jax.stages.Compiled:
    """The step of a program, for a batch of shapes. Raises TooLargeError."""
    lowered = program.lower(batch)
    try:
        with no_persistent_cache():
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        raise TooLargeError(needed) from error


@contextlib.contextmanager
def no_persistent_cache() -> Iterator[None]:
    """Programs for devices that are not here can be written to jax's cache, but not read from it again."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is used is remembered
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _needed(message: str) -> int | None:
    """Bytes of main memory that a program needs which did not fit, None for an error of another kind."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    # Memory on the chip runs out in the same words, but that is another lack.
    used = re.search(r"Used ([\d.]+)([KMGT]?) of \S+ hbm", message)
    found = used or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    return None if found is None else int(float(found[1]) * _SIZES[found[2]])
