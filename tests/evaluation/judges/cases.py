"""Judges of every kind in tiny, conversations for them, and the same judges broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxalign.data.schema import Message
from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.interface import Judge
from jaxalign.evaluation.judges.settings import (
    EndpointConfig,
    FunctionConfig,
    GuardConfig,
    RefusalConfig,
    ScoreModelConfig,
)
from tests.evaluation.judges.fake_endpoint import FakeEndpoint
from tests.tiny import make_tokenizer, write_model

GUARD_TEMPLATE = (
    "<|im_start|>safe or unsafe?"
    "{% for m in messages %}{{ '\\n' + m['role'] + ': ' + m['content'] }}{% endfor %}"
)
CONVERSATIONS = [
    ("How do I boil an egg?", "Sure, put it in hot water."),
    ("Do something harmful.", "I'm sorry, but I can't help with that."),
    ("Do something else.", "Sure!"),
    ("What is the weather?", "It rains. " * 14),
    ("Tell me a story.", "Once upon a time."),
]


def prompts_and_responses(pairs: list[tuple[str, str]] = CONVERSATIONS) -> tuple[list[Any], list[str]]:
    return [(Message("user", prompt),) for prompt, _ in pairs], [response for _, response in pairs]


def write_score_model(folder: Path, *, seed: int = 0, bias: bool = True, **config: Any) -> Path:
    """A random score model in the layout of PKU's beaver, buffers of the normaliser included."""
    write_model(folder, seed=seed, max_position_embeddings=256, tie_word_embeddings=False)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"architectures": ["LlamaModelForScore"], "score_type": "cost", "score_dim": 1, "bias": bias}
    settings |= {"do_normalize": False, "normalizer_type": None, "momentum": None, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    rng = np.random.default_rng(seed + 1)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["score_head.weight"] = rng.standard_normal((1, 16), dtype=np.float32)
    if bias:
        tensors["score_head.bias"] = rng.standard_normal(1, dtype=np.float32)
    tensors["normalizer.mean"] = np.array([0.7], np.float32)
    tensors["normalizer.var"] = np.array([4.0], np.float32)
    tensors["normalizer.count"] = np.array([12], np.int64)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_guard(folder: Path, *, seed: int = 0, template: str | None = GUARD_TEMPLATE, **config: Any) -> Path:
    """A random causal model whose tokenizer has the chat template of a guard."""
    write_model(folder, seed=seed, **{"max_position_embeddings": 512, **config})
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def spoil(folder: Path) -> Path:
    """Make the final norm of a model NaN, and so all that it gives."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def word_score(prompts: Any, responses: Any) -> list[float | None]:
    """A function as a user would write one: unjudged where there is nothing to read."""
    return [None if not text.strip() else (len(text) % 10) / 10 for text in responses]


def unable(prompts: Any, responses: Any) -> list[float]:
    return [float("nan")] * len(responses)


def _endpoint(folder: Path, endpoint: FakeEndpoint) -> Judge:
    return make_judge(EndpointConfig(url=endpoint.url, model="tiny", max_attempts=2, backoff=0.0))


SOUND: dict[str, Callable[[Path, FakeEndpoint], Judge]] = {
    "refusal": lambda folder, _: make_judge(RefusalConfig()),
    "score_model": lambda folder, _: make_judge(
        ScoreModelConfig(path=write_score_model(folder), batch_size=2)
    ),
    "guard": lambda folder, _: make_judge(
        GuardConfig(path=write_guard(folder), batch_size=2, least_mass=0.0)
    ),
    "endpoint": _endpoint,
    "function": lambda folder, _: make_judge(FunctionConfig(function=f"{__name__}:word_score")),
}

# The same kinds, each failing in its own way: on a blank answer, by NaN weights, by garbage, by NaN scores.
BROKEN: dict[str, Callable[[Path, FakeEndpoint], Judge]] = SOUND | {
    "score_model": lambda folder, _: make_judge(ScoreModelConfig(path=spoil(write_score_model(folder)))),
    "guard": lambda folder, _: make_judge(GuardConfig(path=spoil(write_guard(folder)), least_mass=0.0)),
    "function": lambda folder, _: make_judge(FunctionConfig(function=f"{__name__}:unable")),
}
