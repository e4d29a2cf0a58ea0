"""The attention that a configuration names: where it is refused, and that a trained run is not bound to it."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from jaxalign.config import ConfigError, parse_config
from jaxalign.data.packing import RowShape
from jaxalign.hf.read import open_checkpoint
from jaxalign.parallel import MeshConfig, make_mesh
from jaxalign.run import policy
from jaxalign.run.dry_run import dry_run
from jaxalign.run.evaluate import evaluate
from jaxalign.run.load import load_model
from jaxalign.run.program import abstract_batch, build_program
from jaxalign.run.setup import prepare
from jaxalign.run.train import train
from tests import tiny


def settings(folder: Path, attention: str, **sections: Any) -> dict[str, Any]:
    return tiny.run_settings(folder, model={"attention": attention}, **sections)


def dry(folder: Path, attention: str, **sections: Any) -> str:
    """What a dry run prints."""
    text = io.StringIO()
    config = parse_config(settings(folder, attention, **sections), "test")
    dry_run(config, folder / "run", Console(file=text, width=200))
    return text.getvalue()


def test_run_trained_with_the_kernel_of_another_platform_is_loaded_with_that_of_this_one(
    tmp_path: Path,
) -> None:
    config = parse_config(settings(tmp_path, "auto", train={"num_steps": 1}), "test")
    workdir = tmp_path / "run"
    result = train(config, workdir, jax.devices()[:1])
    assert result.after is not None
    manifest = json.loads((workdir / "manifest.json").read_text())
    manifest["config"]["model"]["attention"] = "splash"
    (workdir / "manifest.json").write_text(json.dumps(manifest))
    loaded = load_model(workdir)
    assert loaded.run is not None
    assert loaded.run.model.attention == "splash"  # what it was trained with is not forgotten
    report = evaluate(workdir, None, split="heldout", reference=None, step=None, batch_size=8)
    assert report.overall == pytest.approx(result.after.overall, abs=1e-4)


def test_dry_run_for_devices_that_are_not_here_takes_any_kernel(tmp_path: Path) -> None:
    text = dry(tmp_path, "splash", mesh={"data": 16}, train={"batch_size": 16})
    assert "only shapes were checked for 16" in text


@pytest.mark.parametrize(("backend", "attention"), [("tpu", "splash"), ("gpu", "blockwise")])
def test_dry_run_takes_a_kernel_of_the_devices_that_are_here(
    backend: str, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert "nothing was found" in dry(tmp_path, attention, mesh={"data": 8})


@pytest.mark.parametrize(
    ("backend", "attention", "message"),
    [
        ("cpu", "splash", "splash: splash attention runs on tpu alone, not on cpu; use auto"),
        ("gpu", "splash", "splash: splash attention runs on tpu alone, not on gpu; use auto"),
        ("gpu", "cudnn", "cudnn: cuDNN's attention computes in bfloat16 or float16, .* float32; use auto"),
    ],
)
def test_dry_run_refuses_a_kernel_that_cannot_run_here(
    backend: str, attention: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with pytest.raises(ConfigError, match=f"model.attention {message}"):
        dry(tmp_path, attention, mesh={"data": 8})


def test_kernel_that_cannot_run_is_refused_before_data_are_read(tmp_path: Path) -> None:
    config = parse_config(settings(tmp_path, "splash"), "test")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match="splash attention runs on tpu alone, not on cpu"):
        prepare(config, tmp_path / "run", jax.devices()[:1])


def test_float32_is_float32_in_the_backward_pass_of_splash_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(settings(tmp_path, "auto"), "test")
    # Traced, not compiled: that needs no TPU.
    monkeypatch.setattr(policy, "default_implementation", lambda platform: "splash")
    monkeypatch.setattr(policy, "supported", lambda *args, **kwargs: None)
    architecture = open_checkpoint(config.model.path).config
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = build_program(config, architecture, mesh, num_steps=1)
    batch = abstract_batch(config, RowShape(8, 128, 8, 64, 128), mesh=mesh)
    jaxpr = str(program.step.trace(program.abstract_state, program.abstract_frozen, batch).jaxpr)
    assert "splash_mha_dkv" in jaxpr
    products = jaxpr.count("dot_general[")
    assert products == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 0
