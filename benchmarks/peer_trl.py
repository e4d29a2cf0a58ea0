"""jaxalign against TRL's DPOTrainer on the CPU: same weights, same pairs, same machine, steps in turn.

`python benchmarks/peer_trl.py [--cases uniform hh category] [--vocabularies 32000 128256] [--steps N]`
Both train all parameters in float32 with AdamW and plain DPO, with the reference's log-probs computed beforehand.
TRL runs as fast as it goes on a CPU: as many threads as cores, no gradient checkpointing, a tuned malloc. It knows
`padding_free`, but both versions switch it off themselves. It gets its batch whole, which is its fastest, or where that
does not fit into memory as many micro-batches as it needs; where jaxalign works in micro-batches, one more round gives
TRL as many. A version that is not installed is installed beside the others, under build/.
"""

import ctypes.util
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from channel import Peer
from compare import (
    BETA,
    COLUMNS,
    LEARNING_RATE,
    Case,
    Order,
    Run,
    alternate,
    arguments,
    case_line,
    cpu_count,
    cpu_micro_batches,
    cpu_settings,
    each_case,
    find_peak,
    limit_memory,
    print_round,
    run_line,
    start_jaxalign,
    with_less_memory,
)
from measure import Peak, header

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "benchmarks"
# One heap that is never given back, so that a step does not touch fresh pages again and again.
GLIBC = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:glibc.malloc.hugetlb=1"
JEMALLOC = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,thp:always"


@dataclasses.dataclass(frozen=True)
class Trl:
    """A version of TRL, where it is, and how its process allocates memory."""

    version: str
    folder: Path | None
    malloc: str

    def env(self, folder: Path) -> dict[str, str]:
        caches = {"HF_HOME": str(folder / "hf"), "HF_DATASETS_CACHE": str(folder / "datasets")}
        path = {"PYTHONPATH": str(self.folder)} if self.folder else {}
        return caches | path | malloc_env(self.malloc)


def malloc_env(malloc: str) -> dict[str, str]:
    """`plain`, `glibc` (tuned), or `jemalloc` where it is installed."""
    if malloc == "plain":
        return {}
    if malloc == "glibc":
        return {"GLIBC_TUNABLES": GLIBC}
    library = ctypes.util.find_library("jemalloc")
    if library is None:
        raise SystemExit("jemalloc is not installed; install libjemalloc2, or use --malloc glibc")
    return {"LD_PRELOAD": library, "MALLOC_CONF": JEMALLOC}


def find_trl(version: str, malloc: str) -> Trl:
    """The installed TRL if it is that version, else one installed under build/, without what it depends on."""
    if importlib.metadata.version("trl") == version:
        return Trl(version, None, malloc)
    folder = BUILD / f"trl-{version}"
    if not (folder / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"trl=={version}"], check=True)
    return Trl(version, folder, malloc)


def trl_spec(case: Case, order: Order, *, accumulation: int = 1, **changes: Any) -> dict[str, Any]:
    """What trl_worker.py is told."""
    pairs = case.pairs()
    return {
        "model": str(case.model),
        "pairs": [pairs[row] for step in order for row in step],
        "output": str(case.folder / "trl"),
        "threads": cpu_count(),
        "dtype": "float32",
        "autocast": False,
        "attention": "sdpa",
        "lora": None,
        "beta": BETA,
        "batch_size": case.batch_size,
        "accumulation": accumulation,
        "learning_rate": LEARNING_RATE,
        "checkpointing": False,
        "compile": False,
        "device": "cpu",
        **changes,
    }


def start_trl(case: Case, trl: Trl, spec: dict[str, Any]) -> Peer:
    name = f"TRL {trl.version}"
    file = case.folder / f"trl-{trl.version}.json"
    file.write_text(json.dumps(spec))
    return Peer(
        name,
        [sys.executable, str(HERE / "trl_worker.py"), str(file)],
        env=trl.env(case.folder),
        log=file.with_suffix(".log"),
        before=limit_memory() if spec["device"] == "cpu" else None,
    )


def one_round(
    case: Case, trl: Trl, num_steps: int, *, grouped: bool = False, micro_batches: int = 1
) -> tuple[list[Run], list[Order], int]:
    """jaxalign and one TRL in turn; the runs, their orders of the pairs, and TRL's micro-batches.

    `grouped` gives TRL its pairs sorted into batches of like length instead of the batches of jaxalign;
    `micro_batches` are TRL's, at least.
    """
    orders: list[Order] = []

    def run(accumulation: int) -> list[Run]:
        with start_jaxalign(case, cpu_settings(case)) as ours:
            order: Order = ours.started["order"]
            theirs = by_length(case, order) if grouped else order[:num_steps]
            orders[:] = [order, theirs]
            with start_trl(case, trl, trl_spec(case, theirs, accumulation=accumulation)) as other:
                return alternate([ours, other], num_steps)

    runs, accumulation = with_less_memory(run, least=micro_batches)
    return runs, orders, accumulation


def by_length(case: Case, order: Order) -> Order:
    """The same pairs, sorted by their longer sequence and cut into batches, which come in random order."""
    lengths = case.lengths[:, 0] + case.lengths[:, 1:].max(axis=1)
    rows = sorted((row for step in order for row in step), key=lambda row: int(lengths[row]))
    size = case.batch_size
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]


def compare_case(case: Case, versions: Sequence[Trl], num_steps: int, peak: Peak) -> bool:
    """Print the table of a case; whether all figures agree."""
    fine, speeds = True, {}
    for i, trl in enumerate(versions):
        runs, (order, _), accumulation = one_round(case, trl, num_steps)
        if i == 0:
            print(f"\n{case_line(case, order, num_steps, peak)}\n{COLUMNS}")
        fine &= print_round(runs, case, order, peak, micro_batches=accumulation)
        speeds[trl] = 1 / runs[1].total
    fastest = max(speeds, key=lambda trl: speeds[trl])
    print(f"  the faster TRL is {fastest.version}")
    if (parts := cpu_micro_batches(case)) > 1:
        print("  with as many micro-batches on both sides:")
        runs, (order, _), accumulation = one_round(case, fastest, num_steps, micro_batches=parts)
        fine &= print_round(runs, case, order, peak, micro_batches=accumulation)
    if case.name != "uniform":
        runs, orders, _ = one_round(case, fastest, len(case.lengths) // case.batch_size, grouped=True)
        print("  a whole epoch, TRL's batches grouped by length (other batches than those of jaxalign):")
        for run, order in zip(runs, orders, strict=True):
            print(run_line(run, case, order, peak))
        print(f"  {runs[1].total / runs[0].total:.2f} x the pairs/s of TRL {fastest.version}", flush=True)
    return fine


def main() -> None:
    parser = arguments(__doc__, vocabularies=(32000, 128256))
    parser.add_argument("--trl", nargs="+", default=["1.9.0", "1.16.0"], metavar="VERSION")
    parser.add_argument("--malloc", choices=["plain", "glibc", "jemalloc"], default="glibc", help="of TRL")
    args = parser.parse_args()
    print(header("jaxalign", "jax", "torch", "transformers"))
    versions = [find_trl(version, args.malloc) for version in args.trl]
    print(f"TRL's malloc: {args.malloc}")
    # The clock of a shared machine drifts, so the peak is measured before each case.
    agreed = [compare_case(case, versions, args.steps, find_peak(args)) for case in each_case(args)]
    sys.exit(None if all(agreed) else "some first steps do not agree")


if __name__ == "__main__":
    main()
