"""The decoder's architecture as one frozen dataclass, read from and written to the keys of a `config.json`.

A key that changes the computation and is not implemented is an error, and so is an unknown key: nothing in a
`config.json` is ignored unless it is listed here as harmless.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import JaxalignError


class UnsupportedModelError(JaxalignError, ValueError):
    """A checkpoint describes a model that the decoder does not implement."""


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """The `llama3` rule: rotations slower than the original context are divided by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _require_positive_number(field.name, getattr(self, field.name))


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a Llama-family decoder. `sliding_window` counts the query itself."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rope_scaling: Llama3RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    max_position_embeddings: int = 2048

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not _is_positive_integer(value):
                raise UnsupportedModelError(f"{field.name}={value!r}: expected a positive integer")
            if field.type is float:
                _require_positive_number(field.name, value)
        if self.sliding_window is not None and not _is_positive_integer(self.sliding_window):
            raise UnsupportedModelError(
                f"sliding_window={self.sliding_window!r}: expected a positive integer or None"
            )
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(
                f"head_dim={self.head_dim} is odd: rotary positions need pairs of dimensions"
            )


def _is_positive_integer(value: Any) -> bool:
    return type(value) is int and value > 0


def _require_positive_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UnsupportedModelError(f"{name}={value!r}: expected a positive number")


# What transformers assumes where a key is absent; the keys of the sizes must be present.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": None, "max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
}
_SHARED_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# Keys that change the computation, and the only values under which it is ours. None means the same.
_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "attention_dropout": 0,
    "rope_interleaved": False,
    "partial_rotary_factor": 1,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "quantization_config": None,
    "layer_types": None,
}

_HARMLESS = """
architectures model_type transformers_version torch_dtype dtype _name_or_path use_cache initializer_range
bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix tokenizer_class
output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
id2label label2id num_labels problem_type finetuning_task task_specific_params is_decoder
tie_encoder_decoder torchscript use_bfloat16 tf_legacy_loss
is_llama_config transformers.js_config unsloth_version unsloth_fixed
_attn_implementation _attn_implementation_autoset attn_implementation _flash_attn_2_enabled
do_sample temperature top_k top_p typical_p max_length min_length repetition_penalty length_penalty
num_beams num_beam_groups num_return_sequences diversity_penalty early_stopping no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids begin_suppress_tokens suppress_tokens
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id remove_invalid_values
"""
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def decoder_config_from_hf(hf: Mapping[str, Any]) -> DecoderConfig:
    """The configuration that the contents of a `config.json` describe (model types llama and mistral).

    Raises UnsupportedModelError naming every key and value that is missing, unknown or not implemented.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in _DEFAULTS:
        raise UnsupportedModelError(f"model_type={model_type!r}: expected one of {', '.join(_DEFAULTS)}")
    _refuse_unimplemented(hf, model_type)
    value = _SHARED_DEFAULTS | _DEFAULTS[model_type] | dict(hf)
    num_heads, hidden_size = value["num_attention_heads"], value["hidden_size"]
    theta, scaling = _rope_from_hf(hf)
    return DecoderConfig(
        vocab_size=value["vocab_size"],
        hidden_size=hidden_size,
        intermediate_size=value["intermediate_size"],
        num_layers=value["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=num_heads if value["num_key_value_heads"] is None else value["num_key_value_heads"],
        head_dim=hidden_size // num_heads if value["head_dim"] is None else value["head_dim"],
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=value["rms_norm_eps"],
        tie_embeddings=bool(value["tie_word_embeddings"]),
        qkv_bias=bool(value["attention_bias"]),
        out_bias=bool(value["attention_bias"]),
        mlp_bias=bool(value["mlp_bias"]),
        sliding_window=value["sliding_window"],
        max_position_embeddings=value["max_position_embeddings"],
    )


def decoder_config_to_hf(config: DecoderConfig, **token_ids: int | list[int] | None) -> dict[str, Any]:
    """The `config.json` of a decoder; `token_ids` are bos_token_id, eos_token_id, pad_token_id.

    Rotary settings are written under the keys that transformers 4 and 5 both read.
    """
    model_type = "llama" if config.sliding_window is None else "mistral"
    if config.qkv_bias != config.out_bias:
        raise UnsupportedModelError(
            "qkv_bias and out_bias differ: `attention_bias` of a config.json means both"
        )
    biased = config.qkv_bias or config.mlp_bias
    if model_type == "mistral" and biased:
        raise UnsupportedModelError("sliding_window with biases: no model type of transformers has both")
    scaling = config.rope_scaling and {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
    hf: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if model_type == "llama" else "MistralForCausalLM"],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
    }
    if model_type == "mistral":
        return hf | {"sliding_window": config.sliding_window} | token_ids
    return hf | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias} | token_ids


def _refuse_unimplemented(hf: Mapping[str, Any], model_type: str) -> None:
    """One error with every key of `hf` that is missing, unknown or has a value that is not implemented."""
    problems = [
        f"{key}={hf[key]!r}: expected a positive integer" if key in hf else f"{key} is missing"
        for key in _SIZES
        if not _is_positive_integer(hf.get(key))
    ]
    if not problems and hf.get("head_dim") is None and hf["hidden_size"] % hf["num_attention_heads"]:
        problems.append("hidden_size is not divisible by num_attention_heads, and head_dim is missing")
    only = dict(_ONLY)
    if model_type == "mistral":
        only |= {"attention_bias": False, "mlp_bias": False}
    else:
        only |= {"sliding_window": None}
    for key, value in hf.items():
        if key in only:
            if value is not None and value != only[key]:
                problems.append(f"{key}={value!r} is not implemented (only {only[key]!r})")
        elif key not in {*_SIZES, *_SHARED_DEFAULTS, *_DEFAULTS[model_type], *_ROPE_KEYS, *_HARMLESS.split()}:
            problems.append(f"{key}={value!r} is unknown, and may change what the model computes")
    problems += _wrong_types(hf)
    architectures = hf.get("architectures")
    for name in architectures if isinstance(architectures, list) else []:
        if not (isinstance(name, str) and name.endswith("ForCausalLM")):
            problems.append(f"architectures={name!r} is not implemented (only ...ForCausalLM)")
    if problems:
        raise UnsupportedModelError(f"config.json of a {model_type} model: " + "; ".join(problems))


def _wrong_types(hf: Mapping[str, Any]) -> list[str]:
    """The keys whose value has a type that the key cannot have."""
    expected: dict[str, tuple[type, str]] = {
        "architectures": (list, "a list of names"),
        "rope_scaling": (dict, "a mapping"),
        "rope_parameters": (dict, "a mapping"),
        "tie_word_embeddings": (bool, "true or false"),
        "attention_bias": (bool, "true or false"),
        "mlp_bias": (bool, "true or false"),
    }
    return [
        f"{key}={hf[key]!r}: expected {what}"
        for key, (kind, what) in expected.items()
        if hf.get(key) is not None and not isinstance(hf[key], kind)
    ]


def _rope_from_hf(hf: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """Base and scaling, from `rope_theta` with `rope_scaling`, or from `rope_parameters` which holds both."""
    scaling = dict(hf.get("rope_scaling") or {})
    parameters = dict(hf.get("rope_parameters") or {})
    given = (hf.get("rope_theta"), parameters.pop("rope_theta", None), scaling.pop("rope_theta", None))
    for theta in given:
        if theta is not None:
            _require_positive_number("rope_theta", theta)
    thetas = {float(theta) for theta in given if theta is not None}
    if len(thetas) > 1 or (scaling and parameters and scaling != parameters):
        raise UnsupportedModelError(
            f"rope_theta={hf.get('rope_theta')!r} and rope_scaling={hf.get('rope_scaling')!r} contradict "
            f"rope_parameters={hf.get('rope_parameters')!r}: keep the one that the model was trained with"
        )
    theta = thetas.pop() if thetas else 10000.0
    rope = parameters or scaling
    rope_type = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor is not implemented (only 1.0)")
    if rope_type == "default" and not rope:
        return theta, None
    names = {field.name for field in dataclasses.fields(Llama3RopeScaling)}
    if rope_type != "llama3" or set(rope) != names:
        raise UnsupportedModelError(
            f"rope_type={rope_type!r} with {rope!r} is not implemented: expected 'default' without options, "
            f"or 'llama3' with {', '.join(sorted(names))}"
        )
    return theta, Llama3RopeScaling(**rope)
