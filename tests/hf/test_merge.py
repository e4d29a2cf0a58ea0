"""Merges of two models: exact at the ends, a float32 mean between them, and nothing that does not belong together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.hf.merge import MergeError, MergeInput, StoredTensors, merge_models
from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.staging import ExportError

EPSILON = np.finfo(np.float32).eps
Pair = tuple[MergeInput, MergeInput]


def weights(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def given(directory: Path, tokenizer: Any, **facts: Any) -> MergeInput:
    checkpoint = open_checkpoint(directory)
    return MergeInput(directory.name, checkpoint, tokenizer, StoredTensors(checkpoint), facts)


def variant(source: Path, directory: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A model with other weights in `directory`."""
    directory.mkdir()
    (directory / "config.json").write_bytes((source / "config.json").read_bytes())
    changed = {name: change(name, value) for name, value in weights(source).items()}
    save_file(changed, directory / "model.safetensors", {"format": "pt"})
    return directory


def noise(name: str, value: np.ndarray) -> np.ndarray:
    """Changes as large as the weights, but for the embedding, which stays."""
    if "embed" in name:
        return value
    return value + np.random.default_rng(len(name)).standard_normal(value.shape, np.float32)


@pytest.fixture
def folders(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    first = tiny_checkpoint("llama_tied")
    return first, variant(first, tmp_path / "second", noise)


@pytest.fixture
def pair(folders: tuple[Path, Path], tiny_tokenizer: Any) -> Pair:
    return given(folders[0], tiny_tokenizer), given(folders[1], tiny_tokenizer)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_merge_is_the_float64_mean_up_to_float32_rounding(
    family: str, weight: float, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    first = tiny_checkpoint(family)
    second = variant(first, tmp_path / "second", noise)
    merge_models(
        tmp_path / "out", given(first, tiny_tokenizer), given(second, tiny_tokenizer), weight, dtype="f32"
    )
    a, b, merged = weights(first), weights(second), weights(tmp_path / "out")
    assert merged.keys() == a.keys()
    for name, value in merged.items():
        expected = (1.0 - weight) * a[name].astype(np.float64) + weight * b[name].astype(np.float64)
        scale = np.maximum(np.abs(a[name]), np.abs(b[name]))
        assert (np.abs(value - expected) <= 2 * EPSILON * scale).all(), name


@pytest.mark.parametrize(("weight", "which"), [(0.0, 0), (1.0, 1)])
def test_ends_are_the_models_bit_for_bit(
    folders: tuple[Path, Path], tmp_path: Path, tiny_tokenizer: Any, weight: float, which: int
) -> None:
    # A negative zero would become a positive one in any sum.
    signed = variant(folders[which], tmp_path / "signed", lambda _, value: np.where(value < 0, -0.0, value))
    inputs = [given(folder, tiny_tokenizer) for folder in folders]
    inputs[which] = given(signed, tiny_tokenizer)
    merge_models(tmp_path / "out", inputs[0], inputs[1], weight, dtype="f32")
    expected = weights(signed)
    for name, value in weights(tmp_path / "out").items():
        assert value.tobytes() == expected[name].tobytes(), name


def test_what_the_models_share_stays_bit_for_bit(
    pair: Pair, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    merge_models(tmp_path / "out", *pair, 0.3, dtype="f32")
    merged, shared = weights(tmp_path / "out"), weights(folders[0])
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], shared["model.embed_tokens.weight"])
    assert not np.array_equal(merged["model.norm.weight"], shared["model.norm.weight"])


def test_bf16_merge_is_the_float32_merge_rounded_once(pair: Pair, tmp_path: Path) -> None:
    merge_models(tmp_path / "f32", *pair, 0.3, dtype="f32")
    merge_models(tmp_path / "bf16", *pair, 0.3)
    exact = weights(tmp_path / "f32")
    for name, value in weights(tmp_path / "bf16").items():
        np.testing.assert_array_equal(value, exact[name].astype(ml_dtypes.bfloat16), err_msg=name)


def test_transformers_loads_a_merge_with_the_logits_of_a_merge_by_torch(
    pair: Pair,
    folders: tuple[Path, Path],
    tmp_path: Path,
    sequences: tuple[np.ndarray, np.ndarray],
    torch_logits: Callable[..., np.ndarray],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    merge_models(tmp_path / "out", *pair, 0.3, dtype="f32")
    first, second = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders)
    theirs = second.state_dict()
    first.load_state_dict({name: x.lerp(theirs[name], 0.3) for name, x in first.state_dict().items()})
    expected = torch_logits(first, sequences[0])
    found = torch_logits(tmp_path / "out", sequences[0])
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(found - torch_logits(folders[0], sequences[0])).max() > 0.1


def test_stop_ids_come_from_the_model_with_the_larger_share(
    pair: Pair, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    stop = {"eos_token_id": [7, 2]}
    (folders[1] / "generation_config.json").write_text(json.dumps(stop))
    second = given(folders[1], pair[0].tokenizer)
    for weight, expected in ((0.4, 2), (0.6, [7, 2])):
        merge_models(tmp_path / "out", pair[0], second, weight, overwrite=True)
        written = open_checkpoint(tmp_path / "out").generation_config
        assert written is not None
        assert written["eos_token_id"] == expected


def test_card_says_what_was_merged_with_which_share(
    folders: tuple[Path, Path], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    first = given(folders[0], tiny_tokenizer, model="stage1", loss="dpo", steps=5)
    second = given(folders[1], tiny_tokenizer, model="stage_2")
    merge_models(tmp_path / "mean", first, second, 0.1)
    card = (tmp_path / "mean" / "README.md").read_text()
    assert "# mean" in card
    assert "| share | model | loss | steps |" in card
    assert "| 0.9 | stage1 | dpo | 5 |" in card
    assert "| 0.1 | stage\\_2 | – | – |" in card
    assert "reconstructed" not in card
    cat = given(folders[1], tiny_tokenizer, model="cat", loss="cat_dpo")
    merge_models(tmp_path / "mean", first, cat, 0.1, overwrite=True)
    assert "**reconstructed from the published abstracts**" in (tmp_path / "mean" / "README.md").read_text()


# What is refused


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan"), float("inf")])
def test_weight_outside_of_the_two_models_is_refused(pair: Pair, tmp_path: Path, weight: float) -> None:
    with pytest.raises(MergeError, match=f"weight {weight}: expected 0 to 1, the share of the second model"):
        merge_models(tmp_path / "out", *pair, weight)
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused_by_its_fields(
    pair: Pair, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    other = given(tiny_checkpoint("llama_one_kv_head"), pair[0].tokenizer)
    with pytest.raises(
        MergeError,
        match=r"llama_tied and llama_one_kv_head have different architectures: num_kv_heads 4 and 1, "
        r"rms_norm_eps 1e-06 and 0\.001, tie_embeddings True and False; only models that were trained from one base",
    ):
        merge_models(tmp_path / "out", pair[0], other, 0.5)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("chat template", lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}")),
        ("special tokens", lambda tokenizer: setattr(tokenizer, "pad_token", "<unk>")),
        ("vocabulary", lambda tokenizer: tokenizer.backend_tokenizer.model.__setattr__("unk_token", "<s>")),
    ],
)
def test_another_tokenizer_is_refused_with_what_differs(
    pair: Pair, tiny_tokenizer: Any, tmp_path: Path, part: str, change: Callable[[Any], None]
) -> None:
    import copy

    other = copy.deepcopy(tiny_tokenizer)
    change(other)
    second = MergeInput("second", pair[1].checkpoint, other, pair[1].tensors, {})
    with pytest.raises(MergeError, match=rf"different tokenizers \({part}\).*compare tokenizer\.json"):
        merge_models(tmp_path / "out", pair[0], second, 0.5)


def test_weights_that_are_not_finite_are_refused_by_name(
    folders: tuple[Path, Path], pair: Pair, tmp_path: Path
) -> None:
    def spoil(name: str, value: np.ndarray) -> np.ndarray:
        return np.full_like(value, np.nan) if name == "model.norm.weight" else value

    broken = given(variant(folders[1], tmp_path / "broken", spoil), pair[0].tokenizer)
    with pytest.raises(MergeError, match=r"model\.norm\.weight is not finite in one of the models"):
        merge_models(tmp_path / "out", pair[0], broken, 0.5)
    assert not (tmp_path / "out").exists()


def test_directory_that_is_taken_is_refused(pair: Pair, tmp_path: Path) -> None:
    merge_models(tmp_path / "out", *pair, 0.5)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ExportError, match="holds an export already"):
        merge_models(tmp_path / "out", *pair, 0.1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    merge_models(tmp_path / "out", *pair, 0.1, overwrite=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
