"""Margin rewards of MODPO: the values against torch, which rows get one, the cache, and what is refused."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from jaxalign.config import Config, ConfigError, parse_config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.run.data import load_split, load_tokenizer
from jaxalign.run.dry_run import dry_run
from jaxalign.run.export import export
from jaxalign.run.load import load_model
from jaxalign.run.margin_model import margin_model_bytes, margin_model_fingerprint, margin_rewards
from jaxalign.run.setup import prepare
from jaxalign.run.train import train
from tests import tiny

LENGTH = 96
MARGIN_BETA = 0.25


def settings(folder: Path, **sections: Any) -> dict[str, Any]:
    sections.setdefault("loss", {"name": "dpo", "beta": 0.1})
    return tiny.run_settings(
        folder,
        num_train=9,
        num_heldout=2,
        model={"lora": {"rank": 2, "alpha": 64.0, "targets": ["query", "down"]}},
        optimizer={"learning_rate": 0.05},
        train={"num_steps": 4},
        **sections,
    )


def modpo(path: Path, margin_beta: float = MARGIN_BETA) -> dict[str, Any]:
    return {"name": "modpo", "margin_model": str(path), "margin_beta": margin_beta}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained margin model in `run`, its export in `hf`, its base in `model`."""
    folder = tmp_path_factory.mktemp("margin")
    train(config(folder), folder / "run", jax.devices()[:1])
    export(folder / "run", folder / "hf", dtype="f32")
    return folder


def config(folder: Path) -> Config:
    return parse_config(settings(folder), "margin")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> TokenizedDataset:
    parsed = config(folder)
    return load_split(parsed.data, load_tokenizer(parsed), "train")[0]


@pytest.fixture(scope="module")
def reference(folder: Path, dataset: TokenizedDataset) -> np.ndarray:
    """[n, 2] log-probs of the base model; rows 2 and 5 are not visited."""
    model = load_model(folder / "model")
    found = model.logps(None, dataset, batch_size=8, label="base")
    found[[2, 5]] = np.nan
    return found


def rewards(
    folder: Path,
    path: Path,
    dataset: TokenizedDataset,
    reference: np.ndarray,
    cache: Path,
    margin_beta: float = MARGIN_BETA,
) -> np.ndarray:
    parsed = parse_config(settings(folder, loss=modpo(path, margin_beta)), "margin")
    return margin_rewards(
        parsed.loss,
        dataclasses.replace(dataset, reference_logps=reference),
        fingerprint=margin_model_fingerprint(path),
        numerics=parsed.model,
        batch_size=3,
        cache_dir=cache,
    )


def torch_logps(directory: Path, dataset: TokenizedDataset) -> np.ndarray:
    """[n, 2] summed response log-probs by transformers + torch, a pair at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    sums = np.zeros((len(dataset), 2))
    for branch, responses in enumerate((dataset.chosen_ids, dataset.rejected_ids)):
        for row, (prompt, response) in enumerate(zip(dataset.prompt_ids, responses, strict=True)):
            tokens = torch.from_numpy(np.concatenate([prompt, response])[None].astype(np.int64))
            with torch.inference_mode():
                logps = model(tokens).logits[0].log_softmax(-1)
            before = torch.arange(len(prompt) - 1, tokens.shape[1] - 1)
            sums[row, branch] = logps[before, tokens[0, len(prompt) :]].sum()
    return sums


@pytest.mark.parametrize("margin_model", ["run", "hf"])
def test_reward_is_beta_times_the_log_ratio_to_the_reference(
    folder: Path, dataset: TokenizedDataset, reference: np.ndarray, tmp_path: Path, margin_model: str
) -> None:
    found = rewards(folder, folder / margin_model, dataset, reference, tmp_path)
    expected = MARGIN_BETA * (torch_logps(folder / "hf", dataset) - reference)
    assert found.shape == (9, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)  # NaN in the same rows
    assert np.nanmax(np.abs(found)) > 0.1


def test_model_that_is_the_reference_gives_no_reward(
    folder: Path, dataset: TokenizedDataset, reference: np.ndarray, tmp_path: Path
) -> None:
    found = rewards(folder, folder / "model", dataset, reference, tmp_path)
    visited = np.delete(np.arange(9), [2, 5])
    np.testing.assert_allclose(found[visited], 0.0, atol=1e-4)
    assert np.isnan(found[[2, 5]]).all()


def test_one_pass_serves_every_margin_beta(
    folder: Path, dataset: TokenizedDataset, reference: np.ndarray, tmp_path: Path
) -> None:
    once = rewards(folder, folder / "run", dataset, reference, tmp_path)
    (file,) = tmp_path.iterdir()
    # Other numbers in the file show that it is read.
    with_metadata = _shifted(file, 1.0)
    shifted = rewards(folder, folder / "run", dataset, reference, tmp_path, margin_beta=2 * MARGIN_BETA)
    np.testing.assert_allclose(shifted, 2 * once + 2 * MARGIN_BETA, atol=1e-5)
    assert list(tmp_path.iterdir()) == [with_metadata]


def _shifted(file: Path, amount: float) -> Path:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    save_file({**arrays, "logps": arrays["logps"] + np.float32(amount)}, file, metadata)
    return file


def test_rewards_of_the_batch_grow_with_margin_beta_and_not_with_beta(folder: Path, tmp_path: Path) -> None:
    batches = []
    for beta, margin_beta in ((0.1, 0.25), (0.1, 0.5), (0.4, 0.5)):
        loss = {**modpo(folder / "run", margin_beta), "beta": beta}
        parsed = parse_config(settings(folder, loss=loss), "margin")
        batches.append(prepare(parsed, tmp_path, jax.devices()[:1]).loader.batch(0).scores[0])
    assert np.abs(batches[0]).max() > 0.1
    np.testing.assert_array_equal(batches[1], 2 * batches[0])
    np.testing.assert_array_equal(batches[2], batches[1])


def test_damaged_cache_is_called_what_it_is_and_computed_again(
    folder: Path,
    dataset: TokenizedDataset,
    reference: np.ndarray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    once = rewards(folder, folder / "run", dataset, reference, tmp_path)
    (file,) = tmp_path.iterdir()
    assert load_file(file).keys() == {"logps"}
    rewards(folder, folder / "run", dataset, reference, tmp_path)
    assert f"margin log-probs: read from {file}" in caplog.text
    file.write_bytes(b"half")
    again = rewards(folder, folder / "run", dataset, reference, tmp_path)
    np.testing.assert_array_equal(again, once)
    assert "the cached margin log-probs cannot be used" in caplog.text
    assert "is not a whole margin log-probs file" in caplog.text
    assert "reference.file" not in caplog.text


def test_other_rows_and_other_models_have_files_of_their_own(
    folder: Path, dataset: TokenizedDataset, reference: np.ndarray, tmp_path: Path
) -> None:
    rewards(folder, folder / "run", dataset, reference, tmp_path)
    fewer = reference.copy()
    fewer[0] = np.nan
    rewards(folder, folder / "run", dataset, fewer, tmp_path)
    rewards(folder, folder / "hf", dataset, reference, tmp_path)
    assert len(list(tmp_path.glob("margin-*.safetensors"))) == 3


def test_fingerprint_of_a_run_follows_its_training_and_not_its_resumptions(
    folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    original = margin_model_fingerprint(copy)
    assert original == margin_model_fingerprint(folder / "run")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"resumed": [{"devices": 4}]}))
    assert margin_model_fingerprint(copy) == original
    shutil.rmtree(copy / "checkpoints" / "4")
    assert margin_model_fingerprint(copy) != original
    shutil.rmtree(copy / "checkpoints" / "2")
    with pytest.raises(ConfigError, match=r"has no complete checkpoint; train it first"):
        margin_model_fingerprint(copy)


def test_dry_run_shows_the_memory_of_the_margin_model(folder: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    dry_run(parse_config(settings(folder, loss=modpo(folder / "run")), "margin"), tmp_path / "run", console)
    assert "before training: base and margin model" in console.export_text()
    size = margin_model_bytes(folder / "run", config(folder).model, 1)
    model = load_model(folder / "run")
    assert size == sum(x.nbytes for x in jax.tree.leaves((model.params, model.lora_params)))
    assert margin_model_bytes(folder / "hf", config(folder).model, 8) < size / 4


# What is refused


def missing(folder: Path, target: Path) -> Path:
    return target


def no_checkpoint(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder / "run", target, ignore=shutil.ignore_patterns("checkpoints")))


def other_template(folder: Path, target: Path) -> Path:
    shutil.copytree(folder / "hf", target)
    (target / "chat_template.jinja").write_text("{{ messages }}")
    return target


def other_vocabulary(folder: Path, target: Path) -> Path:
    return tiny.write_model(target, vocab_size=300)


def other_dtypes(folder: Path, target: Path) -> Path:
    return with_manifest(
        folder, target, lambda manifest: manifest["config"]["model"].update(dtype="bfloat16")
    )


def other_base(folder: Path, target: Path) -> Path:
    return with_manifest(folder, target, lambda manifest: manifest["fingerprints"].update(model="another"))


def moved_base(folder: Path, target: Path) -> Path:
    return with_manifest(folder, target, lambda manifest: manifest["config"]["model"].update(path="gone"))


def with_manifest(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the run that was started otherwise."""
    shutil.copytree(folder / "run", target)
    manifest = json.loads((target / "manifest.json").read_text())
    change(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


REFUSED = [
    (missing, r"loss\.margin_model .*/other is no run and no model: .*neither a directory nor a \.gguf file"),
    (no_checkpoint, r"has no complete checkpoint; train it first"),
    (other_template, r"do not read texts alike \(chat template\): train the margin model from the same"),
    (other_vocabulary, r"do not read texts alike \(264 and 300 token ids\)"),
    (
        other_dtypes,
        r"with model\.dtype: bfloat16 where this run has float32, .*; set model\.dtype alike in both",
    ),
    (other_base, r"was trained from another model than .*start both from one model"),
    (moved_base, r"is a run whose base model cannot be opened: gone is neither"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_margin_model_that_cannot_judge_is_refused_without_its_weights_by_dry_runs_too(
    folder: Path, tmp_path: Path, make: Any, message: str
) -> None:
    loss = modpo(make(folder, tmp_path / "other"))
    parsed = parse_config(settings(folder, loss=loss), "margin")
    with pytest.raises(ConfigError, match=message):
        dry_run(parsed, tmp_path / "run", Console(quiet=True))
    with pytest.raises(ConfigError, match=message):
        prepare(parsed, tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()  # not even the reference pass has begun


def test_margin_log_probs_that_are_not_finite_are_refused(
    folder: Path, dataset: TokenizedDataset, reference: np.ndarray, tmp_path: Path
) -> None:
    other = shutil.copytree(folder / "hf", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    message = r"not finite for 7 pairs, first at .*train\.jsonl:1; check its weights"
    with pytest.raises(ConfigError, match=message):
        rewards(folder, other, dataset, reference, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
