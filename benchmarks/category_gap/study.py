"""Cat-DPO and B-DPO beside seven baselines in a world whose truth is known: which closes the gap between categories?

`python benchmarks/category_gap/study.py --output DIR` runs everything, or goes on where an earlier call stopped: every
run appends a line to DIR/results.jsonl. `--subset` takes five minutes and shows that everything works, no more.
`--rare N` makes another world. One call at a time for a folder.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ablations import ABLATIONS
from choosing import Choice, choose_finalists, choose_settings
from csv_files import write_csv_files
from data import epochs
from figures import write_figures
from lanes import in_chunks, over_lanes
from methods import METHODS, Method, Numbers
from plan import SUBSET, Plan, Run, with_rare
from problem import Problem, load_problems
from results import Results
from tables import write_tables
from train import make_run, steps_of_stages

from jaxalign.files import locked

Trial = tuple[Run, Numbers]


class Study:
    """Runs what is missing of a plan, as many at once as the plan says; every method is compiled once."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.results = plan, Results(folder, plan)
        seeds = [*plan.validation_seeds, *plan.test_seeds]
        self._problems = load_problems(folder / "problems", seeds, plan.design, plan.sizes, width=plan.width)
        self._compiled: dict[str, Callable[..., Any]] = {}

    def run(self) -> tuple[dict[str, Choice], dict[str, Numbers]]:
        """Tune, choose, test, ablate; the choice of each method, and its numbers."""
        plan = self.plan
        drawn = {name: METHODS[name].drawn(plan.num_settings) for name in plan.methods}
        for name in plan.methods:
            self.finish(METHODS[name], [(run, drawn[name][run.setting]) for run in plan.screening(name)])
        finalists = choose_finalists(plan, self.results.rows)
        for name in plan.methods:
            runs = plan.finals(name, finalists[name])
            self.finish(METHODS[name], [(run, drawn[name][run.setting]) for run in runs])
        choices = choose_settings(plan, self.results.rows)
        chosen = {name: drawn[name][choices[name].setting] for name in plan.methods}
        for name in plan.methods:
            runs = plan.testing("test", name, choices[name].setting)
            self.finish(METHODS[name], [(run, chosen[name]) for run in runs])
        for name in plan.ablations:
            ablation = ABLATIONS[name]
            method, numbers = ablation.applied(chosen[ablation.base])
            runs = plan.testing("ablate", name, choices[ablation.base].setting)
            self.finish(method, [(run, numbers) for run in runs])
        settings = {name: choice.setting for name, choice in choices.items()}
        self.results.choose(settings | {name: settings[ABLATIONS[name].base] for name in plan.ablations})
        return choices, chosen

    def finish(self, method: Method, trials: Sequence[Trial]) -> None:
        """Train what is missing of some trials of one method, and keep their figures."""
        missing = set(self.results.missing([run for run, _ in trials]))
        trials = [(run, numbers) for run, numbers in trials if run in missing]
        if not trials:
            return
        first, start, done = trials[0][0], time.perf_counter(), 0
        if first.name not in self._compiled:
            self._compiled[first.name] = over_lanes(make_run(method, self.plan.budget))
        lanes = [self._lane(method, numbers, run.seed) for run, numbers in trials]
        for chunk in in_chunks(self._compiled[first.name], lanes, self.plan.width):
            for (run, numbers), figures in zip(trials[done : done + len(chunk)], chunk, strict=True):
                self.results.add(run, numbers, figures)
            done += len(chunk)
            seconds = time.perf_counter() - start
            print(
                f"{first.phase:7} {first.name:32} {done:3} of {len(trials)} runs, {seconds:5.0f} s",
                flush=True,
            )

    def _lane(self, method: Method, numbers: Numbers, seed: int) -> tuple[Numbers, Problem, list[np.ndarray]]:
        """What a run is given: numbers as arrays, the problem, and the pairs of every step, alike for all methods."""
        problem, budget = self._problems[seed], self.plan.budget
        orders = []
        for stage, (view, steps) in enumerate(
            zip(method.views, steps_of_stages(method, budget), strict=True)
        ):
            rng = np.random.default_rng([seed, 1 + stage])
            num_pairs = int(problem.pairs[view].num_pairs)
            orders.append(epochs(rng, num_pairs, steps, budget.batch_size))
        return {name: np.float32(x) for name, x in numbers.items()}, problem, orders


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of results, tables and figures")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--subset", action="store_true", help="few methods, settings and seeds")
    size.add_argument("--rare", type=int, help="unsafe prompts of a rare category, instead of 16")
    parser.add_argument("--devices", type=int, default=2, help="CPU devices to spread runs over, one a core")
    args = parser.parse_args()
    if args.rare is not None and args.rare < 2:
        parser.error(
            f"--rare {args.rare}: a category needs 2 prompts or more, one to train on and one held out"
        )
    plan = SUBSET if args.subset else Plan() if args.rare is None else with_rare(args.rare)
    if plan.width % args.devices:
        parser.error(f"--devices {args.devices} must divide {plan.width}, the runs that are trained at once")
    jax.config.update("jax_num_cpu_devices", args.devices)
    args.output.mkdir(parents=True, exist_ok=True)
    busy = SystemExit(f"{args.output}: another call works there; wait for it, or give another --output")
    with locked(args.output / "lock", busy=busy):
        study = Study(plan, args.output)
        choices, chosen = study.run()
        write_csv_files(args.output, plan, study.results)
        write_tables(args.output, plan, study.results, choices, chosen)
        write_figures(args.output, plan, study.results)


if __name__ == "__main__":
    main()
