"""The best state of a run by what it says: kept beside the checkpoints, chosen alike after a resumption."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.errors import JaxalignError
from jaxalign.evaluation.selection import Assessment
from jaxalign.run import selection as selections
from jaxalign.run.load import load_model
from jaxalign.run.train import TrainResult, train
from jaxalign.training.checkpoint import Checkpointer
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


def test_what_was_chosen_after_the_last_checkpoint_is_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    # By number of the look: the second is the best one, but when it is repeated after the kill it is not.
    bounds = iter([0.5, 0.6, 0.4, 0.3])
    monkeypatch.setattr(selections, "assess", lambda *_, **__: Assessment("x", next(bounds), 0.0, None, True))
    original = Checkpointer.save

    def kill(self: Checkpointer, state: Any, cursor: dict[str, Any]) -> None:
        if cursor.get("selection", {}).get("best_step") == 4:
            raise KilledError
        original(self, state, cursor)

    config = settings(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", kill)
        with pytest.raises(KilledError):
            run(tmp_path, config)
    assert sorted(path.name for path in (tmp_path / "run" / "best").iterdir()) == ["2", "4"]
    assert run(tmp_path, config).best_step == 2
    assert load_model(tmp_path / "run", step="best").step == 2


def test_a_best_state_that_is_gone_is_not_passed_over(tmp_path: Path) -> None:
    config = settings(tmp_path)
    run(tmp_path, config)
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(ConfigError, match=r"the run chose step .*, but its folder `best` holds nothing"):
        run(tmp_path, config)


def test_a_new_run_does_not_take_the_best_state_of_an_old_one(tmp_path: Path) -> None:
    config = settings(tmp_path)
    run(tmp_path, config)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    other = config | {"train": config["train"] | {"seed": 7}}
    best = run(tmp_path, other).best_step
    chosen, same = (load_model(tmp_path / "run", step=step).params for step in ("best", best))
    jax.tree.map(np.testing.assert_array_equal, chosen, same)


def test_a_category_whose_prompts_are_all_trained_on_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    path = tmp_path / "selection.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, pair in zip(
        [row for row in rows if row.get("category") == tiny.CATEGORIES[0]], pairs, strict=False
    ):
        row["prompt"] = pair["prompt"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=f"prompts by category .*{tiny.CATEGORIES[0]}': 0"):
        run(tmp_path, config)


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
        ({"answers": {"num_samples": 2}}, "2 samples at temperature 0 would all be the same"),
        ({"by": "certificates", "targets": 0.1}, r"over 3 looks: .*2 of \d+.*add prompts, raise the targets"),
        ({"by": "certificates", "targets": {"Arson": 0.9}}, r"targets for \['Arson'\], expected categories"),
        ({"by": "certificates", "targets": 1.5}, "selection.targets"),
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
    with pytest.raises(ConfigError, match="holds no state: the run has no `selection`"):
        load_model(run, step="best")
