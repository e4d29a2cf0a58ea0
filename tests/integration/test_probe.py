"""Margins that follow what the model says: judged answers to fixed prompts between two steps of a run."""

import io
import json
import logging
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxalign.adaptive import CategoryStats, margin_rule
from jaxalign.config import ConfigError, parse_config
from jaxalign.evaluation.judges.interface import from_harm
from jaxalign.run import probe as probes
from jaxalign.run.dry_run import dry_run
from jaxalign.run.probe import make_probe
from jaxalign.run.setup import prepare
from jaxalign.run.train import train
from jaxalign.training.checkpoint import Checkpointer
from tests import tiny
from tests.integration.runs import metrics, prompts_by_category

JUDGE = {"kind": "function", "function": "tests.integration.judging:by_letters"}
NAMES = tiny.CATEGORIES


def settings(folder: Path, *, signal: str = "probe", names: Any = NAMES, **probe: Any) -> dict[str, Any]:
    prompts = folder / "probe.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in prompts_by_category(names)))
    options = {
        "every_steps": 2,
        "prompts": {"path": str(prompts)},
        "answers": {"max_new_tokens": 4, "temperature": 1.0, "num_samples": 2},
        "judge": JUDGE,
    }
    adaptive = {
        "signal": signal,
        "probe": options | probe,
        "margin": {"maximum": 2.0, "step_size": 0.5, "target_rate": 0.3, "initial": 0.2},
    }
    return tiny.run_settings(
        folder, loss={"name": "cat_dpo", "beta": 0.1}, adaptive=adaptive, mesh={"data": "rest"}
    )


def run(folder: Path, config: dict[str, Any], devices: int = 1) -> list[dict[str, Any]]:
    """The figures of each step, without those of the clock."""
    train(parse_config(config, "test"), folder / "run", jax.devices()[:devices])
    clock = ("probe/seconds", "probe/seconds_taken", "probe/share_of_time")
    return [{k: v for k, v in line.items() if k not in clock} for line in metrics(folder / "run")]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("probe")
    return folder, run(folder, settings(folder))


def margins(line: dict[str, Any]) -> list[float | None]:
    return [line.get(f"adaptive/margin/{name}") for name in NAMES]


def test_margins_move_at_probes_alone_and_as_the_rule_says(probed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, lines = probed
    assert [any(key.startswith("probe/violation") for key in line) for line in lines] == [
        False,
        True,
        False,
        True,
        False,
    ]
    rule = margin_rule(parse_config(settings(folder), "test").make_objective().rule_configs["margin"])
    state = rule.init()
    for line in (lines[1], lines[3]):
        rates = np.array([line[f"probe/violation/{name}"] for name in NAMES])
        state = rule.update(
            CategoryStats(4 * rates, np.full(len(NAMES), 4.0)), state
        )  # 2 prompts, 2 answers each
    with Checkpointer(folder / "run" / "checkpoints", keep=None) as checkpointer:
        abstract = prepare(
            parse_config(settings(folder), "test"), folder / "other", jax.devices()[:1]
        ).program.abstract_state
        saved, _ = checkpointer.restore(abstract)
    np.testing.assert_allclose(saved.adaptive["margin"].margin, state.margin, rtol=1e-6)
    assert np.unique(np.asarray(state.margin)).size > 1
    # A step logs the margins that its probe left, as its checkpoint has them.
    assert margins(lines[0]) == [None] * len(NAMES)
    np.testing.assert_allclose(margins(lines[3]), state.margin, rtol=1e-6)
    assert margins(lines[1]) == margins(lines[2]) != margins(lines[3]) == margins(lines[4])


def test_stopped_and_resumed_run_is_exact(probed: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    config = settings(tmp_path)
    first = config | {"train": config["train"] | {"num_steps": 5}}
    short = parse_config(first, "test")

    class StopError(Exception):
        pass

    original = probes.Probe.__call__

    def stop(self: Any, state: Any) -> Any:
        if int(state.step) == 4:
            raise StopError
        return original(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes.Probe, "__call__", stop)
        with pytest.raises(StopError):
            train(short, tmp_path / "run", jax.devices()[:1])
    assert run(tmp_path, first) == probed[1]


def test_eight_devices_probe_like_one(probed: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    lines = run(tmp_path, settings(tmp_path), devices=8)
    for line, expected in zip(lines, probed[1], strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


def test_of_both_signals_pairs_move_the_margins_and_answers_correct_the_rates(tmp_path: Path) -> None:
    judge = {"kind": "function", "function": "tests.integration.judging:always_unsafe"}
    lines = run(tmp_path, settings(tmp_path, signal="both", judge=judge))
    rates = [[line.get(f"adaptive/violation/{name}") for name in NAMES] for line in lines]
    assert rates[1] == rates[3] == [1.0] * len(NAMES)  # the answers
    assert rates[2] != rates[1]  # from where the pairs take them on
    assert margins(lines[2]) != margins(lines[1])


def test_budget_ends_the_probes_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        lines = run(tmp_path, settings(tmp_path, max_seconds=1e-6))
    assert ["probe/unjudged" in line for line in lines] == [False, True, False, False, False]
    assert "no more are made" in caplog.text


def test_prompts_that_are_trained_on_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings(tmp_path)
    prompts = [row["prompt"] for row in tiny.pairs(3)]
    prompts[1], prompts[2] = prompts[1].upper(), "  ".join(prompts[2].split())  # the same prompts
    rows = [{"prompt": prompt, "category": "Violence"} for prompt in prompts]
    with (tmp_path / "probe.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with caplog.at_level(logging.INFO):
        probe = make_probe(prepare(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1]))
    assert probe is not None
    assert len(probe.interview.prompts.rows) == 2 * len(NAMES)
    assert "left out 3 prompts that are trained on" in caplog.text


def test_prompts_too_long_for_training_are_known_again(tmp_path: Path) -> None:
    config = settings(tmp_path)
    config["data"]["max_prompt_length"] = 28
    rows = [{"prompt": row["prompt"], "category": "Violence"} for row in tiny.pairs(3)]
    with (tmp_path / "probe.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    prepared = prepare(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1])
    assert min(map(len, prepared.data.train.prompt_ids)) == 28  # all were cut
    probe = make_probe(prepared)
    assert probe is not None
    assert not {row["prompt"] for row in rows} & {
        row.prompt[0].content for row in probe.interview.prompts.rows
    }


def test_prompts_that_are_all_trained_on_are_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    rows = [{"prompt": row["prompt"], "category": "Violence"} for row in tiny.pairs(3)]
    (tmp_path / "probe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"adaptive.probe.prompts: .* that is not trained on; give others"):
        make_probe(prepare(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1]))


def test_the_share_of_time_is_that_of_the_probes_in_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = make_probe(prepare(parse_config(settings(tmp_path), "test"), tmp_path / "run", jax.devices()[:1]))
    assert probe is not None
    probe.started, probe.seconds = 100.0, 10.0
    times = iter((130.0, 140.0, 180.0))  # begun, answered, and when the figures are made
    monkeypatch.setattr(probes, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(probes, "agree_on_number", lambda x: x)
    judgements = from_harm(np.zeros(len(probe.interview.prompts.rows) * 2))
    monkeypatch.setattr(
        probes.Interview, "__call__", lambda self, state: SimpleNamespace(judgements=judgements)
    )
    state = make_dataclass("State", ["adaptive"])(probe.interview.run.program.objective.init())
    _, figures = probe(state)
    assert figures["probe/seconds"] == 20.0
    assert figures["probe/share_of_time"] == 20.0 / 80.0


def test_prompts_of_unknown_categories_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = settings(tmp_path, names=[*NAMES, "Arson"])
    config["model"]["path"] = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"categories \['Arson'\], the data have"):
        train(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1])


def test_a_category_of_training_pairs_needs_a_prompt_and_one_without_pairs_none(tmp_path: Path) -> None:
    config = settings(tmp_path / "few", names=NAMES[:1])
    with pytest.raises(
        ConfigError, match=r"no prompt for .*, whose margins would never move; add some, or set"
    ):
        make_probe(prepare(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1]))
    config = settings(tmp_path / "all")
    config["data"]["categories"] = [*NAMES, "Arson"]
    assert make_probe(prepare(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1])) is not None


def test_the_number_of_prompts_is_of_those_that_are_not_trained_on(tmp_path: Path) -> None:
    config = settings(tmp_path)
    rows = [{"prompt": row["prompt"], "category": "Violence"} for row in tiny.pairs(9)]
    with (tmp_path / "probe.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    config["adaptive"]["probe"]["prompts"]["max_prompts"] = 2 * len(NAMES)
    probe = make_probe(prepare(parse_config(config, "test"), tmp_path / "run", jax.devices()[:1]))
    assert probe is not None
    assert probe.categories.sum(axis=0).tolist() == [2.0] * len(NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 5}, "adaptive.probe.every_steps: 5 is not below the 5 steps of this run"),
        (
            {"warmup_pairs": 30},
            "warmup_pairs: 30 answers, but the 2 probes of this run see 12 each, 12 before",
        ),
    ],
)
def test_probes_that_could_move_no_margin_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    for name, value in options.items():
        config["adaptive"]["margin" if name == "warmup_pairs" else "probe"][name] = value
    parsed = parse_config(config, "test")
    with pytest.raises(ConfigError, match=message):
        make_probe(prepare(parsed, tmp_path / "run", jax.devices()[:1]))
    if "every_steps" in options:
        with pytest.raises(ConfigError, match=message):
            dry_run(parsed, tmp_path / "run", Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("adaptive", "loss", "message"),
    [
        ({"signal": "probe"}, "cat_dpo", "adaptive.signal probe needs adaptive.probe"),
        (
            {"probe": {"prompts": {"path": "x"}, "judge": JUDGE}},
            "cat_dpo",
            "no effect with adaptive.signal implicit_reward",
        ),
        (
            {"signal": "both", "probe": {"prompts": {"path": "x"}, "judge": JUDGE}},
            "dpo",
            "adaptive.signal has no effect",
        ),
    ],
)
def test_settings_without_effect_are_refused(
    adaptive: dict[str, Any], loss: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(tiny.run_settings(tmp_path, loss={"name": loss}, adaptive=adaptive), "test")
