"""A peer: jaxalign, one train step at a time. `python jaxalign_worker.py CONFIG.yaml WORKDIR`; started by benchmarks.

Everything is what `jaxalign train` builds from the same configuration; only its loop waits between steps.
"""

import sys
import time
from pathlib import Path

import jax
from channel import Channel

import jaxalign
from jaxalign.config import load_config
from jaxalign.run.setup import prepare
from jaxalign.training.metrics import step_figures


def main() -> None:
    channel = Channel()
    run = prepare(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
    assert run.new_state is not None
    state, loader = run.new_state(), run.loader
    names = run.data.train.category_names
    order = [[int(i) for i in loader.indices(step).ravel() if i >= 0] for step in range(run.num_steps)]
    devices = jax.devices()
    versions = {"jaxalign": jaxalign.__version__, "jax": jax.__version__, "device": devices[0].device_kind}
    channel.begin(versions=versions, order=order, padding=loader.padding)
    for step in range(run.num_steps):
        batch = jax.block_until_ready(run.place(loader.batch(step)))  # ahead of the step, as in the real loop
        if not channel.next_step():
            break
        start = time.perf_counter(), time.process_time()
        state, sums = run.program.step(state, run.frozen, batch)
        jax.block_until_ready((state, sums))
        seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        figures = step_figures(jax.device_get(sums), names)
        memory = devices[0].memory_stats() or {}
        channel.send(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            device_peak=memory.get("peak_bytes_in_use", 0),
            **{name: figures[name] for name in ("loss", "logps/chosen", "logps/rejected")},
        )
    channel.end()


if __name__ == "__main__":
    main()
