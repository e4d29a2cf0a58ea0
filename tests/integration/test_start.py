"""The start of a run: policy against reference up to rounding, what it says of its rows; and what its end computes."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.config import ConfigError, parse_config
from jaxalign.evaluation.preference import preference_report
from jaxalign.run.loader import make_loader
from jaxalign.run.setup import prepare
from jaxalign.run.start import check_start, start_tolerance
from jaxalign.run.train import train
from tests import tiny
from tests.data.rows import make_dataset
from tests.integration.runs import metrics

ONE = jax.devices()[:1]


# Policy and reference


def in_bfloat16(folder: Path, **sections: Any) -> dict[str, Any]:
    model = {"dtype": "bfloat16", "param_dtype": "float32", "lora": {"rank": 2}}
    return tiny.run_settings(folder, model=model, **sections)


def test_run_in_bfloat16_starts_and_trains(tmp_path: Path) -> None:
    # A large beta, so that rounding alone moves the loss by more than a thousandth.
    settings = in_bfloat16(tmp_path, loss={"name": "dpo", "beta": 2.0})
    result = train(parse_config(settings, "test"), tmp_path / "run", ONE)
    assert result.finished
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert 1e-3 < abs(losses[0] - np.log(2.0)) < 0.1
    assert np.mean(losses[-2:]) < losses[0]


def test_wrong_reference_is_seen_in_bfloat16(tmp_path: Path) -> None:
    run = prepare(parse_config(in_bfloat16(tmp_path), "test"), tmp_path / "run", ONE)
    assert run.new_state is not None
    state = run.new_state()
    check_start(run, state)
    assert run.loader.dataset.reference_logps is not None
    run.loader.dataset.reference_logps[:, 0] += 1.0
    with pytest.raises(
        ConfigError, match=r"expected ln 2 = 0\.693147 within .* With model\.dtype bfloat16 try float32"
    ):
        check_start(run, state)


def test_tolerance_of_the_start_is_a_thousandth_in_float32_and_follows_rounding_in_bfloat16() -> None:
    few, many = np.full((8, 2), 50), np.full((800, 2), 50)
    assert start_tolerance(few, 0.1, "float32") == pytest.approx(1e-3, rel=1e-3)
    rounding = start_tolerance(few, 0.1, "bfloat16") - 1e-3
    assert 0.04 < rounding < 0.06
    assert start_tolerance(many, 0.1, "bfloat16") - 1e-3 < rounding / 5
    assert start_tolerance(few, 0.2, "bfloat16") - 1e-3 > 2 * rounding


# Rows


def one_long_pair(folder: Path, layout: str, **rows: Any) -> Any:
    """The loader of a run whose 20th pair is much longer than the others."""
    config = parse_config(tiny.run_settings(folder, rows={"layout": layout, **rows}), "test")
    lengths = np.full((22, 3), 8)
    lengths[19] = 100
    return make_loader(config, make_dataset(lengths), 1, 32)


@pytest.mark.parametrize(
    ("layout", "rows", "message"),
    [
        ("padded", {}, r"pair, test:20, has 300 tokens in a row of 320; set rows.layout: packed"),
        ("packed", {"length": 640}, r"test:20, has 300 tokens in a row of 640; set rows.length: null"),
        ("packed", {}, r"test:20, has 300 tokens .*; lower data.max_prompt_length or"),
    ],
)
def test_much_padding_is_warned_of_with_the_longest_pair_and_the_remedy(
    layout: str, rows: dict[str, Any], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = one_long_pair(tmp_path, layout, **rows)
    (record,) = (record for record in caplog.records if record.name == "jaxalign.run.loader")
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith(f"{loader.padding:.1%} of the tokens in training rows are padding")
    assert re.search(message, text)


def test_full_rows_are_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = parse_config(tiny.run_settings(tmp_path, train={"batch_size": 11}), "test")
    loader = make_loader(config, make_dataset(np.full((22, 3), 32)), 1, 32)
    assert loader.padding == 0.0
    assert not caplog.records


def test_run_says_the_shape_of_its_rows_and_how_much_is_padding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxalign")
    run = prepare(parse_config(tiny.run_settings(tmp_path), "test"), tmp_path / "run", ONE)
    shape = run.loader.shape
    expected = (
        f"5 steps of at most 8 pairs: 1 x {shape.num_rows} rows of {shape.length} tokens, "
        f"{run.loader.padding:.1%} of them padding"
    )
    assert expected in caplog.messages


# The end


@pytest.mark.parametrize(("every_steps", "passes"), [(2, [2, 4]), (3, [3, 4])])
def test_held_out_pairs_are_evaluated_once_at_the_last_step(
    every_steps: int, passes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def reported(*arguments: Any, **options: Any) -> Any:
        steps.append(options["step"])
        return preference_report(*arguments, **options)

    monkeypatch.setattr("jaxalign.run.train.preference_report", reported)
    settings = tiny.run_settings(tmp_path, train={"num_steps": 4}, evaluation={"every_steps": every_steps})
    train(parse_config(settings, "test"), tmp_path / "run", ONE)
    assert steps == [0, *passes]
    after = json.loads((tmp_path / "run" / "evaluation" / "after.json").read_text())
    assert after["step"] == 4
    logged = [line["step"] for line in metrics(tmp_path / "run") if "eval/accuracy" in line]
    assert logged == [step for step in passes if step % every_steps == 0]
