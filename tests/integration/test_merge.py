"""`jaxalign merge` on what training leaves: adapters, full parameters, exports and mixtures of them."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from jaxalign.cli import app
from jaxalign.config import parse_config
from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.staging import ExportError
from jaxalign.run.export import export
from jaxalign.run.merge import merge
from jaxalign.run.train import train
from tests import tiny

ADAPTER = {"lora": {"rank": 2, "alpha": 64.0, "targets": ["query", "down"]}}


def settings(folder: Path, seed: int, **model: Any) -> dict[str, Any]:
    return tiny.run_settings(
        folder,
        num_heldout=2,
        model=model,
        loss={"name": "dpo", "beta": 0.1},
        optimizer={"learning_rate": 0.05},
        train={"num_steps": 4, "seed": seed},
    )


def train_alone(settings: dict[str, Any], workdir: Path) -> None:
    """Train on one device, which compiles faster."""
    train(parse_config(settings, workdir.name), workdir, jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs from one base model, by name, and the exports of their last steps in float32."""
    folder = tmp_path_factory.mktemp("merge")
    kinds = {"adapter": (1, ADAPTER), "rounded": (2, {**ADAPTER, "param_dtype": "bfloat16"}), "full": (3, {})}
    for name, (seed, model) in kinds.items():
        train_alone(settings(folder, seed, **model), folder / name)
        export(folder / name, folder / f"{name}_hf", dtype="f32")
    return folder


def weights(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def command(*words: object) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, words)], terminal_width=200)


@pytest.mark.parametrize(
    ("a", "b"),
    [("adapter", "rounded"), ("adapter", "full"), ("full", "rounded_hf"), ("model", "full")],
)
def test_merge_of_runs_is_the_mean_of_their_exports(folder: Path, tmp_path: Path, a: str, b: str) -> None:
    merge(folder / a, folder / b, tmp_path / "out", weight=0.3, dtype="f32")
    exported = [folder / f"{name}_hf" for name in (a, b)]
    first, second = (weights(hf if hf.exists() else hf.with_name(hf.name[:-3])) for hf in exported)
    moved = 0.0
    for name, value in weights(tmp_path / "out").items():
        expected = 0.7 * first[name].astype(np.float64) + 0.3 * second[name].astype(np.float64)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7, err_msg=name)
        moved = max(moved, np.abs(first[name] - second[name]).max())
    assert moved > 0.05


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize(("weight", "name"), [(0.0, "adapter"), (1.0, "full")])
def test_ends_are_the_exports_byte_for_byte(
    folder: Path, tmp_path: Path, weight: float, name: str, dtype: Any
) -> None:
    merge(folder / "adapter", folder / "full", tmp_path / "out", weight=weight, dtype=dtype)
    export(folder / name, tmp_path / "export", dtype=dtype)
    for file in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "export" / file).read_bytes(), file


def test_adapter_trained_onto_a_rounded_base_is_merged_onto_it(folder: Path, tmp_path: Path) -> None:
    merge(folder / "rounded", folder / "full", tmp_path / "out", weight=0.0, dtype="f32")
    found, expected = weights(tmp_path / "out"), weights(folder / "rounded_hf")
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    norm = weights(folder / "model")["model.norm.weight"]
    np.testing.assert_array_equal(found["model.norm.weight"], norm.astype(ml_dtypes.bfloat16).astype("f4"))


def test_command_takes_steps_of_runs_and_the_card_names_them(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean"
    result = command(
        folder / "adapter",
        folder / "full",
        "--weight",
        0.25,
        "--output",
        out,
        "--dtype",
        "f32",
        "--step-b",
        2,
    )
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert f"merged into {out}" in result.output.replace("\n", "")
    export(folder / "full", tmp_path / "step2", dtype="f32", step=2)
    a, b = weights(folder / "adapter_hf"), weights(tmp_path / "step2")
    for name, value in weights(out).items():
        np.testing.assert_allclose(value, 0.75 * a[name] + 0.25 * b[name], rtol=1e-5, atol=1e-6)
    card = (out / "README.md").read_text()
    assert "| 0.75 | adapter | dpo | 0.1 | 4 |" in card
    assert "| 0.25 | full | dpo | 0.1 | 2 |" in card
    assert str(folder) not in card


def test_merge_evaluates_like_any_other_model(folder: Path, tmp_path: Path) -> None:
    merge(folder / "adapter", folder / "rounded", tmp_path / "out", weight=0.5)
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump(settings(folder, 1)))
    words = ["evaluate", tmp_path / "out", "--data", data, "--reference", folder / "model"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, repr(result.exception)
    assert "2 pairs" in result.output


@pytest.mark.slow
def test_gguf_model_merged_with_its_own_export_stays_what_it_is(smollm2_gguf: Path, tmp_path: Path) -> None:
    merge(smollm2_gguf, smollm2_gguf, tmp_path / "same", weight=0.3, dtype="f32")
    merge(tmp_path / "same", smollm2_gguf, tmp_path / "again", weight=0.6, dtype="f32")
    source = open_checkpoint(smollm2_gguf).source
    for name, value in weights(tmp_path / "again").items():
        np.testing.assert_array_equal(value, source.read(name, (...,)), err_msg=name)


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["adapter", "full", "--weight", 1.25],
            "weight 1.25: expected 0 to 1, the share of the second model",
        ),
        (["model", "full", "--weight", 0.5, "--step-a", 2], "--step-a 2 needs the workdir of a run"),
        (["adapter", "full", "--weight", 0.5, "--step-b", 3], "no checkpoint of step 3"),
        (["adapter", "nothing", "--weight", 0.5], "nothing is neither a directory nor a .gguf file"),
        (["adapter", "adapter/evaluation", "--weight", 0.5], "has no config.json"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    folder: Path, tmp_path: Path, words: list[Any], message: str
) -> None:
    result = command(folder / words[0], folder / words[1], *words[2:], "--output", tmp_path / "out")
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    wide = tiny.write_model(tmp_path / "wide", intermediate_size=48)
    result = command(folder / "adapter", wide, "--weight", 0.5, "--output", tmp_path / "out")
    assert "have different architectures: intermediate_size 32 and 48" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_output_that_is_taken_or_an_input_is_refused(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "adapter_hf", folder / "full_hf"
    before = weights(a)
    with pytest.raises(ExportError, match="holds an export already"):
        merge(folder / "adapter", folder / "full", a, weight=0.5)
    for first, output in (
        (a, a),
        (a, a / "merged"),
        (folder / "full", folder / "full" / "checkpoints" / "x"),
    ):
        result = command(first, b, "--weight", 0.5, "--output", output, "--overwrite")
        assert "is, or lies in, what is merged or its base model" in str(result.exception)
    for name, value in weights(a).items():
        np.testing.assert_array_equal(value, before[name])
