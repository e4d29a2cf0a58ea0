"""How time and memory of a train step grow, and which collectives a step needs on several devices.

`python benchmarks/scaling.py [--axes sequence pairs ...] [--repeats N]`
Each point is a step of the whole method (loss cat_b_dpo) over random pairs of one length, in a process of its own.
Of a series a - x^b is fitted: b over all points, and over the last two, where constant parts weigh least. Beside it
stands the same exponent of the FLOPs that must be done. Memory is that of the compiled step beside its arguments, and
the peak of the process. Collectives are counted in the compiled program of 2, 4 and 8 virtual devices; none is timed.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from channel import peak_memory, reset_peak_memory
from measure import GIB, Spread, header, required_flops
from workload import Llama, uniform_lengths

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Point:
    """The sizes of one step. A quarter of a sequence is prompt; `rank` 0 trains all parameters."""

    sequence: int = 256
    pairs: int = 8
    vocabulary: int = 8192
    layers: int = 4
    categories: int = 14
    rank: int = 0
    hidden: int = 256

    @property
    def llama(self) -> Llama:
        heads = max(2, self.hidden // 64)
        return Llama(
            layers=self.layers,
            hidden=self.hidden,
            ffn=self.hidden * 11 // 4,
            heads=heads,
            kv_heads=heads,
            vocabulary=self.vocabulary,
        )

    @property
    def lengths(self) -> np.ndarray:
        return uniform_lengths(self.pairs, sequence=self.sequence, prompt=self.sequence // 4)

    def flops(self) -> float:
        return required_flops(self.llama, self.lengths, rank=self.rank)


SERIES: dict[str, tuple[int, ...]] = {
    "sequence": (128, 256, 512, 1024, 2048),
    "pairs": (4, 8, 16, 32, 64),
    "vocabulary": (4096, 8192, 16384, 32768, 65536),
    "layers": (2, 4, 8, 16),
    "categories": (2, 14, 100, 500, 2000),
    "rank": (4, 16, 64, 256),
}
TINY = Point(sequence=32, pairs=8, vocabulary=64, layers=1, categories=2, hidden=32)
MESHES = ("data", "fsdp", "tensor")


def measure_point(point: Point, repeats: int) -> dict[str, Any]:
    """Seconds of each step, bytes of its temporaries, and the peak of this process during the steps."""
    import jax
    from synthetic import make_config, make_synthetic

    lora = {"lora": {"rank": point.rank, "alpha": 2.0 * point.rank}} if point.rank else {}
    config = make_config(point.pairs, point.categories, model=lora)
    synthetic = make_synthetic(config, point.llama, point.lengths)
    start = time.perf_counter()
    compiled = synthetic.compile()
    compile_seconds = time.perf_counter() - start
    state, frozen, batch = synthetic.arguments()
    state, _ = jax.block_until_ready(compiled(state, frozen, batch))
    reset_peak_memory()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, frozen, batch))
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "seconds": seconds,
        "temporaries": memory.temp_size_in_bytes,
        "peak": peak_memory(),
        "compile_seconds": compile_seconds,
    }


def count_collectives(point: Point, mesh: dict[str, int]) -> dict[str, list[int]]:
    """Runs and bytes (received by a device) of every kind of collective in a step on this mesh."""
    import jax

    jax.config.update("jax_num_cpu_devices", math.prod(mesh.values()))
    from synthetic import make_config, make_synthetic

    from jaxalign.run.plan.costs import count_costs
    from jaxalign.run.plan.hlo import parse_hlo

    config = make_config(point.pairs, point.categories, mesh={"data": 1, **mesh})
    text = make_synthetic(config, point.llama, point.lengths).compile().as_text()
    assert text is not None
    found: dict[str, list[int]] = {}
    for collective in count_costs(parse_hlo(text), math.prod(mesh.values())).collectives:
        times, size = found.setdefault(collective.kind, [0, 0])
        found[collective.kind] = [times + collective.times, size + collective.bytes]
    return found


def in_new_process(request: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own answers to a request."""
    command = [sys.executable, __file__, "--answer", json.dumps(request)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{request} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    point = Point(**request["point"])
    if "mesh" in request:
        return count_collectives(point, request["mesh"])
    return measure_point(point, request["repeats"])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of the least-squares fit of log value = a + b log size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def print_series(axis: str, base: Point, sizes: Sequence[int], repeats: int) -> None:
    """The measured points of one axis, and how they grow."""
    points = [dataclasses.replace(base, **{axis: size}) for size in sizes]
    found = [in_new_process({"point": dataclasses.asdict(p), "repeats": repeats}) for p in points]
    print(
        f"\n{axis:12}{'s a step':>28}{'GFLOP':>9}{'GFLOP/s':>9}{'temporary MiB':>15}{'peak GiB':>10}{'compile s':>11}"
    )
    medians = []
    for size, point, result in zip(sizes, points, found, strict=True):
        times = Spread(result["seconds"])
        medians.append(times.median)
        print(
            f"{size:<12}{times.text('.3f'):>28}{point.flops() / 1e9:9.1f}{point.flops() / times.median / 1e9:9.1f}"
            f"{result['temporaries'] / MIB:15.1f}{result['peak'] / GIB:10.2f}{result['compile_seconds']:11.1f}"
        )
    series = {
        "time": medians,
        "FLOPs": [point.flops() for point in points],
        "temporaries": [result["temporaries"] for result in found],
    }
    fits = [
        f"{name} {exponent(sizes, values):.2f} ({exponent(sizes[-2:], values[-2:]):.2f} at the end)"
        for name, values in series.items()
    ]
    print("  grows as a power of: " + ", ".join(fits), flush=True)


def print_collectives(base: Point, counts: Sequence[int]) -> None:
    """Collectives of a step by mesh axis and number of devices."""
    print(f"\n{'mesh':12}collectives of a step with hidden={base.hidden}: runs, MiB that a device receives")
    for axis in MESHES:
        for number in counts:
            found = in_new_process({"point": dataclasses.asdict(base), "mesh": {axis: number}})
            kinds = [f"{kind} {times} x, {size / MIB:.2f}" for kind, (times, size) in sorted(found.items())]
            print(f"{f'{axis}={number}':12}{'; '.join(kinds) or 'none'}", flush=True)


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--axes", nargs="+", default=[*SERIES, "devices"], choices=[*SERIES, "devices"])
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of a point")
    parser.add_argument(
        "--tiny", action="store_true", help="two toy points each, to see whether the script runs"
    )
    parser.add_argument("--answer", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer is not None:
        print(json.dumps(answer(args.answer)))
        return
    base = TINY if args.tiny else Point()
    print(header("jaxalign", "jax"))
    print(f"unless a line says otherwise: {base}")
    for axis in args.axes:
        if axis == "devices":
            print_collectives(
                dataclasses.replace(base, hidden=8 * base.hidden // 4), (2,) if args.tiny else (2, 4, 8)
            )
        else:
            sizes = tuple(getattr(TINY, axis) * n or 2 * n for n in (1, 2)) if args.tiny else SERIES[axis]
            print_series(axis, base, sizes, args.repeats)


if __name__ == "__main__":
    main()
