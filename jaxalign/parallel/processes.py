"""Start of a multi-process job, and the few things that processes must agree on."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.errors import JaxalignError

TEXT_BYTES = 4096


class ProcessesError(JaxalignError, ValueError):
    """The processes of a job do not find each other."""


def start_processes() -> None:
    """Join the other processes of the job; must run before the first use of a device.

    Cloud TPU, Slurm, Open MPI and Kubernetes are detected by jax. Elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. Raises ProcessesError.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in names if name in os.environ]
    if not given:
        _initialize()
        return
    if len(given) != len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise ProcessesError(f"{', '.join(given)} set but not {missing}; set all three or none of them")
    numbers = {name: os.environ[name] for name in names[1:]}
    wrong = [f"{name}={text!r}" for name, text in numbers.items() if not text.isdecimal()]
    if wrong:
        raise ProcessesError(f"{', '.join(wrong)}: expected a whole number")
    num_processes, process_id = map(int, numbers.values())
    _initialize(os.environ["JAX_COORDINATOR_ADDRESS"], num_processes, process_id)


def _initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise ProcessesError(
            f"cannot join the other processes: {error}; start this job by a launcher that jax knows, set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or leave out --distributed"
        ) from error


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


def agree_on_number(number: float) -> float:
    """Process 0's number on every process, in float32 where there are several."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.float32(number)))
