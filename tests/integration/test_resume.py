"""A stopped and resumed run is the uninterrupted run, bit for bit."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.run import train as train_module
from jaxalign.run.setup import prepare
from jaxalign.run.train import train
from jaxalign.run.workdir import locked
from jaxalign.training.checkpoint import Checkpointer, CheckpointError
from jaxalign.training.preemption import Preemption
from jaxalign.training.step_log import DivergedError
from tests import tiny
from tests.integration.runs import host, metrics

NUM_STEPS = 6  # two epochs of 22 pairs in batches of 8: the third and sixth batch are partial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, Any]:
    return tiny.run_settings(
        folder,
        train={"num_steps": NUM_STEPS},
        checkpoint={"every_steps": 1},
        adaptive={"violation": {"threshold": 0.3}},
        model={"lora": {"rank": 2}},
        reference={"cache_dir": str(folder / "reference")},
    )


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, settings: dict[str, Any]) -> Path:
    train(parse_config(settings, "test"), folder / "whole", jax.devices()[:1])
    return folder / "whole"


def final_state(settings: dict[str, Any], workdir: Path) -> Any:
    run = prepare(parse_config(settings, "test"), workdir, jax.devices()[:1])
    with Checkpointer(workdir / "checkpoints", keep=None) as checkpointer:
        state, cursor = checkpointer.restore(run.program.abstract_state)
    return host(state), cursor


class StopAt(Preemption):
    """A stop request that arrives after a given step."""

    step = 0

    def requested(self, step: int) -> bool:
        return step == self.step


def train_until(step: int, settings: dict[str, Any], workdir: Path, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr("jaxalign.training.loop.Preemption", type("Stop", (StopAt,), {"step": step}))
    stopped = train(parse_config(settings, "test"), workdir, jax.devices()[:1])
    patch.undo()
    return stopped


@pytest.mark.parametrize(
    "step",  # within an epoch, and at its end
    [2, 3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 5))],
)
def test_stop_and_resume_is_exact(
    step: int, settings: Any, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = train_until(step, settings, tmp_path, monkeypatch)
    assert (stopped.step, stopped.finished) == (step, False)
    resumed = train(parse_config(settings, "test"), tmp_path, jax.devices()[:1])
    assert (resumed.step, resumed.finished) == (NUM_STEPS, True)
    expected, cursor = final_state(settings, uninterrupted)
    state, resumed_cursor = final_state(settings, tmp_path)
    chex.assert_trees_all_equal(state, expected)
    assert cursor == resumed_cursor
    assert metrics(tmp_path) == metrics(uninterrupted)
    for name in ("before", "after"):
        report = json.loads((tmp_path / "evaluation" / f"{name}.json").read_text())
        assert report == json.loads((uninterrupted / "evaluation" / f"{name}.json").read_text())


def test_resume_on_another_mesh(
    settings: Any, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(3, settings, tmp_path, monkeypatch)
    spread = {**settings, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}}
    assert train(parse_config(spread, "test"), tmp_path).finished
    for line, expected in zip(metrics(tmp_path), metrics(uninterrupted), strict=True):
        assert line.keys() == expected.keys()
        np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-4)


def test_finished_run_only_reports_again(settings: Any, uninterrupted: Path) -> None:
    before = metrics(uninterrupted)
    result = train(parse_config(settings, "test"), uninterrupted, jax.devices()[:1])
    assert result.finished
    assert result.after is not None
    assert metrics(uninterrupted) == before


def test_resumed_full_training_does_not_keep_the_base(tmp_path: Path) -> None:
    config = parse_config(tiny.run_settings(tmp_path), "test")
    fresh = prepare(config, tmp_path / "run", jax.devices()[:1])
    state = fresh.new_state()
    shape = state.params["embedding"].shape
    del fresh
    gc.collect()
    started = sum(x.shape == shape for x in jax.live_arrays())
    resumed = prepare(config, tmp_path / "run", jax.devices()[:1], resuming=True)
    gc.collect()
    assert resumed.new_state is None
    assert sum(x.shape == shape for x in jax.live_arrays()) == started


def test_manifest_keeps_the_start_and_lists_resumptions(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(1, settings, tmp_path, monkeypatch)
    first = json.loads((tmp_path / "manifest.json").read_text())
    train_until(2, settings, tmp_path, monkeypatch)
    second = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: second[name] for name in first} == first
    assert [set(entry) for entry in second["resumed"]] == [set(first) - {"fingerprints"}]


def test_changed_settings_are_refused_by_name(settings: Any, uninterrupted: Path) -> None:
    changed = {**settings, "optimizer": {**settings["optimizer"], "learning_rate": 2e-3}}
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: started with 0.001, now 0.002"):
        train(parse_config(changed, "test"), uninterrupted, jax.devices()[:1])


def test_changed_data_are_refused(
    settings: Any, uninterrupted: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "train.jsonl"
    original = path.read_text()
    try:
        tiny.write_pairs(path, tiny.pairs(22, first=500))
        with pytest.raises(ConfigError, match="fingerprint of data train"):
            train(parse_config(settings, "test"), uninterrupted, jax.devices()[:1])
    finally:
        path.write_text(original)


def test_two_trainers_in_one_workdir_are_refused(settings: Any, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another process trains in"):
        train(parse_config(settings, "test"), tmp_path, jax.devices()[:1])


def test_workdir_that_is_a_file_is_refused(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is a file; give a directory"):
        train(parse_config(settings, "test"), tmp_path / "file" / "run", jax.devices()[:1])


def test_settings_of_a_run_that_saved_nothing_do_not_bind(settings: Any, tmp_path: Path) -> None:
    first = {**settings, "optimizer": {**settings["optimizer"], "learning_rate": 5.0}}
    (tmp_path / "manifest.json").write_text(json.dumps({"config": first, "fingerprints": {}}))
    assert train(parse_config(settings, "test"), tmp_path, jax.devices()[:1]).finished


def test_evaluation_pairs_are_refused_by_their_key_before_any_work(
    settings: Any, uninterrupted: Path
) -> None:
    changed = {**settings, "evaluation": {"max_pairs": 3}}
    with pytest.raises(ConfigError, match=r"evaluation.max_pairs: started with None, now 3"):
        train(parse_config(changed, "test"), uninterrupted, jax.devices()[:1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves tasks behind
def test_damaged_checkpoint_names_the_one_before(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(3, settings, tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "state" / "d")
    with pytest.raises(CheckpointError, match=r"checkpoint 3 .* is damaged .*move it away to go on from 2"):
        train(parse_config(settings, "test"), tmp_path, jax.devices()[:1])
    (tmp_path / "checkpoints" / "3" / "state" / "_METADATA").unlink()  # as left by a killed removal
    assert train(parse_config(settings, "test"), tmp_path, jax.devices()[:1]).finished


def test_damaged_manifest_is_refused(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json is damaged"):
        train(parse_config(settings, "test"), tmp_path, jax.devices()[:1])


def test_divergence_stops_with_step_and_categories_and_keeps_the_last_good_checkpoint(
    settings: Any, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = prepare

    def broken(*arguments: Any, **options: Any) -> Any:
        run = good(*arguments, **options)
        seen = np.concatenate([run.loader.indices(step) for step in range(2)])
        late = np.setdiff1d(np.arange(len(run.data.train)), seen)  # of the third step on
        run.data.train.reference_logps[late] = np.nan
        return run

    monkeypatch.setattr(train_module, "prepare", broken)
    with pytest.raises(
        DivergedError,
        match=r"2 steps in a row were not finite, the last is step 4; loss not finite in: .*Kept: checkpoint 2",
    ):
        train(parse_config(with_limit(settings, 2), "test"), tmp_path, jax.devices()[:1])
    lines = metrics(tmp_path)
    assert [line["loss"] is None for line in lines] == [False, False, True, True]
    assert [line["skipped_steps"] for line in lines] == [0.0, 0.0, 1.0, 2.0]
    assert lines[:2] == metrics(uninterrupted)[:2]
    with Checkpointer(tmp_path / "checkpoints", keep=None) as checkpointer:
        assert checkpointer.latest_step() == 2


def with_limit(settings: dict[str, Any], limit: int) -> dict[str, Any]:
    return {**settings, "train": {**settings["train"], "max_skipped_in_a_row": limit}}


def test_wrong_reference_is_caught_at_the_start(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = prepare

    def shifted(*arguments: Any, **options: Any) -> Any:
        run = good(*arguments, **options)
        run.data.train.reference_logps[:, 0] += 1.0
        return run

    monkeypatch.setattr(train_module, "prepare", shifted)
    with pytest.raises(ConfigError, match=r"unchanged policy is 0\.\d+, expected ln 2 = 0.693147"):
        train(parse_config(settings, "test"), tmp_path, jax.devices()[:1])
