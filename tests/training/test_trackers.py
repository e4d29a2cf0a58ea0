"""Trackers: one interface, a run that goes on where it was, and what is said where a package is missing."""

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.errors import MissingPackageError
from jaxalign.training.log import MetricsLog
from jaxalign.training.trackers import LoggingConfig, TensorBoardTracker, check_trackers, open_trackers

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
import json, pathlib
calls = pathlib.Path(__file__).with_name("calls.jsonl")

def note(**call):
    with calls.open("a") as file:
        file.write(json.dumps(call) + "\\n")

class Run:
    def log(self, figures, step):
        note(call="log", figures=figures, step=step)

    def finish(self):
        note(call="finish")

def init(**options):
    note(call="init", **options)
    return Run()
"""


@pytest.fixture(params=["wandb", "trackio"])
def package(request, tmp_path, monkeypatch):
    """A stand-in with the calls of the package, which writes down how it was called; its name and those notes."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / f"{request.param}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    yield request.param, folder / "calls.jsonl"
    sys.modules.pop(request.param, None)


def calls(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(workdir: Path, name: str, first: int, last: int) -> None:
    config = LoggingConfig(tensorboard=False, trackers=[name])
    with MetricsLog(workdir, first, open_trackers(config, workdir, first, {"loss": "dpo"})) as log:
        for step in range(first + 1, last + 1):
            log.write(step, {"loss": 1.0 / step, "grad_norm": None})


def test_tracker_gets_the_finite_figures_of_each_step(package, tmp_path):
    name, notes = package
    train(tmp_path, name, 0, 2)
    begun, *logged, finished = calls(notes)
    assert (begun["call"], begun["project"], begun["resume"]) == ("init", "jaxalign", "never")
    assert begun["config"] == {"loss": "dpo"}
    assert [(call["step"], call["figures"]) for call in logged] == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]
    assert finished == {"call": "finish"}


def test_resumed_training_goes_on_in_its_run_and_a_new_one_begins_another(package, tmp_path):
    name, notes = package
    train(tmp_path, name, 0, 2)
    train(tmp_path, name, 2, 3)
    train(tmp_path, name, 0, 1)
    begun = [call for call in calls(notes) if call["call"] == "init"]
    assert [call["resume"] for call in begun] == ["never", "allow", "never"]
    assert begun[0]["name"] == begun[1]["name"] != begun[2]["name"]
    assert begun[0].get("id") == begun[1].get("id")


def test_all_trackers_are_closed_even_if_one_fails(tmp_path):
    closed = []

    class Failing:
        def log(self, step, figures):
            pass

        def close(self):
            closed.append(self)
            raise OSError("the disk is full")

    with (
        pytest.raises(OSError, match="the disk is full"),
        MetricsLog(tmp_path, 0, [Failing(), Failing()]) as log,
    ):
        log.write(1, {"loss": 0.5})
    assert len(closed) == 2
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        MissingPackageError, match=r"logging\.trackers names wandb, which is not .* pip install wandb"
    ):
        check_trackers(LoggingConfig(trackers=["wandb"]))


def test_tensorboard_alone_is_the_default(tmp_path):
    (tracker,) = open_trackers(LoggingConfig(), tmp_path, 0, {})
    assert isinstance(tracker, TensorBoardTracker)
    tracker.close()
    assert open_trackers(LoggingConfig(tensorboard=False), tmp_path, 0, {}) == []


def test_wandb_itself_takes_the_figures(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tmp_path, "wandb", 0, 2)
    train(tmp_path, "wandb", 2, 3)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) >= 1


def test_trackio_itself_goes_on_in_its_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="needs trackio: pip install trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    code = "import sys; from pathlib import Path; from tests.training.test_trackers import train; "
    code += "train(Path(sys.argv[1]), 'trackio', int(sys.argv[2]), int(sys.argv[3]))"
    for first, last in (
        (0, 2),
        (2, 3),
    ):  # processes of their own: trackio reads its folder when it is imported
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(first), str(last)], check=True, cwd=ROOT
        )
    (database,) = (tmp_path / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("select run_name, step from metrics order by step").fetchall()
    assert [step for _, step in rows] == [1, 2, 3]
    assert len({name for name, _ in rows}) == 1
