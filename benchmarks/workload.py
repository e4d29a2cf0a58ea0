"""What the peers train on: a random Llama in Hugging Face format, and pairs of random tokens of given lengths.

The tokenizer knows the words t2, t3, ..., so that text and token ids are the same thing for every peer.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LENGTHS = Path(__file__).parent / "lengths"
PAD, EOS, FIRST_WORD = 0, 1, 2
Pair = dict[str, list[int]]


@dataclasses.dataclass(frozen=True)
class Llama:
    """The sizes of a model."""

    layers: int = 4
    hidden: int = 384
    ffn: int = 1024
    heads: int = 6
    kv_heads: int = 6
    vocabulary: int = 32000
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def body_params(self) -> int:
        """Weights of all matrix multiplications but the head's."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def linear_widths(self) -> int:
        """Inputs and outputs of all linear layers of the body: what an adapter of rank 1 on each of them weighs."""
        attention = 4 * self.hidden + 2 * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * (self.hidden + self.ffn))

    @property
    def num_params(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.body_params + norms + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def hf_config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,  # the Llama of Tunix rotates by this one, whatever its configuration says
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "pad_token_id": PAD,
            "bos_token_id": None,
            "eos_token_id": EOS,
        }


def write_model(directory: Path, llama: Llama, *, seed: int = 0) -> Path:
    """The model with weights drawn from N(0, 0.02) and its tokenizer."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(llama.hf_config(), indent=2))
    weights = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else 0.02 * rng.standard_normal(shape, dtype=np.float32)
        for name, shape in _tensor_shapes(llama).items()
    }
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    make_tokenizer(llama.vocabulary).save_pretrained(directory)
    return directory


def _tensor_shapes(llama: Llama) -> dict[str, tuple[int, ...]]:
    D, F, V = llama.hidden, llama.ffn, llama.vocabulary
    H, K = llama.heads * llama.head_dim, llama.kv_heads * llama.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
        "self_attn.q_proj": (H, D),
        "self_attn.k_proj": (K, D),
        "self_attn.v_proj": (K, D),
        "self_attn.o_proj": (D, H),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(llama.layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes if llama.tied else shapes | {"lm_head.weight": (V, D)}


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words t2, t3, ... between spaces, and two special tokens whose names are in no word."""
    words = ["<pad>", "<eos>", *(f"t{i}" for i in range(FIRST_WORD, vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def uniform_lengths(num_pairs: int, *, sequence: int = 512, prompt: int = 128) -> np.ndarray:
    """[n, 3] tokens of prompt, chosen and rejected, all pairs alike."""
    return np.tile(np.array([prompt, sequence - prompt, sequence - prompt]), (num_pairs, 1))


def real_lengths(name: str, num_pairs: int, *, seed: int = 0) -> np.ndarray:
    """[n, 3] tokens of a random choice of the pairs in lengths/NAME.csv."""
    lengths = np.loadtxt(LENGTHS / f"{name}.csv", delimiter=",", skiprows=1, dtype=np.int64)
    if num_pairs > len(lengths):
        raise ValueError(f"{num_pairs} pairs asked for, {name} has {len(lengths)}; ask for fewer")
    return lengths[np.sort(np.random.default_rng(seed).permutation(len(lengths))[:num_pairs])]


def make_pairs(lengths: np.ndarray, vocabulary: int, *, seed: int = 0) -> list[Pair]:
    """Random tokens; a response ends with the end of sequence, which its length counts."""
    rng = np.random.default_rng(seed)

    def words(number: int) -> list[int]:
        return rng.integers(FIRST_WORD, vocabulary, number).tolist()

    return [
        {"prompt_ids": words(p), "chosen_ids": [*words(c - 1), EOS], "rejected_ids": [*words(r - 1), EOS]}
        for p, c, r in lengths.tolist()
    ]


def write_text_pairs(path: Path, pairs: list[Pair]) -> Path:
    """The pairs as text in jaxalign's plain format, which puts the end of sequence back."""

    def text(ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids)

    rows = [
        {
            "prompt": text(pair["prompt_ids"]),
            "chosen": text(pair["chosen_ids"][:-1]),
            "rejected": text(pair["rejected_ids"][:-1]),
        }
        for pair in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
