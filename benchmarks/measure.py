"""What a benchmark measures by: the machine, its matmul rate, the FLOPs that a step must do, and the spread of times.

`python benchmarks/measure.py LIBRARY DTYPE` prints the matmul rates of one library.
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
LARGE_SHAPES = ((8192, 8192, 8192), (16384, 8192, 8192), (16384, 4096, 16384))  # what fills a GPU
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


def required_flops(llama: Llama, lengths: np.ndarray, *, rank: int = 0) -> float:
    """Floating-point operations of matrix products that a step over pairs [n, 3] cannot do without.

    Forward: 2 per weight of the body for every token that predicts or is attended to, a prompt counted once and the
    last token of a response, which predicts nothing, not at all; 2 per weight of the head for every response token;
    4 times the heads' width for every query and each key it may see. Backward is twice that: once for the gradient
    of the inputs and once for that of the weights. With adapters of a `rank` (0: none) on every linear layer only
    they have gradients of weights. Nothing is counted for element-wise work, the optimizer, or what is computed
    again in the backward pass.
    """
    lengths = lengths.astype(np.float64)
    prompt, responses = lengths[:, 0], lengths[:, 1:]
    inner = responses - 1
    tokens = (prompt + inner.sum(axis=1)).sum()
    seen = prompt * (prompt + 1) / 2 + (inner * prompt[:, None] + inner * (inner + 1) / 2).sum(axis=1)
    products = 2 * llama.body_params * tokens + 2 * llama.hidden * llama.vocabulary * responses.sum()
    attention = 4 * llama.layers * llama.heads * llama.head_dim * seen.sum()
    if not rank:
        return 3 * (products + attention)
    return 2 * products + 3 * attention + 3 * 2 * rank * llama.linear_widths * tokens


def best_seconds(work: Callable[[], object], *, budget: float = 2.0, at_least: int = 3) -> float:
    """The shortest of the times of `work` within a budget of seconds; what it gives must be ready."""
    work()
    times: list[float] = []
    while sum(times) < budget or len(times) < at_least:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_rates(library: str, dtype: str = "float32") -> dict[str, float]:
    """FLOP/s of products [m, k] x [k, n] by shape, in this process, by `jax` or `torch` (on the CPU)."""
    shapes = SHAPES if dtype == "float32" else LARGE_SHAPES
    make = _jax_product if library == "jax" else _torch_product
    return {f"{m} x {k} x {n}": 2.0 * m * k * n / best_seconds(make(m, k, n, dtype)) for m, k, n in shapes}


def _jax_product(m: int, k: int, n: int, dtype: str) -> Callable[[], object]:
    import jax

    a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((m, k), (k, n)))
    multiply = jax.jit(jax.numpy.matmul)
    return lambda: multiply(a, b).block_until_ready()


def _torch_product(m: int, k: int, n: int, dtype: str) -> Callable[[], object]:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    a, b = (torch.randn(shape, dtype=getattr(torch, dtype)) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, dtype=a.dtype)
    return lambda: torch.matmul(a, b, out=out)


@dataclasses.dataclass(frozen=True)
class Peak:
    """The best matmul rate of a machine, FLOP/s, and what reached it."""

    rate: float
    source: str

    def __str__(self) -> str:
        return f"{self.rate / 1e9:.0f} GFLOP/s ({self.source})"


def measured_peak(libraries: Sequence[str] = ("jax", "torch"), *, dtype: str = "float32") -> Peak:
    """The highest rate over libraries and shapes, each library in a process of its own."""
    found = []
    for library in libraries:
        command = [sys.executable, __file__, library, dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found += [Peak(rate, f"{library}, {shape}") for shape, rate in json.loads(done.stdout).items()]
    return max(found, key=lambda peak: peak.rate)


if __name__ == "__main__":
    print(json.dumps(matmul_rates(*sys.argv[1:])))
