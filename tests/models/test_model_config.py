"""What of a `config.json` is understood, and that nothing else is ignored."""

import dataclasses
from typing import Any

import pytest

from jaxalign.models.config import (
    DecoderConfig,
    Llama3RopeScaling,
    UnsupportedModelError,
    decoder_config_from_hf,
    decoder_config_to_hf,
)

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SMALL = DecoderConfig(64, 32, 48, 2, 4, 2, 8)


def test_absent_keys_take_the_defaults_of_transformers() -> None:
    config = decoder_config_from_hf(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.sliding_window) == (4, 8, None)
    assert (config.rope_theta, config.rms_norm_eps, config.tie_embeddings) == (10000.0, 1e-6, False)
    mistral = decoder_config_from_hf(LLAMA | {"model_type": "mistral", "num_attention_heads": 8})
    assert (mistral.num_kv_heads, mistral.sliding_window) == (8, 4096)


def test_attention_bias_means_all_four_projections() -> None:
    config = decoder_config_from_hf(LLAMA | {"attention_bias": True})
    assert config.qkv_bias
    assert config.out_bias
    assert not config.mlp_bias


def test_both_places_of_the_rotary_settings_are_read() -> None:
    before = decoder_config_from_hf(LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING})
    after = decoder_config_from_hf(LLAMA | {"rope_parameters": {"rope_theta": 5e5, **LLAMA3_SCALING}})
    assert before == after
    assert before.rope_theta == 5e5
    assert before.rope_scaling == Llama3RopeScaling(8.0, 1.0, 4.0, 32)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, tie_embeddings=True, head_dim=10, rms_norm_eps=1e-5),
        dataclasses.replace(SMALL, qkv_bias=True, out_bias=True, mlp_bias=True),
        dataclasses.replace(SMALL, sliding_window=5, max_position_embeddings=99),
        dataclasses.replace(SMALL, rope_theta=5e5, rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 32)),
    ],
)
def test_written_config_reads_back_equal(config: DecoderConfig) -> None:
    assert decoder_config_from_hf(decoder_config_to_hf(config, eos_token_id=2)) == config


def test_transformers_configs_are_read() -> None:
    from transformers import LlamaConfig, MistralConfig

    assert decoder_config_from_hf(LlamaConfig().to_dict()).intermediate_size == 11008
    assert decoder_config_from_hf(MistralConfig().to_dict()).sliding_window == 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2': expected one of llama, mistral"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not implemented \\(only 'silu'\\)"),
        ({"pretraining_tp": 2}, "pretraining_tp=2 is not implemented"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not implemented"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not implemented"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not implemented"),
        ({"sliding_window": 8}, "sliding_window=8 is not implemented"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias=True is not implemented"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'.*not implemented"),
        ({"rope_scaling": LLAMA3_SCALING | {"beta_fast": 1}}, "rope_type='llama3'.*beta_fast"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "rope_theta=10000.0.*contradict"),
        ({"residual_multiplier": 0.2}, "residual_multiplier=0.2 is unknown"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"vocab_size": None}, "vocab_size=None: expected a positive integer"),
        ({"num_attention_heads": 5}, "hidden_size is not divisible by num_attention_heads"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 0}, "sliding_window=0"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_heads=4 is not divisible"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"hidden_size": 32.0}, "hidden_size=32.0: expected a positive integer"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\]: expected one of"),
        ({"rope_scaling": "x"}, "rope_scaling='x': expected a mapping"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\]: expected a mapping"),
        ({"rope_theta": "abc"}, "rope_theta='abc': expected a positive number"),
        ({"rope_parameters": {"rope_theta": True}}, "rope_theta=True: expected a positive number"),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": "8"}}, "factor='8': expected a positive number"),
        ({"rms_norm_eps": None}, "rms_norm_eps=None: expected a positive number"),
        ({"architectures": 5}, "architectures=5: expected a list of names"),
        ({"architectures": [5]}, "architectures=5 is not implemented"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no': expected true or false"),
    ],
)
def test_what_is_not_implemented_is_an_error_naming_key_and_value(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        decoder_config_from_hf(LLAMA | change)


def test_missing_sizes_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match="hidden_size is missing; intermediate_size is missing"):
        decoder_config_from_hf({"model_type": "llama", "vocab_size": 3})


def test_every_problem_of_a_config_is_in_one_error() -> None:
    with pytest.raises(UnsupportedModelError, match=r"hidden_act.*mlp_gain"):
        decoder_config_from_hf(LLAMA | {"hidden_act": "relu", "mlp_gain": 2})


def test_configs_without_a_model_type_are_not_written() -> None:
    with pytest.raises(UnsupportedModelError, match="qkv_bias and out_bias differ"):
        decoder_config_to_hf(dataclasses.replace(SMALL, qkv_bias=True))
    with pytest.raises(UnsupportedModelError, match="sliding_window with biases"):
        decoder_config_to_hf(dataclasses.replace(SMALL, sliding_window=3, mlp_bias=True))
