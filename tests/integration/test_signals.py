"""SIGTERM saves and exits with 0; kill -9 at any moment leaves a loadable checkpoint."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tests.integration.runs import metrics

ROOT = Path(__file__).resolve().parents[2]


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny.run_settings(folder, **sections)))
    return path


def start(config: Path, workdir: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "jaxalign", "train", str(config), "--workdir", str(workdir)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def logged_steps(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def saved_steps(workdir: Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").glob("*/") if path.name.isdigit()]


def wait_for_steps(
    process: subprocess.Popen[str], workdir: Path, num_steps: int, *, saved: bool = False
) -> None:
    while process.poll() is None:
        if logged_steps(workdir) >= num_steps and (saved_steps(workdir) or not saved):
            return
        time.sleep(0.02)
    raise AssertionError(f"training ended before step {num_steps}:\n{process.communicate()[0]}")


def test_sigterm_saves_exits_with_zero_and_resumes(tmp_path: Path) -> None:
    config = write_config(tmp_path, train={"num_steps": 400}, checkpoint={"every_steps": 1000, "keep": 2})
    workdir = tmp_path / "run"
    process = start(config, workdir)
    wait_for_steps(process, workdir, 3)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert "stopped at step" in output
    done = len(metrics(workdir))
    assert 3 <= done < 400
    assert saved_steps(workdir) == [done]
    again = start(config, workdir)
    wait_for_steps(again, workdir, done + 2)
    again.send_signal(signal.SIGTERM)
    output = again.communicate(timeout=120)[0]
    assert again.returncode == 0, output
    assert f"resuming at step {done} of 400" in output
    assert [line["step"] for line in metrics(workdir)] == list(range(1, len(metrics(workdir)) + 1))


def kill_at_random_moments(folder: Path, num_kills: int, seed: int) -> None:
    config = write_config(folder, train={"num_steps": 5000}, checkpoint={"every_steps": 1, "keep": 2})
    workdir = folder / "run"
    moments = random.Random(seed)
    done = 0
    for _ in range(num_kills):
        before = logged_steps(workdir)  # a killed run may have logged more than it saved
        process = start(config, workdir)
        wait_for_steps(process, workdir, before + 2, saved=True)
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        output = process.communicate()[0]
        # The newest checkpoint is never older than the one that this start went on from.
        assert f"resuming at step {done} of 5000" in output or not done, output
        assert max(saved_steps(workdir)) >= done
        done = max(saved_steps(workdir))
    before = logged_steps(workdir)
    process = start(config, workdir)
    wait_for_steps(process, workdir, before + 2)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"resuming at step {done} of 5000" in output


def test_kill_during_saves_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, num_kills=1, seed=0)


@pytest.mark.slow
def test_many_kills_during_saves_leave_a_loadable_checkpoint(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, num_kills=20, seed=1)
