"""Runs for the tests of the report, made once."""

from pathlib import Path

import pytest

from tests.report import runs


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long run of 19 categories with everything that a run can leave."""
    workdir = runs.write_run(tmp_path_factory.mktemp("report") / "cat-b-dpo", num_steps=500)
    runs.write_safety(workdir)
    return workdir


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of dpo on the same held-out pairs: no margins, no mutual information, no answers."""
    folder = tmp_path_factory.mktemp("report")
    return runs.write_run(folder / "dpo", num_steps=120, loss="dpo", seed=1, skill=0.5, sinking=0.4)


@pytest.fixture(scope="session")
def bare_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has a manifest and nothing else."""
    workdir = tmp_path_factory.mktemp("report") / "bare"
    runs.write(workdir / "manifest.json", runs.manifest("dpo", 10, "e" * 64, None))
    return workdir
