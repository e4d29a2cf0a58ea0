"""Random tiny checkpoints of every supported family, written by transformers itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxalign.ops.attention import plain_places

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama_one_kv_head": {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    "llama3_rope": {"rope_parameters": LLAMA3_ROPE},
    "llama_biases": {"attention_bias": True, "mlp_bias": True},
    "llama_head_dim": {"head_dim": 12},
    "mistral_window": {"model_type": "mistral", "sliding_window": 5},
    "mistral_no_window": {"model_type": "mistral", "sliding_window": None, "head_dim": 10},
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family's name to a directory that transformers wrote, made once."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = root / family
            _save_random_model(made[family], FAMILIES[family])
        return made[family]

    return make


def _save_random_model(directory: Path, options: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    options = SIZES | options
    torch.manual_seed(0)
    if options.pop("model_type", "llama") == "mistral":
        model = MistralForCausalLM(MistralConfig(**options))
    else:
        model = LlamaForCausalLM(LlamaConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases that are not trivial, and scores that are not flat.
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    model.save_pretrained(directory)


@pytest.fixture(scope="session")
def sequences() -> tuple[np.ndarray, np.ndarray]:
    """Token ids [N, L] of the tiny vocabulary, and a mask of the response tokens [N, L]."""
    tokens = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (3, 24))
    return tokens, np.broadcast_to(np.arange(24) >= 10, (3, 24))


@pytest.fixture(scope="session")
def torch_logits() -> Callable[[Any, np.ndarray], np.ndarray]:
    """Logits [N, L, V] of a model (or its directory) by transformers + torch, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
        if isinstance(model, Path):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with torch.inference_mode():
            return model.eval()(torch.from_numpy(np.array(tokens))).logits.numpy()

    return logits


@pytest.fixture(scope="session")
def our_logits() -> Callable[..., np.ndarray]:
    """Logits [N, L, V] by the decoder in float32 (decoder, params, adapters or None, tokens)."""

    def logits(decoder: Any, params: Any, lora_params: Any, tokens: np.ndarray) -> np.ndarray:
        run = jax.jit(decoder.logits)
        return np.asarray(run(params, lora_params, tokens.astype(np.int32), plain_places(*tokens.shape)))

    return logits


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A tokenizer of 64 byte-level tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: SIZES["vocab_size"] - 3]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=template,
    )
