"""The real small model: tokenizer, parity with torch, and a chat that makes sense."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.verify import verify_export
from jaxalign.hf.write import export_model
from jaxalign.models.functional import build_decoder
from jaxalign.ops.attention import plain_places

CHAT = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


@pytest.fixture(scope="module")
def checkpoint(smollm2_gguf: Path) -> Any:
    return open_checkpoint(smollm2_gguf)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Any) -> Any:
    return checkpoint.load_tokenizer()


def test_sizes_are_those_of_the_published_model(checkpoint: Any) -> None:
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32")
    sizes = [leaf.size for leaf in jax.tree.leaves(decoder.abstract_params())]
    assert sum(sizes) == 134_515_008
    assert (checkpoint.config.rms_norm_eps, checkpoint.config.rope_theta) == (1e-5, 100_000.0)
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "  two spaces,\ttab\n\n\nnewlines  \n",
        "It's 2024: 3.14159 > 1e-5",
        "naïve café — 東京 🙂",
        "<|im_start|>user\nHi<|im_end|>\n",
        "",
    ],
)
def test_text_survives_the_tokenizer(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("in 1984, 42") == ["in", "Ġ", "1", "9", "8", "4", ",", "Ġ", "4", "2"]


def test_special_tokens_are_single_ids(tokenizer: Any) -> None:
    ids = tokenizer("<|im_start|>user\nHi<|im_end|>")["input_ids"]
    assert ids == [1, 4093, 198, 26843, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nHi"
    specials = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert specials == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) == 49_152


def test_chat_template_adds_its_default_system_turn(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("Answer in one short sentence.<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]


@pytest.fixture(scope="module")
def decoder_and_params(checkpoint: Any) -> tuple[Any, Any]:
    decoder = build_decoder(checkpoint.config, compute_dtype="float32", param_dtype="float32")
    return decoder, checkpoint.load_params(decoder.abstract_params(), None, "float32")


@pytest.fixture(scope="module")
def exported(
    checkpoint: Any, tokenizer: Any, decoder_and_params: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("export") / "smollm2"
    export_model(
        directory,
        hf_config=checkpoint.hf_config,
        params=decoder_and_params[1],
        tokenizer=tokenizer,
        generation_config=checkpoint.generation_config,
        dtype="f32",
        max_shard_size="200MB",
    )
    return directory


@pytest.mark.slow
def test_logits_and_response_logps_equal_those_of_torch(
    tokenizer: Any, decoder_and_params: tuple[Any, Any], exported: Path
) -> None:
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    answers = [
        tokenizer(text)["input_ids"] + [2] for text in ("Paris.", "The capital of France is Rome, 1789.")
    ]
    sequences = [np.array(prompt + answer) for answer in answers]
    masks = [np.arange(len(s)) >= len(prompt) for s in sequences]
    report = verify_export(*decoder_and_params, None, exported, sequences, masks)
    assert report.stored_dtype == "float32"
    assert report.relative < 1e-4
    assert report.max_response_logps < 1e-3
    assert report.passed


@pytest.mark.slow
def test_greedy_chat_is_coherent_and_the_same_in_transformers(
    tokenizer: Any, decoder_and_params: tuple[Any, Any], exported: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    decoder, params = decoder_and_params
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    with torch.inference_mode():
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0].tolist()
    length = len(prompt) + 16
    places = plain_places(1, length)
    logits = jax.jit(lambda params, row: decoder.logits(params, None, row, places)[0])
    row = list(prompt)
    while len(row) < length and row[-1] != 2:
        padded = np.array([row + [0] * (length - len(row))], np.int32)
        row.append(int(logits(params, padded)[len(row) - 1].argmax()))
    assert row == theirs
    assert "Paris" in tokenizer.decode(row[len(prompt) :])
