"""The comparison with torch passes for true exports and fails for wrong ones."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.errors import MissingPackageError
from jaxalign.hf.checkpoint import CheckpointError
from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.verify import verify_export
from jaxalign.hf.write import export_model
from jaxalign.models.functional import build_decoder


@pytest.fixture
def opened(tiny_checkpoint: Callable[[str], Path]) -> tuple[Any, Any, Any]:
    checkpoint = open_checkpoint(tiny_checkpoint("llama"))
    decoder = build_decoder(checkpoint.config, compute_dtype="bfloat16", param_dtype="float32")
    return checkpoint, decoder, checkpoint.load_params(decoder.abstract_params(), None, "float32")


@pytest.fixture
def texts(sequences: tuple[np.ndarray, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sequences of different lengths with their response masks."""
    lengths = (24, 17, 2)
    return tuple([row[:n] for row, n in zip(part, lengths, strict=True)] for part in sequences)


def test_true_export_passes_with_the_figures_of_float32(opened: Any, texts: Any, tmp_path: Path) -> None:
    checkpoint, decoder, params = opened
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params, dtype="f32")
    report = verify_export(decoder, params, None, tmp_path / "out", *texts)
    assert report.passed
    assert (report.stored_dtype, report.num_sequences, report.num_positions) == ("float32", 3, 43)
    assert 0 < report.relative < 1e-4
    assert report.top1_agreement == 1.0
    assert report.max_response_logps < 1e-3


def test_bf16_export_is_held_to_its_own_tolerances(opened: Any, texts: Any, tmp_path: Path) -> None:
    checkpoint, decoder, params = opened
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params, dtype="bf16")
    report = verify_export(decoder, params, None, tmp_path / "out", *texts)
    assert report.stored_dtype == "bfloat16"
    assert 1e-4 < report.relative < report.tolerances.relative


def test_export_of_other_weights_fails(opened: Any, texts: Any, tmp_path: Path) -> None:
    checkpoint, decoder, params = opened
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params, dtype="f32")
    other = jax.tree.map(lambda x: x * 1.01, params)
    report = verify_export(decoder, other, None, tmp_path / "out", *texts)
    assert not report.passed
    assert report.max_response_logps > 1e-3


def test_figures_that_are_not_finite_fail(opened: Any, texts: Any, tmp_path: Path) -> None:
    checkpoint, decoder, params = opened
    export_model(tmp_path / "out", hf_config=checkpoint.hf_config, params=params, dtype="f32")
    broken = jax.tree.map(lambda x: x.at[..., 0].set(np.nan), params)
    assert not verify_export(decoder, broken, None, tmp_path / "out", *texts).passed


def test_what_cannot_be_compared_is_refused(
    opened: Any, texts: Any, tmp_path: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    _, decoder, params = opened
    directory = tiny_checkpoint("llama")
    with pytest.raises(ValueError, match="3 sequences and 2 masks: expected one mask for each"):
        verify_export(decoder, params, None, directory, texts[0], texts[1][:2])
    with pytest.raises(ValueError, match=r"tokens \(1,\), mask \(1,\): expected one shape \[L\] with L >= 2"):
        verify_export(decoder, params, None, directory, [np.array([3])], [np.array([True])])
    with pytest.raises(CheckpointError, match="neither a directory nor"):
        verify_export(decoder, params, None, tmp_path / "absent", *texts)


def test_another_vocabulary_is_said_so(
    opened: Any, texts: Any, tiny_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint, _, params = opened
    config = dataclasses.replace(checkpoint.config, vocab_size=96)
    decoder = build_decoder(config, compute_dtype="float32", param_dtype="float32")
    with pytest.raises(
        CheckpointError, match="has vocab_size 64, this model 96: they are not the same model"
    ):
        verify_export(decoder, params, None, tiny_checkpoint("llama"), *texts)


def test_missing_torch_names_the_extra(
    opened: Any, texts: Any, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, decoder, params = opened
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'jaxalign\[verify\]'"):
        verify_export(decoder, params, None, tiny_checkpoint("llama"), *texts)
