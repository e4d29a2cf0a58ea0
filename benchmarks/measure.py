"""What a benchmark measures by: the machine, its matmul rate, the FLOPs that a step must do, and the spread of times.

`python benchmarks/measure.py LIBRARY` prints the matmul rate of one library in a process of its own.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from workload import Llama

SHAPES = ((2048, 2048, 2048), (4096, 4096, 4096), (4096, 1024, 8192), (2048, 384, 32000))
GIB = 2**30


def machine() -> str:
    """Cores, memory and the widest vector instructions."""
    kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    flags = Path("/proc/cpuinfo").read_text()
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    vectors = next((name for flag, name in known.items() if flag in flags), platform.machine())
    return f"{os.cpu_count()} CPU cores ({vectors}), {kib / 2**20:.0f} GB of memory"


def header(*packages: str) -> str:
    """The first lines of a results file: machine, date, command, versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    command = " ".join(["python", *sys.argv])
    today = datetime.date.today()
    return f"{machine()}, {today}; {command}\n{versions}, Python {platform.python_version()}"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Some measured values of one thing."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, style: str = ".2f") -> str:
        """The median, and the least and the most in brackets."""
        return f"{self.median:{style}} ({min(self.values):{style}} to {max(self.values):{style}})"


def required_flops(llama: Llama, lengths: np.ndarray, *, adapters: bool = False) -> float:
    """Floating-point operations of matrix products that a step over pairs [n, 3] cannot do without.

    Forward: 2 per weight of the body for every token that predicts or is attended to, a prompt counted once and the
    last token of a response, which predicts nothing, not at all; 2 per weight of the head for every response token;
    4 times the heads' width for every query and each key it may see. Backward is twice that: once for the gradient
    of the inputs and once for that of the weights. With `adapters` the base has no gradient of its weights, and the
    adapters' own products, far below 1 %, are left out. Nothing is counted for element-wise work, the optimizer, or
    what is computed again in the backward pass.
    """
    lengths = lengths.astype(np.float64)
    prompt, responses = lengths[:, 0], lengths[:, 1:]
    inner = responses - 1
    tokens = (prompt + inner.sum(axis=1)).sum()
    seen = prompt * (prompt + 1) / 2 + (inner * prompt[:, None] + inner * (inner + 1) / 2).sum(axis=1)
    products = 2 * llama.body_params * tokens + 2 * llama.hidden * llama.vocabulary * responses.sum()
    attention = 4 * llama.layers * llama.heads * llama.head_dim * seen.sum()
    return 2 * products + 3 * attention if adapters else 3 * (products + attention)


def best_seconds(work: Callable[[], object], *, budget: float = 2.0, at_least: int = 3) -> float:
    """The shortest of the times of `work` within a budget of seconds; what it gives must be ready."""
    work()
    times: list[float] = []
    while sum(times) < budget or len(times) < at_least:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_rates(library: str, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> dict[str, float]:
    """FLOP/s of float32 products [m, k] x [k, n] by shape, in this process, by `jax` or `torch`."""
    rates = {}
    for m, k, n in shapes:
        rates[f"{m} x {k} x {n}"] = 2.0 * m * k * n / best_seconds(_product(library, m, k, n))
    return rates


def _product(library: str, m: int, k: int, n: int) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
    if library == "jax":
        import jax

        a, b = jax.numpy.asarray(left), jax.numpy.asarray(right)
        multiply = jax.jit(jax.numpy.matmul)
        return lambda: multiply(a, b).block_until_ready()
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    x, y, out = torch.from_numpy(left), torch.from_numpy(right), torch.empty(m, n)
    return lambda: torch.matmul(x, y, out=out)


@dataclasses.dataclass(frozen=True)
class Peak:
    """The best matmul rate of a machine, FLOP/s, and what reached it."""

    rate: float
    source: str

    def __str__(self) -> str:
        return f"{self.rate / 1e9:.0f} GFLOP/s ({self.source})"


def measured_peak(libraries: Sequence[str] = ("jax", "torch")) -> Peak:
    """The highest float32 rate over libraries and shapes, each library in a process of its own."""
    found = []
    for library in libraries:
        done = subprocess.run([sys.executable, __file__, library], capture_output=True, text=True, check=True)
        found += [Peak(rate, f"{library}, {shape}") for shape, rate in json.loads(done.stdout).items()]
    return max(found, key=lambda peak: peak.rate)


if __name__ == "__main__":
    print(json.dumps(matmul_rates(sys.argv[1])))
