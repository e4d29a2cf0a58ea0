"""Training the tiny model step by step, and reading what a run left."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.run.setup import Run
from jaxalign.training.state import TrainState
from tests import tiny


def train_steps(run: Run, num_steps: int) -> tuple[TrainState, list[Any]]:
    """The state after so many steps from the start, and the fetched sums of each."""
    state, sums = run.new_state(), []
    for step in range(num_steps):
        state, step_sums = run.program.step(state, run.frozen, run.place(run.loader.batch(step)))
        sums.append(jax.device_get(step_sums))
    return state, sums


def host(tree: Any) -> Any:
    """The tree as numpy."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds_per_step", "response_tokens_per_second")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def prompts_by_category(names: Sequence[str]) -> list[dict[str, str]]:
    """Two prompts of each category, as rows of a file."""
    return [
        {"id": f"{k}-{i}", "prompt": f"{name} {i}?", "category": name}
        for k, name in enumerate(names)
        for i in range(2)
    ]


def selection_section(folder: Path, *, benign: int = 2, **options: Any) -> dict[str, Any]:
    """Settings of a selection every two steps, on two prompts a category and some benign ones."""
    rows: list[dict[str, Any]] = [*prompts_by_category(tiny.CATEGORIES)]
    rows += [{"id": f"benign-{i}", "prompt": f"Hello {i}?", "benign": True} for i in range(benign)]
    path = folder / "selection.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "every_steps": 2,
        "min_prompts": 2,
        "max_over_refusal": 1.0,
        "prompts": {"path": str(path)},
        "answers": {"max_new_tokens": 4, "temperature": 1.0, "num_samples": 2},
        "judge": {"kind": "function", "function": "tests.integration.judging:by_letters"},
    } | options
