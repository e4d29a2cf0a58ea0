"""Two processes of 4 devices are one process of 8, stopped and resumed too, and the launch script starts them."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jaxalign.config import parse_config
from jaxalign.run.train import train
from tests import tiny
from tests.integration.runs import metrics, selection_section

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"mesh": {"data": 2, "fsdp": 4}, "adaptive": {"violation": {"threshold": 0.3}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


def start(settings: dict[str, Any], workdir: Path) -> subprocess.Popen[str]:
    """The launch script with two processes of 4 devices."""
    config = workdir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),  # of the judge
        "JAXALIGN_DEVICES_PER_PROCESS": "4",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache"),  # a resumed run compiles little anew
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    script = str(ROOT / "launch" / "local_processes.sh")
    command = ["bash", script, "2", str(config), "--workdir", str(workdir)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    return output


def wait_for_steps(process: subprocess.Popen[str], workdir: Path, num_steps: int) -> None:
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= num_steps:
            return
        time.sleep(0.05)
    raise AssertionError(f"training ended before step {num_steps}:\n{process.communicate()[0]}")


def check_same_figures(workdir: Path, reference: Path, num_steps: int) -> None:
    """One line a step, equal to those of the reference."""
    lines = [
        [{k: v for k, v in line.items() if k != "selection/seconds"} for line in metrics(run)]
        for run in (reference, workdir)
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    assert len(lines[0]) == num_steps
    for first, second in zip(*lines, strict=True):
        assert first.keys() == second.keys()
        np.testing.assert_allclose(values(second), values(first), rtol=2e-4, atol=1e-5)


def values(line: dict[str, Any]) -> list[float]:
    return [float(line[key]) for key in sorted(line)]


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_stopped_and_resumed_run_of_two_processes_is_that_of_one_and_asks_a_judge_once(folder: Path) -> None:
    check_stopped_and_resumed(folder / "full", 12, selection=selection_section(folder))


@pytest.mark.slow
def test_stopped_and_resumed_adapter_of_two_processes_is_that_of_one(folder: Path) -> None:
    check_stopped_and_resumed(folder / "adapter", 30, model={"lora": {"rank": 2}})


def check_stopped_and_resumed(workdir: Path, num_steps: int, **sections: Any) -> None:
    settings = tiny.run_settings(
        workdir.parent,
        **SHARED,
        **sections,
        train={"num_steps": num_steps},
        checkpoint={"every_steps": 1000},
    )
    process = start(settings, workdir)
    wait_for_steps(process, workdir, 2)
    process.terminate()
    output = finish(process)
    done = len(metrics(workdir))
    assert 2 <= done < num_steps
    assert set(re.findall(r"stopped at step (\d+)", output)) == {str(done)}
    assert saved_steps(workdir)[-1] == done  # complete, thus both processes stopped there

    output = finish(start(settings, workdir))
    assert f"resuming at step {done} of {num_steps}" in output
    assert "held-out pairs, before and after training" in output
    assert saved_steps(workdir)[-1] == num_steps
    alone = workdir.with_name(workdir.name + "_alone")
    train(parse_config(settings, "test"), alone)
    check_same_figures(workdir, alone, num_steps)
