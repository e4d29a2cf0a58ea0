"""The best state of a run by what it says: kept beside the checkpoints, chosen alike after a resumption."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.errors import JaxalignError
from jaxalign.run import selection as selections
from jaxalign.run.load import load_model
from jaxalign.run.train import TrainResult, train
from tests import tiny
from tests.integration.runs import metrics, selection_section

CLOCK = ("selection/seconds", "seconds_per_step", "response_tokens_per_second")


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return tiny.run_settings(
        folder,
        selection=selection_section(folder, **options),
        mesh={"data": "rest"},
        checkpoint={"every_steps": 1, "keep": 9},
        train={"num_steps": 5},
    )


def run(folder: Path, config: dict[str, Any]) -> TrainResult:
    return train(parse_config(config, "test"), folder / "run", jax.devices()[:1])


def figures(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in metrics(folder / "run")]


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    folder = tmp_path_factory.mktemp("selection")
    return folder, run(folder, settings(folder))


def test_looks_are_logged_and_the_last_state_is_looked_at_too(selected: tuple[Path, TrainResult]) -> None:
    lines = figures(selected[0])
    looks = [line["step"] for line in lines if "selection/worst_safe_rate_at_least" in line]
    assert looks == [2, 4, 5]
    best = max(
        (line for line in lines if line["step"] in looks),
        key=lambda line: (line["selection/worst_safe_rate_at_least"], -line["step"]),
    )
    assert selected[1].best_step == best["step"] == lines[-1]["selection/best_step"]
    assert json.loads((selected[0] / "run" / "finished.json").read_text()) == {
        "step": 5,
        "best_step": best["step"],
    }


def test_the_best_state_is_read_by_its_name(selected: tuple[Path, TrainResult]) -> None:
    folder, result = selected
    best = load_model(folder / "run", step="best")
    assert best.step == result.best_step
    same = load_model(folder / "run", step=result.best_step)
    jax.tree.map(np.testing.assert_array_equal, best.params, same.params)


def test_a_killed_run_chooses_alike(
    selected: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    original = selections.Selector.__call__

    def kill(self: Any, state: Any) -> Any:
        if int(state.step) == 4:
            raise KilledError
        return original(self, state)

    config = settings(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(selections.Selector, "__call__", kill)
        with pytest.raises(KilledError):
            run(tmp_path, config)
    assert run(tmp_path, config).best_step == selected[1].best_step
    assert figures(tmp_path) == figures(selected[0])


def test_training_stops_when_nothing_gets_better_and_stays_stopped(tmp_path: Path) -> None:
    # Everything is unsafe to this judge, so that the first look stays the best.
    config = settings(tmp_path, patience=1, judge=tiny_judge("always_unsafe"))
    assert run(tmp_path, config).step == 4
    lines = figures(tmp_path)
    again = run(tmp_path, config)
    assert (again.step, again.finished, again.best_step) == (4, True, 2)
    assert figures(tmp_path) == lines


def test_training_stops_when_all_certificates_are_met(tmp_path: Path) -> None:
    config = settings(tmp_path, by="certificates", targets=0.97, judge=tiny_judge("always_safe"))
    result = run(tmp_path, config)
    assert (result.step, result.best_step) == (2, 2)


def tiny_judge(name: str) -> dict[str, str]:
    return {"kind": "function", "function": f"tests.integration.judging:{name}"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_prompts": 3}, r"selection: prompts by category .* at least min_prompts=3"),
        ({"benign": 0}, "selection: 0 benign prompts, expected at least min_prompts=2"),
        ({"judge": {"kind": "function", "function": "nowhere:judge"}}, "cannot import nowhere"),
        ({"targets": 0.1}, "selection.targets has no effect with selection.by worst_category"),
    ],
)
def test_prompts_and_settings_that_do_not_serve_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(JaxalignError, match=message):
        run(tmp_path, settings(tmp_path, **options))


def test_a_run_without_a_best_state_says_so(tmp_path: Path, selected: tuple[Path, TrainResult]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("manifest.json", "checkpoints"):
        (run / name).symlink_to(selected[0] / "run" / name)
    with pytest.raises(ConfigError, match="has no best state"):
        load_model(run, step="best")
