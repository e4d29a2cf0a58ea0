"""Two processes of 4 devices are one process of 8, and the launch script starts them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests import tiny
from tests.integration.runs import metrics

ROOT = Path(__file__).resolve().parents[2]
MESH = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    path = folder / "config.yaml"
    settings = tiny.run_settings(
        folder, mesh=MESH, train={"num_steps": 3}, adaptive={"violation": {"threshold": 0.3}}
    )
    path.write_text(yaml.safe_dump(settings))
    return path


def run(command: list[str], **variables: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": "",
        **variables,
    }
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_train_like_one(config: Path) -> None:
    one, two = config.parent / "one", config.parent / "two"
    run(["jaxalign", "train", str(config), "--workdir", str(one)], JAX_NUM_CPU_DEVICES="8")
    script = str(ROOT / "launch" / "local_processes.sh")
    output = run(["bash", script, "2", str(config), "--workdir", str(two)], JAXALIGN_DEVICES_PER_PROCESS="4")
    assert "held-out pairs, before and after training" in output
    lines = metrics(one), metrics(two)
    assert len(lines[0]) == len(lines[1]) == 3
    for first, second in zip(*lines, strict=True):
        assert first.keys() == second.keys()
        np.testing.assert_allclose(values(second), values(first), rtol=2e-4, atol=1e-5)


def values(line: dict[str, Any]) -> list[float]:
    return [float(line[key]) for key in sorted(line)]
