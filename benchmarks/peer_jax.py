"""jaxalign against a JAX peer on the CPU: the DPOTrainer of Tunix, same weights, same pairs, steps in turn.

`python benchmarks/peer_jax.py [--cases uniform hh category] [--vocabularies 32000] [--steps N]`
Tunix 0.1.7 lives in an environment of its own: made under build/ with `pip install google-tunix==0.1.7` on first use,
or any other by --tunix-python. It is measured twice: as it is, computing the reference's log-probs in every step, and
with these given beforehand. Both train all parameters in float32 with Adam, clipped at norm 1, and plain DPO.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

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
    cpu_settings,
    each_case,
    find_peak,
    limit_memory,
    print_round,
    start_jaxalign,
    with_less_memory,
)
from measure import Peak, header

HERE = Path(__file__).parent
VERSION = "0.1.7"
FOLDER = HERE.parent / "build" / "benchmarks" / f"tunix-{VERSION}"


def make_environment() -> Path:
    """The Python of an environment with Tunix, made if it is not there."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        venv.create(FOLDER, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", f"google-tunix=={VERSION}"]
        subprocess.run(install, check=True)
    return python


def start_tunix(case: Case, python: Path, order: Order, *, precomputed: bool, accumulation: int) -> Peer:
    pairs = case.pairs()
    prompt, response = case.lengths[:, 0].max(), case.lengths[:, 1:].max()
    spec = {
        "model": str(case.model),
        "pairs": [pairs[row] for step in order for row in step],
        "longest": {"prompt_ids": int(prompt), "chosen_ids": int(response), "rejected_ids": int(response)},
        "batch_size": case.batch_size,
        "accumulation": accumulation,
        "learning_rate": LEARNING_RATE,
        "beta": BETA,
        "precomputed": precomputed,
    }
    file = case.folder / "tunix.json"
    file.write_text(json.dumps(spec))
    return Peer(
        f"Tunix {VERSION}" + (", reference given" if precomputed else ""),
        [str(python), str(HERE / "tunix_worker.py"), str(file)],
        env={"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
        log=case.folder / "tunix.log",
        before=limit_memory(),
    )


def one_round(case: Case, python: Path, num_steps: int, *, precomputed: bool) -> tuple[list[Run], Order, int]:
    """jaxalign and Tunix in turn; the runs, their order of the pairs, and Tunix's micro-batches."""
    orders: list[Order] = []

    def run(accumulation: int) -> list[Run]:
        with start_jaxalign(case, cpu_settings(case)) as ours:
            orders[:] = [ours.started["order"]]
            theirs = orders[0][:num_steps]
            with start_tunix(
                case, python, theirs, precomputed=precomputed, accumulation=accumulation
            ) as other:
                return alternate([ours, other], num_steps)

    runs, accumulation = with_less_memory(run)
    return runs, orders[0], accumulation


def compare_case(case: Case, python: Path, num_steps: int, peak: Peak, kinds: Sequence[bool]) -> bool:
    """Print the table of a case; whether all figures agree."""
    fine = True
    for i, precomputed in enumerate(kinds):
        runs, order, accumulation = one_round(case, python, num_steps, precomputed=precomputed)
        if i == 0:
            print(f"\n{case_line(case, order, num_steps, peak)}\n{COLUMNS}")
        fine &= print_round(runs, case, order, peak, micro_batches=accumulation)
    return fine


def main() -> None:
    parser = arguments(__doc__, vocabularies=(32000,))
    parser.add_argument("--tunix-python", type=Path, help="Python of an environment with google-tunix")
    parser.add_argument(
        "--reference", choices=["both", "each-step", "given"], default="both", help="of Tunix"
    )
    args = parser.parse_args()
    kinds = {"both": (False, True), "each-step": (False,), "given": (True,)}[args.reference]
    print(header("jaxalign", "jax"))
    python = args.tunix_python or make_environment()
    # The clock of a shared machine drifts, so the peak is measured before each case.
    agreed = [compare_case(case, python, args.steps, find_peak(args), kinds) for case in each_case(args)]
    sys.exit(None if all(agreed) else "some first steps do not agree")


if __name__ == "__main__":
    main()
