"""Start of a multi-process job, and the few things that processes must agree on."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

TEXT_BYTES = 4096


def start_processes() -> None:
    """Join the other processes of the job; must run before the first use of a device.

    Cloud TPU, Slurm, Open MPI and Kubernetes are detected by jax. Elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say it.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if name in os.environ]
    if not given:
        jax.distributed.initialize()
        return
    if len(given) != len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ValueError(f"{', '.join(given)} set but not {missing}; set all three or none of them")
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        int(os.environ["JAX_NUM_PROCESSES"]),
        int(os.environ["JAX_PROCESS_ID"]),
    )


def is_main_process() -> bool:
    """True on the one process that prints, logs and writes manifests."""
    return jax.process_index() == 0


def agree_on_text(text: str) -> str:
    """Process 0's text on every process (at most 4096 bytes)."""
    if jax.process_count() == 1:
        return text
    encoded = text.encode()
    if len(encoded) > TEXT_BYTES:
        raise ValueError(f"text of {len(encoded)} bytes, at most {TEXT_BYTES} can be shared")
    buffer = np.zeros(TEXT_BYTES, np.uint8)
    buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(buffer))
    return bytes(shared).rstrip(b"\0").decode()
