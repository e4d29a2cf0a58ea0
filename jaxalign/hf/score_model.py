"""Score models in the layout of PKU's beaver: a Llama decoder with a scalar head instead of a vocabulary.

Only the files are understood here; prompts and what a score means are in jaxalign.evaluation.judges.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxalign.hf.checkpoint import Checkpoint, CheckpointError
from jaxalign.hf.read import SafetensorsSource, open_directory, read_config

ScoreType = Literal["reward", "cost"]

_EPSILON = 1e-8  # added to the standard deviation, as in the models' own code
_ARCHITECTURES = ("LlamaModelForScore", "LlamaForScore")
# Keys of config.json that describe the head and the normaliser, or only their training.
_SCORE_KEYS = (
    *("score_type", "score_dim", "score_bias", "bias", "do_normalize"),
    *("normalizer_type", "momentum", "mean", "var"),
)


@dataclasses.dataclass(frozen=True)
class ScoreCheckpoint:
    """A decoder without a vocabulary head, and the affine map from its last state [D] to the score.

    score = (state @ weight + bias - shift) / scale
    """

    decoder: Checkpoint
    score_type: ScoreType
    weight: np.ndarray
    bias: float
    shift: float
    scale: float


class _DecoderTensors(SafetensorsSource):
    """The tensors of the decoder; those of the head and of the normaliser are kept apart, whatever their type."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.others: dict[str, Any] = {}
        super().__init__(files)

    def _add(self, name: str, file: Any, path: Path) -> None:
        if name == "lm_head.weight" or name.startswith(("score_head.", "normalizer.")):
            self.others[name] = file
        else:
            super()._add(name, file, path)

    def vector(self, name: str) -> np.ndarray | None:
        """A tensor of the head or the normaliser, flat and in float32; None where there is none."""
        file = self.others.get(name)
        return None if file is None else np.asarray(file.get_tensor(name), np.float32).reshape(-1)


def open_score_model(path: str | Path, score_type: ScoreType | None = None) -> ScoreCheckpoint:
    """Open a score model; `score_type` is for one whose config.json does not say whether it is a reward or a cost.

    Raises CheckpointError for what is no score model, UnsupportedModelError for a decoder that is not implemented.
    """
    path = Path(path)
    hf_config = read_config(path)
    kind = _score_type(path, hf_config, score_type)
    decoder = open_directory(path, _decoder_config(path, hf_config), _DecoderTensors)
    source = decoder.source
    assert isinstance(source, _DecoderTensors)
    size = decoder.config.hidden_size
    weight, bias = source.vector("score_head.weight"), source.vector("score_head.bias")
    if weight is None or weight.shape != (size,):
        found = "no score_head.weight" if weight is None else f"a score_head.weight of {weight.size} values"
        raise CheckpointError(
            f"{path} has {found}, expected one value for each of the {size} hidden dimensions; give a model with one "
            "score"
        )
    stated = hf_config.get("score_bias", hf_config.get("bias"))
    if stated is not None and stated != (bias is not None):
        raise CheckpointError(
            f"{path}: config.json says bias={stated}, but score_head.bias is {'missing' if stated else 'there'}; check "
            "that weights and config belong together"
        )
    shift, scale = _normaliser(path, hf_config, kind, source)
    return ScoreCheckpoint(decoder, kind, weight, 0.0 if bias is None else float(bias[0]), shift, scale)


def _score_type(path: Path, hf_config: Mapping[str, Any], given: ScoreType | None) -> ScoreType:
    stated = hf_config.get("score_type")
    if stated is not None and given is not None and stated != given:
        raise CheckpointError(f"{path} says score_type={stated!r}, not {given!r}; leave score_type out")
    kind: Any = stated if stated is not None else given
    if kind not in get_args(ScoreType):
        raise CheckpointError(
            f"{path}: score_type is {kind!r}, expected reward or cost; give score_type if the model is one of these"
        )
    return kind


def _decoder_config(path: Path, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the decoder alone. Its head is tied, as there is none: nobody reads the logits."""
    names = hf_config.get("architectures") or []
    foreign = [name for name in names if name not in _ARCHITECTURES]
    if foreign:
        raise CheckpointError(
            f"{path} is a {foreign[0]}, expected a score model: {' or '.join(_ARCHITECTURES)}"
        )
    if hf_config.get("score_dim", 1) != 1:
        raise CheckpointError(f"{path}: score_dim is {hf_config['score_dim']!r}, expected a single score (1)")
    left_out = (*_SCORE_KEYS, "architectures")
    decoder = {key: value for key, value in hf_config.items() if key not in left_out}
    return decoder | {"tie_word_embeddings": True}


def _normaliser(
    path: Path, hf_config: Mapping[str, Any], kind: ScoreType, source: _DecoderTensors
) -> tuple[float, float]:
    """Shift and scale of the scores: a reward is centred and scaled, a cost only scaled, as its sign decides."""
    if not hf_config.get("do_normalize", False):
        return 0.0, 1.0
    mean, var = source.vector("normalizer.mean"), source.vector("normalizer.var")
    if mean is None or var is None or mean.shape != (1,) or var.shape != (1,) or not var[0] >= 0:
        raise CheckpointError(
            f"{path}: do_normalize is true, but normalizer.mean and normalizer.var are not one number each; fetch the "
            "weights again, or set do_normalize to false for raw scores"
        )
    return (float(mean[0]) if kind == "reward" else 0.0), float(np.sqrt(var[0])) + _EPSILON
