"""jaxalign and TRL's DPOTrainer on one GPU: step time, memory and MFU, full and LoRA, packed and padded.

`python benchmarks/gpu.py [--models smollm2-135m llama-1b] [--cases uniform hh] [--trl VERSION]`
Weights are random, of the real sizes. Both compute in bfloat16 and keep float32 parameters, AdamW, plain DPO and the
reference's log-probs computed beforehand; TRL by autocast and with torch's scaled_dot_product_attention. Peers run one
after the other, as each wants the whole card. MFU is the FLOPs that must be done (a prompt once, the head on response
tokens alone) over the rate of the best bfloat16 product on the same card. Memory is what the framework had allocated
at most. Where no GPU is present the script says so and ends with exit status 0.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from channel import Peer, PeerError
from compare import (
    Case,
    Order,
    Run,
    alternate,
    check_steps,
    jaxalign_settings,
    make_case,
    start_jaxalign,
    work,
)
from measure import GIB, Peak, header, measured_peak
from peer_trl import Trl, find_trl, start_trl, trl_spec
from workload import Llama

MODELS = {
    "smollm2-135m": Llama(layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, vocabulary=49152),
    "toy": Llama(layers=2, hidden=32, ffn=64, heads=2, kv_heads=1, vocabulary=300),
    "llama-1b": Llama(layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, vocabulary=128256),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"layout": "packed"},
    "padded": {"layout": "padded", "share_prefix": False},
}
MOST_PARTS = 16
# Memory is taken as it is needed, so that the peak is what the step needs and not a fixed share of the card.
JAX_ENV = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
COLUMNS = f"{'':40}{'s a step':>24}{'pairs/s':>9}{'MFU':>7}{'GiB':>8}{'parts':>7}"


def gpu_name() -> str | None:
    """The card that jax finds, asked in a process of its own; None without one."""
    program = "import jax; d = jax.devices()[0]; print(d.device_kind if d.platform == 'gpu' else '')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


def usable_trl(version: str, device: str) -> Trl | None:
    """That version of TRL; None, and a line that says why, where it is not wanted or cannot use the card."""
    if version == "none":
        return None
    program = f"import torch, trl; assert {device == 'cpu'} or torch.cuda.is_available()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        print(
            f"without TRL: {done.stderr.strip().splitlines()[-1]} (needs trl, and a torch built for this card)"
        )
        return None
    return find_trl(version, "plain")


def run_alone(start: Callable[[int], Peer], num_steps: int, batch_size: int) -> tuple[Run, Order | None, int]:
    """The steps of one peer with as few micro-batches as fit: the run, the order of pairs that it gave, the parts."""
    parts = 1
    while True:
        try:
            with start(parts) as peer:
                (run,) = alternate([peer], num_steps)
                return run, peer.started.get("order"), parts
        except PeerError as error:
            known = ("out of memory", "resource_exhausted", "out_of_memory")
            if not any(text in str(error).lower() for text in known) or 2 * parts > min(
                MOST_PARTS, batch_size
            ):
                raise
            parts *= 2


def our_settings(case: Case, layout: str, rank: int, parts: int, remat: str) -> dict[str, Any]:
    lora = {"lora": {"rank": rank, "alpha": 2.0 * rank}} if rank else {}
    model = {"dtype": "bfloat16", "remat": remat, **lora}
    train = {"num_micro_batches": parts}
    return jaxalign_settings(case, model=model, train=train, rows=LAYOUTS[layout])


def print_run(name: str, run: Run, case: Case, order: Order, rank: int, parts: int, peak: Peak) -> None:
    flops, _, pairs = work(case, order, len(run.steps), rank=rank)
    memory = max(step["device_peak"] for step in run.steps) / GIB
    print(
        f"{name:40}{run.seconds.text('.3f'):>24}{pairs / run.total:9.2f}{flops / peak.rate / run.total:7.0%}"
        f"{memory:8.2f}{parts:7}",
        flush=True,
    )


def compare(case: Case, trl: Trl | None, rank: int, args: argparse.Namespace, peak: Peak) -> None:
    """Both layouts of jaxalign, then TRL, over the same pairs in the same order."""
    env = JAX_ENV | {"JAX_PLATFORMS": args.device}
    order: Order | None = None
    for layout in LAYOUTS:

        def ours(parts: int, layout: str = layout) -> Peer:
            settings = our_settings(case, layout, rank, parts, args.remat)
            return start_jaxalign(case, settings, name=f"{layout}-{rank}-{parts}", env=env)

        run, order, parts = run_alone(ours, args.steps, case.batch_size)
        assert order is not None
        print_run(f"  jaxalign {layout}", run, case, order, rank, parts, peak)
    if trl is None or order is None:
        return
    given = order[: args.steps]

    def theirs(parts: int) -> Peer:
        changes = {"device": args.device, "autocast": True, "lora": rank or None}
        return start_trl(case, trl, trl_spec(case, given, accumulation=parts, **changes))

    run, _, parts = run_alone(theirs, args.steps, case.batch_size)
    print_run(f"  TRL {trl.version}", run, case, order, rank, parts, peak)


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["smollm2-135m", "llama-1b"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: does the script run?")
    parser.add_argument("--cases", nargs="+", default=["uniform", "hh"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[0, 16], help="of LoRA; 0: all parameters")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=512, help="of an epoch")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--remat", choices=["none", "dots", "full"], default="none", help="of jaxalign")
    parser.add_argument("--trl", default="1.16.0", help="version, or none")
    args = parser.parse_args()
    check_steps(args)
    card = gpu_name() if args.device == "cuda" else "no GPU, a trial on the CPU"
    if card is None:
        print(
            "no GPU is present: nothing was measured. Run this where jax finds one (pip install 'jaxalign[cuda]')."
        )
        return
    print(f"{header('jaxalign', 'jax')}\n{card}")
    trl = usable_trl(args.trl, args.device)
    peak = Peak(1e9, "assumed") if args.device == "cpu" else measured_peak(("jax",), dtype="bfloat16")
    print(f"measured matmul peak, bfloat16: {peak}\n\n{COLUMNS}")
    with tempfile.TemporaryDirectory() as folder:
        for model, name in ((model, name) for model in args.models for name in args.cases):
            case = make_case(name, MODELS[model], args.pairs, args.batch_size, Path(folder) / model)
            for rank in args.ranks:
                trained = f"LoRA of rank {rank}" if rank else "all parameters"
                print(f"{model}, {name}, {trained}, {args.batch_size} pairs a step")
                compare(case, trl, rank, args, peak)


if __name__ == "__main__":
    main()
