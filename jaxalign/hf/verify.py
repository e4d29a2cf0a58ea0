"""Comparing the decoder with transformers + torch on an exported directory. torch is imported only here, inside.

Both sides compute in float32, so the differences are those of the conversion and of the stored precision.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import MissingPackageError
from jaxalign.hf.checkpoint import Checkpoint, CheckpointError
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.functional import DecoderFns, unconstrained
from jaxalign.ops.attention import make_attention, plain_places


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Largest differences that pass; `top1_agreement` is the smallest."""

    relative: float
    mean_kl: float
    top1_agreement: float
    response_logps: float


# bfloat16 keeps 8 bits of each weight: the policy itself moves a little when it is stored so.
TOLERANCES = {
    "float32": Tolerances(relative=1e-4, mean_kl=1e-6, top1_agreement=0.999, response_logps=1e-3),
    "bfloat16": Tolerances(relative=5e-2, mean_kl=2e-3, top1_agreement=0.98, response_logps=1.0),
}


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """Differences over all compared positions; `relative` is the largest one over the largest logit.

    `max_response_logps` is in nats, between sums over the response tokens of a sequence.
    """

    stored_dtype: str
    num_sequences: int
    num_positions: int
    max_abs: float
    relative: float
    mean_kl: float
    top1_agreement: float
    max_response_logps: float
    tolerances: Tolerances

    @property
    def passed(self) -> bool:
        """Whether every figure is within its tolerance. Never for figures that are not finite."""
        limit = self.tolerances
        return (
            self.relative <= limit.relative
            and self.mean_kl <= limit.mean_kl
            and self.top1_agreement >= limit.top1_agreement
            and self.max_response_logps <= limit.response_logps
        )


def verify_export(
    decoder: DecoderFns,
    params: Any,
    lora_params: Any,
    directory: str | Path,
    sequences: Sequence[np.ndarray],
    response_masks: Sequence[np.ndarray],
) -> VerifyReport:
    """Compare the decoder on `params` with the model that transformers loads from `directory`.

    `sequences` are token ids [L], `response_masks` [L] are True at the tokens whose log-probs are summed.
    Raises MissingPackageError without torch, CheckpointError if `directory` is no full model
    or one with another vocabulary.
    """
    if not sequences or len(sequences) != len(response_masks):
        raise ValueError(
            f"{len(sequences)} sequences and {len(response_masks)} masks: expected one mask for each"
        )
    exported = open_checkpoint(directory)
    if exported.config.vocab_size != decoder.config.vocab_size:
        raise CheckpointError(
            f"{exported.path} has vocab_size {exported.config.vocab_size}, this model {decoder.config.vocab_size}: "
            "they are not the same model; give an export of this one"
        )
    dtype = _stored_dtype(exported)
    theirs = _TorchModel(exported.path)
    ours = _logits_fn(decoder)
    length = max(len(tokens) for tokens in sequences)
    comparisons = []
    for tokens, mask in zip(sequences, response_masks, strict=True):
        tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
        if tokens.shape != mask.shape or tokens.ndim != 1 or len(tokens) < 2:
            raise ValueError(f"tokens {tokens.shape}, mask {mask.shape}: expected one shape [L] with L >= 2")
        padded = np.pad(tokens, (0, length - len(tokens))).astype(np.int32)  # one compilation for all
        own = np.asarray(ours(params, lora_params, padded[None]))[0, : len(tokens)]
        comparisons.append(_compare(own, theirs(tokens), tokens, mask))
    return _report(comparisons, dtype)


def _logits_fn(decoder: DecoderFns) -> Any:
    """Logits [N, L, V] in float32, in full precision also where matrix units have less by default."""
    # One sequence cannot be spread over a mesh as a batch can, so nothing is pinned here.
    spec = dataclasses.replace(
        decoder.spec,
        compute_dtype=jnp.dtype("float32"),
        constrain=unconstrained,
        attention=make_attention("dense", sliding_window=decoder.config.sliding_window),
    )
    exact = dataclasses.replace(decoder, spec=spec)

    def logits(params: Any, lora_params: Any, tokens: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return exact.logits(params, lora_params, tokens, plain_places(*tokens.shape))

    return jax.jit(logits)


class _TorchModel:
    """A model of transformers, in float32 on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            import torch
        except ModuleNotFoundError as error:
            raise MissingPackageError("verifying needs torch: pip install 'jaxalign[verify]'") from error
        from transformers import AutoModelForCausalLM

        self._torch = torch
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        problems = {name: keys for name, keys in info.items() if keys}
        if problems:
            raise CheckpointError(f"{path}: transformers does not find what it expects: {problems}")
        self._model = model.eval()

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            ids = self._torch.from_numpy(tokens.astype(np.int64))[None]
            return self._model(ids).logits[0].numpy()


def _stored_dtype(exported: Checkpoint) -> str:
    dtype = exported.hf_config.get("dtype", exported.hf_config.get("torch_dtype")) or "float32"
    if dtype not in TOLERANCES:
        raise CheckpointError(
            f"{exported.path}: stored as {dtype}; tolerances exist for {', '.join(TOLERANCES)}"
        )
    return dtype


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Figures of one sequence; sums over its positions where the name says so."""

    num_positions: int
    max_abs: float
    largest: float
    sum_kl: float
    num_same_top1: int
    response_logps: float


def _compare(ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray, mask: np.ndarray) -> _Comparison:
    """Logits [L, V] of both sides."""
    sum_kl, response_logps = 0.0, 0.0
    for position, (own, other) in enumerate(zip(ours, theirs, strict=True)):  # rows of V fit a cache
        own_logps, other_logps = _log_softmax(own), _log_softmax(other)
        sum_kl += float((np.exp(other_logps) * (other_logps - own_logps)).sum())
        if position + 1 < len(tokens) and mask[position + 1]:
            target = tokens[position + 1]
            response_logps += float(own_logps[target] - other_logps[target])
    return _Comparison(
        num_positions=len(tokens),
        max_abs=float(np.abs(ours - theirs).max()),
        largest=float(np.abs(theirs).max()),
        sum_kl=sum_kl,
        num_same_top1=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        response_logps=abs(response_logps),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities [V] in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _report(comparisons: list[_Comparison], dtype: str) -> VerifyReport:
    num_positions = sum(c.num_positions for c in comparisons)
    max_abs = float(np.max([c.max_abs for c in comparisons]))
    return VerifyReport(
        stored_dtype=dtype,
        num_sequences=len(comparisons),
        num_positions=num_positions,
        max_abs=max_abs,
        relative=max_abs / float(np.max([c.largest for c in comparisons])),
        mean_kl=sum(c.sum_kl for c in comparisons) / num_positions,
        top1_agreement=sum(c.num_same_top1 for c in comparisons) / num_positions,
        max_response_logps=float(np.max([c.response_logps for c in comparisons])),
        tolerances=TOLERANCES[dtype],
    )
