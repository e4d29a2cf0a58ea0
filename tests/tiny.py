"""Tiny models, tokenizers and data sets for tests: real files in the real formats, made in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>"]
CATEGORIES = ("Violence", "Drugs", "Privacy Violation")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, two special tokens, pad = end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIALS[0], eos_token=SPECIALS[1], pad_token=SPECIALS[1]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_model(directory: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A random Llama of 16 x 2 x 2 in Hugging Face format, with its tokenizer."""
    tokenizer = make_tokenizer()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 264,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        _weights(config, np.random.default_rng(seed)), directory / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save_pretrained(directory)
    return directory


def _weights(config: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    H, K = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for i in range(config["num_hidden_layers"]):
        layer = {
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
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    weights = {name: 0.2 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return {name: x + 1.0 if "norm" in name else x for name, x in weights.items()}


def pairs(num_pairs: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Rows of the plain format: uneven categories, some with two, some with none; prompts all differ."""
    rows = []
    for i in range(first, first + num_pairs):
        categories = [[], ["Violence"], ["Violence", "Drugs"], ["Violence"], ["Privacy Violation"]][i % 5]
        rows.append(
            {
                "prompt": f"Question {i}?",
                "chosen": "No." if i % 2 else "I will not.",
                "rejected": "Yes, " + "do it" * (1 + i % 3),
                "categories": categories,
                "chosen_unsafe": False,
                "rejected_unsafe": bool(categories),
            }
        )
    return rows


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_settings(
    folder: Path, *, num_train: int = 22, num_heldout: int = 7, **sections: Any
) -> dict[str, Any]:
    """Plain settings of a tiny run whose files are made in `folder`; `sections` are laid over them one level deep."""
    settings: dict[str, Any] = {
        "model": {"path": str(write_model(folder / "model")), "dtype": "float32", "remat": "none"},
        "data": {
            "train": [
                {"format": "plain", "path": str(write_pairs(folder / "train.jsonl", pairs(num_train)))}
            ],
            "heldout": [
                {
                    "format": "plain",
                    "path": str(write_pairs(folder / "heldout.jsonl", pairs(num_heldout, first=1000))),
                }
            ],
            "categories": list(CATEGORIES),
            "max_prompt_length": 64,
            "max_response_length": 32,
        },
        "loss": {"name": "cat_b_dpo", "beta": 0.1},
        "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
        "train": {"batch_size": 8, "num_steps": 5},
        "mesh": {"data": 1},
        "logging": {"tensorboard": False},
        "checkpoint": {"every_steps": 2, "keep": 10},
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section} if name != "loss" else section
    return settings
