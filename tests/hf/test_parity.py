"""The decoder against transformers + torch, on random checkpoints of every family."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.hf.read import open_checkpoint
from jaxalign.models.functional import build_decoder


def _response_logps(logits: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Summed log-probabilities [N] of the masked tokens, in float64."""
    logps = jax.nn.log_softmax(logits[:, :-1].astype(np.float32), axis=-1)
    chosen = np.take_along_axis(np.asarray(logps, np.float64), tokens[:, 1:, None], axis=-1)[..., 0]
    return (chosen * mask[:, 1:]).sum(axis=1)


def test_logits_and_response_logps_equal_those_of_torch(
    family: str,
    tiny_checkpoint: Callable[[str], Path],
    sequences: tuple[np.ndarray, np.ndarray],
    torch_logits: Callable[..., np.ndarray],
    our_logits: Callable[..., np.ndarray],
) -> None:
    tokens, mask = sequences
    checkpoint = open_checkpoint(tiny_checkpoint(family))
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32")
    params = checkpoint.load_params(decoder.abstract_params(), None, "float32")
    ours = our_logits(decoder, params, None, tokens)
    theirs = torch_logits(tiny_checkpoint(family), tokens)
    assert np.abs(theirs).max() > 0.5  # random weights that say something
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    difference = _response_logps(ours, tokens, mask) - _response_logps(theirs, tokens, mask)
    assert np.abs(difference).max() < 1e-3


def test_sliding_window_changes_the_logits(
    tiny_checkpoint: Callable[[str], Path],
    sequences: tuple[np.ndarray, np.ndarray],
    our_logits: Callable[..., np.ndarray],
) -> None:
    """Guards the parity test above: the window is shorter than the sequences, so it must matter."""
    tokens, _ = sequences
    checkpoint = open_checkpoint(tiny_checkpoint("mistral_window"))

    def logits(window: int | None) -> np.ndarray:
        config = dataclasses.replace(checkpoint.config, sliding_window=window)
        decoder = build_decoder(config, compute_dtype="float32", param_dtype="float32")
        params: Any = checkpoint.load_params(decoder.abstract_params(), None, "float32")
        return our_logits(decoder, params, None, tokens)

    narrow, wide = logits(5), logits(None)
    np.testing.assert_allclose(narrow[:, :5], wide[:, :5], atol=1e-5)
    assert np.abs(narrow[:, 10:] - wide[:, 10:]).max() > 0.01
