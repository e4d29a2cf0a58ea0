"""A slice of four chips, and programs compiled for it and for virtual CPU devices."""

import jax
import pytest

from jaxalign.parallel.topology import MissingLibtpuError, Topology, tpu_topology
from jaxalign.run.plan.hlo import Module, parse_hlo


def module_of(function, *arguments) -> Module:
    """The compiled program of a function, parsed."""
    return parse_hlo(jax.jit(function).lower(*arguments).compile().as_text())


@pytest.fixture(scope="session")
def v5e4() -> Topology:
    """Four chips, if libtpu is installed."""
    try:
        return tpu_topology("v5e:2x2")
    except MissingLibtpuError as error:
        pytest.skip(str(error))
