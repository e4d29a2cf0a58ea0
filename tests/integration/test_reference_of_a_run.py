"""The reference of a run: what its key depends on, its cache, and that all ways to get it train alike."""

import json
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from jaxalign.config import parse_config
from jaxalign.run.setup import prepare
from jaxalign.training.reference import ReferenceMismatchError
from tests import tiny
from tests.integration.runs import host, train_steps

ONE = jax.devices()[:1]


def key(folder: Path, settings: dict[str, Any]) -> str:
    return prepare(parse_config(settings, "test"), folder / "run", ONE).fingerprints["reference train"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("original")
    return key(folder, tiny.run_settings(folder))


def with_model_file(name: str, old: str, new: str) -> Any:
    def change(folder: Path, settings: dict[str, Any]) -> None:
        path = Path(settings["model"]["path"]) / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def with_setting(section: str, **values: Any) -> Any:
    def change(folder: Path, settings: dict[str, Any]) -> None:
        settings[section].update(values)

    return change


def other_weights(folder: Path, settings: dict[str, Any]) -> None:
    tiny.write_model(Path(settings["model"]["path"]), seed=1)


def one_weight(folder: Path, settings: dict[str, Any]) -> None:
    path = Path(settings["model"]["path"]) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the last bit of one number
    path.write_bytes(content)


def other_data(folder: Path, settings: dict[str, Any]) -> None:
    tiny.write_pairs(folder / "train.jsonl", tiny.pairs(22, first=1))


CHANGES = {
    "weights": other_weights,
    "one bit of the weights": one_weight,
    "architecture": with_model_file("config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0'),
    "template": with_model_file("chat_template.jinja", "assistant", "model"),
    "data": other_data,
    "prompt length": with_setting("data", max_prompt_length=60),
    "response length": with_setting("data", max_response_length=30),
    "dtype": with_setting("model", dtype="bfloat16"),
    "parameter dtype": with_setting("model", param_dtype="bfloat16", lora={"rank": 2}),
    "order of the data": with_setting("train", seed=1, num_steps=1),
}
HARMLESS = {
    "learning rate": with_setting("optimizer", learning_rate=2e-3),
    "micro-batches": with_setting("train", num_micro_batches=2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_key_changes_with(name: str, original: str, tmp_path: Path) -> None:
    settings = tiny.run_settings(tmp_path)
    CHANGES[name](tmp_path, settings)
    assert key(tmp_path, settings) != original


@pytest.mark.parametrize("name", HARMLESS)
def test_key_does_not_change_with(name: str, original: str, tmp_path: Path) -> None:
    settings = tiny.run_settings(tmp_path)
    HARMLESS[name](tmp_path, settings)
    assert key(tmp_path, settings) == original


def test_given_file_is_used_or_refused_with_what_differs(tmp_path: Path) -> None:
    settings = tiny.run_settings(tmp_path)
    run = prepare(parse_config(settings, "test"), tmp_path / "run", ONE)
    (path,) = (tmp_path / "run" / "reference").glob("train-*.safetensors")
    settings["reference"] = {"file": str(path)}
    again = prepare(parse_config(settings, "test"), tmp_path / "other", ONE)
    np.testing.assert_array_equal(again.data.train.reference_logps, run.data.train.reference_logps)
    other_weights(tmp_path, settings)
    with pytest.raises(ReferenceMismatchError, match=r"model: file has \w+, run has \w+") as error:
        prepare(parse_config(settings, "test"), tmp_path / "other", ONE)
    assert "data:" not in str(error.value)


def test_short_run_computes_only_the_pairs_that_it_sees(tmp_path: Path) -> None:
    run = prepare(
        parse_config(tiny.run_settings(tmp_path, train={"num_steps": 1}), "test"), tmp_path / "run", ONE
    )
    known = np.isfinite(run.data.train.reference_logps).all(axis=1)
    seen = run.loader.indices(0)
    assert set(np.flatnonzero(known)) == set(seen[seen >= 0])


@pytest.mark.parametrize(
    ("mode", "model"),
    [("adapter_base", {"lora": {"rank": 2}}), ("online", {"lora": {"rank": 2}}), ("online", {})],
    ids=["adapter-base", "online-adapter", "online-full"],
)
def test_every_mode_trains_alike(mode: str, model: dict[str, Any], tmp_path: Path) -> None:
    states = []
    for name in ("precomputed", mode):
        settings = tiny.run_settings(tmp_path, model=model, reference={"mode": name}, optimizer={"eps": 1e-3})
        run = prepare(parse_config(settings, "test"), tmp_path / "run", ONE)
        state, _ = train_steps(run, 3)
        states.append(host((state.params, state.adaptive)))
    chex.assert_trees_all_close(*states, atol=1e-6, rtol=1e-5)


def test_manifest_of_the_cache_names_its_ingredients(tmp_path: Path) -> None:
    from safetensors import safe_open

    prepare(parse_config(tiny.run_settings(tmp_path), "test"), tmp_path / "run", ONE)
    (path,) = (tmp_path / "run" / "reference").glob("train-*.safetensors")
    with safe_open(path, framework="numpy") as file:
        ingredients = json.loads(file.metadata()["ingredients"])
    assert {"model", "tokenizer and template", "data", "dtype", "max_prompt_length"} <= set(ingredients)


def test_damaged_cache_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = parse_config(tiny.run_settings(tmp_path), "test")
    run = prepare(config, tmp_path / "run", ONE)
    (path,) = (tmp_path / "run" / "reference").glob("train-*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    again = prepare(config, tmp_path / "run", ONE)
    assert "computed again" in caplog.text
    np.testing.assert_array_equal(again.data.train.reference_logps, run.data.train.reference_logps)


def test_online_reference_without_mi_makes_no_pass_over_the_training_pairs(tmp_path: Path) -> None:
    settings = tiny.run_settings(tmp_path, loss={"name": "cat_dpo"}, reference={"mode": "online"})
    prepare(parse_config(settings, "test"), tmp_path / "run", ONE)
    assert [path.name[:7] for path in (tmp_path / "run" / "reference").iterdir()] == ["heldout"]
