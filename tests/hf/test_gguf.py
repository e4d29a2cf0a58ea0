"""Files of llama.cpp: tiny ones written here, and the real small model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign.hf.checkpoint import CheckpointError
from jaxalign.hf.mapping import TensorMismatchError
from jaxalign.hf.read import open_checkpoint
from jaxalign.models.config import UnsupportedModelError, decoder_config_from_hf
from jaxalign.models.functional import build_decoder

TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LETTERS = ["<|end|>", "<tool>", *"abcdefgh", "Ġ", "Ċ", *"0123456789", "ab", "Ġab"]


def _gguf_name(name: str) -> str:
    for theirs, ours in TO_GGUF.items():
        name = name.replace(theirs, ours)
    return name


def _permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The row order of llama.cpp, by its definition: row i + j * E/2 of a head goes to row 2 i + j."""
    E = weight.shape[0] // num_heads
    order = [h * E + i + j * (E // 2) for h in range(num_heads) for i in range(E // 2) for j in range(2)]
    return weight[order]


def _write(path: Path, directory: Path, change: Callable[[gguf.GGUFWriter], None] | None = None) -> Path:
    """A .gguf file with the weights and sizes of a tiny Hugging Face directory."""
    config = open_checkpoint(directory).config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = LETTERS + [f"[{i}]" for i in range(config.vocab_size - len(LETTERS))]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 4] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, weight in load_file(directory / "model.safetensors").items():
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
        writer.add_tensor(_gguf_name(name), weight if heads is None else _permuted(weight, heads))
    if change is not None:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _load(path: Path) -> Any:
    checkpoint = open_checkpoint(path)
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32")
    return checkpoint.load_params(decoder.abstract_params(), None, "float32")


@pytest.mark.parametrize("family", ["llama", "llama_tied", "llama_biases"])
def test_gguf_and_directory_of_one_model_are_equal(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tiny_checkpoint(family)
    file = _write(tmp_path / "model.gguf", directory)
    assert open_checkpoint(file).config == open_checkpoint(directory).config
    assert decoder_config_from_hf(open_checkpoint(file).hf_config) == open_checkpoint(directory).config
    chex.assert_trees_all_equal(jax.device_get(_load(file)), jax.device_get(_load(directory)))


def test_tokenizer_of_a_file_is_rebuilt(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = _write(
        tmp_path / "model.gguf",
        tiny_checkpoint("llama"),
        lambda writer: writer.add_chat_template("{{ messages[0].content }}<|end|>"),
    )
    tokenizer = open_checkpoint(file).load_tokenizer()
    text = "ab ab12 <tool>cab<|end|>"
    assert tokenizer.tokenize(text) == [
        *("ab", "Ġab", "1", "2", "Ġ", "<tool>", "c", "ab", "<|end|>"),
    ]
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab ab12 <tool>cab"
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 0)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a<|end|>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), "llama.rope.scaling.type='linear'"),
        (
            lambda w: w.add_expert_count(4),
            r"llama.expert_count=4 is unknown\. Use the Hugging Face directory",
        ),
        (lambda w: w.add_rope_dimension_count(4), "llama.rope.dimension_count=4 is not implemented"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), "rope_freqs.weight: scaled"),
    ],
)
def test_metadata_that_is_not_implemented_is_an_error(
    change: Callable[[gguf.GGUFWriter], None],
    message: str,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    file = _write(tmp_path / "model.gguf", tiny_checkpoint("llama"), change)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(file)


def test_other_architectures_and_missing_sizes_are_named(tmp_path: Path) -> None:
    for architecture, message in (
        ("gemma", r"general\.architecture='gemma' \(only 'llama'\)"),
        ("llama", r"llama\.block_count is missing; .*llama\.vocab_size is missing"),
    ):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(UnsupportedModelError, match=message):
            open_checkpoint(tmp_path / "model.gguf")


def test_file_that_is_not_gguf_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"not a whole \.gguf file .*fetch it again"):
        open_checkpoint(tmp_path / "model.gguf")


def test_unknown_tensors_of_a_file_are_listed(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = _write(
        tmp_path / "model.gguf",
        tiny_checkpoint("llama"),
        lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)),
    )
    with pytest.raises(TensorMismatchError, match=r"unexpected blk\.0\.attn_sinks\.weight \(4,\)"):
        _load(file)


def test_other_tokenizers_are_refused_with_the_remedy(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = _write(
        tmp_path / "model.gguf", tiny_checkpoint("llama"), lambda writer: writer.add_add_bos_token(True)
    )
    with pytest.raises(UnsupportedModelError, match=r"cannot be rebuilt.*name a Hugging Face directory"):
        open_checkpoint(file).load_tokenizer()


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxalign\[gguf\]'"):
        open_checkpoint(tmp_path / "model.gguf")
