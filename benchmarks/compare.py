"""jaxalign beside other trainers: the same weights and pairs, steps in turn on one machine, one table per case.

What a peer is told and how it is started is in peer_trl.py and peer_jax.py.
"""

import argparse
import dataclasses
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from channel import Message, Peer, PeerError
from measure import GIB, Peak, Spread, measured_peak, required_flops
from workload import Llama, Pair, make_pairs, real_lengths, uniform_lengths, write_model, write_text_pairs

HERE = Path(__file__).parent
Order = list[list[int]]  # the pairs of every step
WARM_UP = 3  # steps that compile, and touch memory for the first time; they are not timed
LOSS_TOLERANCE, LOGPS_TOLERANCE = 1e-4, 1e-5  # absolute; relative
BETA, LEARNING_RATE = 0.1, 1e-4
CHUNK = 2048  # response tokens that go through the head at a time, on a CPU


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and an epoch of pairs, in files under `folder`."""

    name: str
    llama: Llama
    lengths: np.ndarray
    folder: Path
    batch_size: int

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def pairs(self) -> list[Pair]:
        return make_pairs(self.lengths, self.llama.vocabulary)

    def write(self) -> None:
        """The files that all peers read."""
        write_model(self.model, self.llama)
        write_text_pairs(self.folder / "pairs.jsonl", self.pairs())


def arguments(description: str | None, *, vocabularies: Sequence[int]) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=style)
    parser.add_argument("--cases", nargs="+", default=["uniform", "hh", "category"])
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(vocabularies))
    parser.add_argument(
        "--steps", type=int, default=8, help=f"of each peer; the first {WARM_UP} are not timed"
    )
    parser.add_argument("--pairs", type=int, default=128, help="of an epoch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tiny", action="store_true", help="a toy model, to see whether the script runs")
    return parser


def check_steps(args: argparse.Namespace) -> None:
    """Raise SystemExit for steps of which none is timed, or that an epoch lacks."""
    most = args.pairs // args.batch_size
    if not WARM_UP < args.steps <= most:
        raise SystemExit(f"--steps {args.steps} must be more than {WARM_UP} and at most {most}, an epoch")


def each_case(args: argparse.Namespace) -> Iterator[Case]:
    """The cases that were asked for, made one after the other."""
    check_steps(args)
    model = Llama(layers=2, hidden=32, ffn=64, heads=2, kv_heads=2) if args.tiny else Llama()
    with tempfile.TemporaryDirectory() as folder:
        for vocabulary in args.vocabularies:
            llama = dataclasses.replace(model, vocabulary=vocabulary)
            print(
                f"\nLlama of {llama.num_params / 1e6:.1f}M parameters, {args.batch_size} pairs a step",
                flush=True,
            )
            for name in args.cases:
                yield make_case(name, llama, args.pairs, args.batch_size, Path(folder))


def find_peak(args: argparse.Namespace) -> Peak:
    """The machine's, or for a toy any."""
    return Peak(1e9, "assumed for a toy") if args.tiny else measured_peak()


def make_case(name: str, llama: Llama, num_pairs: int, batch_size: int, folder: Path) -> Case:
    """`uniform`, `hh` or `category`: where the lengths come from."""
    lengths = uniform_lengths(num_pairs) if name == "uniform" else real_lengths(name, num_pairs)
    case = Case(name, llama, lengths, folder / f"{name}-{llama.vocabulary}", batch_size)
    case.write()
    return case


def jaxalign_settings(case: Case, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of plain DPO over the pairs of a case; `sections` are laid over it one level deep."""
    settings: dict[str, Any] = {
        "model": {"path": str(case.model), "dtype": "float32", "remat": "none"},
        "data": {
            "train": [{"format": "plain", "path": str(case.folder / "pairs.jsonl")}],
            "prompt_format": "raw",
            "max_prompt_length": 8192,
            "max_response_length": 8192,
        },
        "loss": {"name": "dpo", "beta": BETA},
        "optimizer": {"learning_rate": LEARNING_RATE, "schedule": "constant"},
        "train": {"batch_size": case.batch_size, "num_epochs": 1},
        "mesh": {"data": 1},
        "logging": {"tensorboard": False},
    }
    return {name: {**settings.get(name, {}), **sections.get(name, {})} for name in [*settings, *sections]}


def cpu_micro_batches(case: Case) -> int:
    """What is fastest on a CPU: micro-batches so small that the logits of each are one chunk, made only once."""
    responses = case.batch_size * case.lengths[:, 1:].sum(axis=1).mean()
    parts = 1
    while responses / parts > CHUNK and parts < case.batch_size:
        parts *= 2
    return parts


def cpu_settings(case: Case) -> dict[str, Any]:
    """The settings of jaxalign on a CPU."""
    model = {"remat": "dots", "logps_chunk_size": CHUNK}
    return jaxalign_settings(case, model=model, train={"num_micro_batches": cpu_micro_batches(case)})


def start_jaxalign(
    case: Case, settings: dict[str, Any], *, name: str = "jaxalign", env: Mapping[str, str] | None = None
) -> Peer:
    """jaxalign as a peer; its answer to being started holds the `order` of the pairs."""
    config = case.folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, str(HERE / "jaxalign_worker.py"), str(config), str(case.folder / name)]
    return Peer(name, command, env=env or {}, log=case.folder / f"{name}.log")


@dataclasses.dataclass
class Run:
    """What was measured of one peer, step by step; memory in bytes."""

    name: str
    versions: dict[str, str]
    start_peak: int
    steps: list[Message] = dataclasses.field(default_factory=list)
    peak: int = 0

    @property
    def seconds(self) -> Spread:
        """Times of the steps after the warm-up."""
        return Spread([step["seconds"] for step in self.steps[WARM_UP:]])

    @property
    def total(self) -> float:
        return sum(self.seconds.values)


def alternate(peers: Sequence[Peer], num_steps: int) -> list[Run]:
    """`num_steps` steps of every peer, in turn and in changing order; the peers are stopped at the end."""
    runs = [Run(peer.name, peer.started["versions"], peer.started["start_peak"]) for peer in peers]
    for step in range(num_steps):
        both = list(zip(peers, runs, strict=True))
        for peer, run in both if step % 2 == 0 else reversed(both):
            run.steps.append(peer.step())
    for peer, run in zip(peers, runs, strict=True):
        run.peak = peer.stop()["peak"]
    return runs


def with_less_memory(
    start_and_run: Callable[[int], list[Run]], *, least: int = 1, most: int = 8
) -> tuple[list[Run], int]:
    """The result with as few micro-batches as fit into memory, and how many these are; raises PeerError."""
    accumulation = least
    while True:
        try:
            return start_and_run(accumulation), accumulation
        except PeerError as error:
            out_of_memory = any(text in str(error).lower() for text in ("memory", "status -9", "alloc"))
            if not out_of_memory or accumulation == most:
                raise
            said = str(error).splitlines()
            ends = " ".join(dict.fromkeys((said[0], said[-1])))  # of a traceback the last line says it
            print(f"  {ends}\n  again with {2 * accumulation} micro-batches", flush=True)
            accumulation *= 2


def limit_memory(share: float = 0.9) -> Callable[[], None]:
    """For a child process: no more data than a share of what is free now, so that it fails and not the machine."""
    free = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    limit = int(share * free)
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def disagreement(ours: Run, theirs: Run) -> tuple[float, float]:
    """Differences at the first step: of the loss, and relative ones of the mean log-probs."""
    first, other = ours.steps[0], theirs.steps[0]
    names = ("logps/chosen", "logps/rejected")
    logps = max(abs(first[name] - other[name]) / abs(other[name]) for name in names)
    return abs(first["loss"] - other["loss"]), logps


def agree(ours: Run, theirs: Run) -> bool:
    """Whether both made the same first step, but for rounding."""
    loss, logps = disagreement(ours, theirs)
    return loss <= LOSS_TOLERANCE and logps <= LOGPS_TOLERANCE


def case_line(case: Case, order: Order, num_steps: int, peak: Peak) -> str:
    """What the timed steps hold, and the time they need at least."""
    flops, tokens, pairs = work(case, order, num_steps)
    steps = num_steps - WARM_UP
    return (
        f"{case.name}, vocabulary {case.llama.vocabulary}: {pairs / steps:.3g} pairs and {tokens / steps:.0f} useful "
        f"tokens a step; {flops / steps / 1e9:.0f} GFLOP must be done, {flops / steps / peak.rate:.2f} s at the "
        f"machine's matmul peak of {peak}; jaxalign: {cpu_micro_batches(case)} micro-batches, remat dots"
    )


def work(case: Case, order: Order, num_steps: int, *, rank: int = 0) -> tuple[float, int, int]:
    """FLOPs, tokens (a prompt once) and pairs of the timed steps."""
    rows = [row for step in order[WARM_UP:num_steps] for row in step]
    lengths = case.lengths[rows]
    return required_flops(case.llama, lengths, rank=rank), int(lengths.sum()), len(rows)


COLUMNS = f"{'':28}{'s a step':>24}{'pairs/s':>9}{'tokens/s':>10}{'MFU':>7}{'x limit':>9}{'GiB':>7}{'GiB start':>11}"


def run_line(run: Run, case: Case, order: Order, peak: Peak) -> str:
    """One line under COLUMNS. All peers are measured by the work that must be done, not by what each of them does."""
    flops, tokens, pairs = work(case, order, len(run.steps))
    limit = flops / peak.rate
    return (
        f"{run.name:28}{run.seconds.text():>24}{pairs / run.total:9.2f}{tokens / run.total:10.0f}"
        f"{limit / run.total:7.0%}{run.total / limit:9.2f}{run.peak / GIB:7.2f}{run.start_peak / GIB:11.2f}"
    )


def ratio_line(ours: Run, theirs: Run) -> str:
    """How the two compare in one round, and how far their figures agree."""
    _, logps = disagreement(ours, theirs)
    later = [abs(a["loss"] - b["loss"]) for a, b in zip(ours.steps[1:], theirs.steps[1:], strict=True)]
    verdict = "agree" if agree(ours, theirs) else "DISAGREE"
    first = [f"{run.steps[0]['loss']:.6f}" for run in (ours, theirs)]
    return (
        f"  against {theirs.name}: {theirs.total / ours.total:.2f} x its pairs/s, {ours.peak / theirs.peak:.2f} x its "
        f"memory; first step: losses {' and '.join(first)}, log-probs within {logps:.0e} of each other ({verdict}); "
        f"losses of later steps within {max(later, default=0.0):.0e}"
    )


def print_round(runs: Sequence[Run], case: Case, order: Order, peak: Peak, *, micro_batches: int) -> bool:
    """Print what a round of jaxalign and a peer in so many micro-batches found; whether their first steps agree."""
    for run in runs:
        print(run_line(run, case, order, peak))
    print(f"{ratio_line(*runs)}; its micro-batches: {micro_batches}", flush=True)
    return agree(*runs)


def cpu_count() -> int:
    return os.cpu_count() or 1
