"""Reading .gguf files of the llama architecture: weights dequantised, tokenizer and configuration from metadata.

Needs the extra `gguf`. Tensors are offered under their Hugging Face names, in Hugging Face layout.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import MissingPackageError
from jaxalign.hf.checkpoint import Checkpoint, CheckpointError, generation_defaults
from jaxalign.models.config import DecoderConfig, UnsupportedModelError, decoder_config_to_hf

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Metadata of the architecture that is understood; anything else under `llama.` may change the computation.
_REQUIRED = """
llama.block_count llama.context_length llama.embedding_length llama.feed_forward_length
llama.attention.head_count llama.attention.layer_norm_rms_epsilon
"""
_OPTIONAL = """
llama.vocab_size llama.attention.head_count_kv llama.attention.key_length llama.attention.value_length
llama.attention.sliding_window llama.rope.freq_base llama.rope.dimension_count
"""
_CONTROL, _USER_DEFINED = 3, 4  # token types of the format


class GGUFSource:
    """The tensors of a .gguf file, dequantised one at a time."""

    def __init__(self, reader: Any, config: DecoderConfig) -> None:
        """Index the tensors of an open `gguf.GGUFReader`."""
        self._tensors = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
        self._config = config
        self._latest: tuple[str, np.ndarray] | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor; the file lists dimensions fastest first."""
        return {name: tuple(int(n) for n in t.shape[::-1]) for name, t in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of a tensor, float32. The latest tensor is kept for the next part of it."""
        if self._latest is None or self._latest[0] != name:
            self._latest = name, self._dequantised(name)
        return self._latest[1][index]

    def _dequantised(self, name: str) -> np.ndarray:
        from gguf import quants

        tensor = self._tensors[name]
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        if ".q_proj." in name:
            return _undo_permutation(values, self._config.num_heads)
        if ".k_proj." in name:
            return _undo_permutation(values, self._config.num_kv_heads)
        return values


def open_gguf(path: Path) -> Checkpoint:
    """Open a .gguf file of the llama architecture.

    Raises MissingPackageError without the package `gguf`, UnsupportedModelError for what is not implemented.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"reading {path} needs a package: pip install 'jaxalign[gguf]'") from error
    try:
        reader = gguf.GGUFReader(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a whole .gguf file ({error}); fetch it again") from error
    names = {tensor.name for tensor in reader.tensors}
    # The long arrays of the tokenizer are decoded only when it is asked for.
    arrays = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
    metadata = {key: field.contents() for key, field in reader.fields.items() if key not in arrays}
    config = _config(metadata, names)
    ids = {
        f"{kind}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    hf_config = decoder_config_to_hf(config, **ids)
    return Checkpoint(
        path=path,
        config=config,
        hf_config=hf_config,
        generation_config=generation_defaults(hf_config),
        weight_files=(path,),
        source=GGUFSource(reader, config),
        load_tokenizer=lambda: _tokenizer({key: field.contents() for key, field in reader.fields.items()}),
    )


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; foreign names stay as they are."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _NAMES:
        return name
    prefix = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{prefix}{_NAMES[match[2]]}.{match[3]}"


def _undo_permutation(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows [H * E, ...] from neighbouring rotary pairs (i, i + 1) back to halves (i, i + E/2)."""
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _refuse_unimplemented(metadata: dict[str, Any], names: set[str]) -> None:
    """One error with everything that is missing, unknown or not implemented."""
    problems = [
        f"{key} is missing" for key in [*_REQUIRED.split(), "llama.vocab_size"] if key not in metadata
    ]
    if metadata.get("general.architecture") != "llama":
        problems = [f"general.architecture={metadata.get('general.architecture')!r} (only 'llama')"]
    known = {*_REQUIRED.split(), *_OPTIONAL.split()}
    problems += [
        f"{k}={v!r} is unknown" for k, v in metadata.items() if k.startswith("llama.") and k not in known
    ]
    if "rope_freqs.weight" in names:
        problems.append("rope_freqs.weight: scaled rotary positions are not read from .gguf files")
    if problems:
        found = "; ".join(problems)
        raise UnsupportedModelError(f"{found}. Use the Hugging Face directory of the model")


def _config(metadata: dict[str, Any], names: set[str]) -> DecoderConfig:
    """The architecture, from the metadata and the names of the tensors."""
    _refuse_unimplemented(metadata, names)
    num_heads, width = metadata["llama.attention.head_count"], metadata["llama.embedding_length"]
    head_dim = metadata.get("llama.attention.key_length", width // num_heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if metadata.get(key, head_dim) != head_dim:
            raise UnsupportedModelError(f"{key}={metadata[key]} is not implemented (only {head_dim})")
    return DecoderConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=width,
        intermediate_size=metadata["llama.feed_forward_length"],
        num_layers=metadata["llama.block_count"],
        num_heads=num_heads,
        num_kv_heads=metadata.get("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        rope_theta=_shortest(metadata.get("llama.rope.freq_base", 10000.0)),
        rms_norm_eps=_shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        tie_embeddings="output.weight" not in names,
        qkv_bias="blk.0.attn_q.bias" in names,
        out_bias="blk.0.attn_output.bias" in names,
        mlp_bias="blk.0.ffn_gate.bias" in names,
        sliding_window=metadata.get("llama.attention.sliding_window"),
        max_position_embeddings=metadata["llama.context_length"],
    )


def _shortest(value: float) -> float:
    """The decimal number that was meant by a float32: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))


def _tokenizer(metadata: dict[str, Any]) -> Any:
    """The tokenizer stored in the file, rebuilt for transformers.

    Raises UnsupportedModelError for pre-tokenizers other than `smollm`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm") or metadata.get("tokenizer.ggml.add_bos_token"):
        raise UnsupportedModelError(
            f"the file's tokenizer {kind} cannot be rebuilt (only ('gpt2', 'smollm') without an added BOS); "
            "name a Hugging Face directory as the tokenizer"
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # Every digit stands alone, then byte-level BPE.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    added = {
        kind: [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, type_ in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
            if type_ == kind
        ]
        for kind in (_CONTROL, _USER_DEFINED)
    }
    backend.add_special_tokens(added[_CONTROL])
    backend.add_tokens(added[_USER_DEFINED])
    specials = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **specials,
    )
