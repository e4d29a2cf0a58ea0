"""`jaxalign verify`: our decoder on one model against transformers + torch on another, on fixed short chats."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.hf.verify import VerifyReport, verify_export
from jaxalign.run.load import WhichStep, load_model

# Plain texts: letters, digits, punctuation, other scripts, code, so that many tokens are touched.
CHATS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Write a haiku about rain.",
        "Soft rain on the roof,\nthe garden drinks in silence,\nmorning smells of earth.",
    ),
    ("How much is 12 * 34?", "12 * 34 = 408."),
    ("Explique la photosynthèse en une phrase.", "Les plantes changent la lumière en énergie chimique."),
    ("def add(a, b):", "    return a + b  # the sum of both"),
    ("Name three colours.", "Red, green and blue."),
)


def verify(path: Path, hf_dir: Path, *, step: WhichStep) -> VerifyReport:
    """Compare the model at `path` (run, Hugging Face directory or .gguf) with what transformers reads."""
    model = load_model(path, step=step)
    sequences, masks = _sequences(model.checkpoint.load_tokenizer())
    return verify_export(model.decoder, model.params, model.lora_params, hf_dir, sequences, masks)


def _sequences(tokenizer: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    sequences, masks = [], []
    for prompt, response in CHATS:
        before = tokenizer(prompt)["input_ids"]
        after = tokenizer(response, add_special_tokens=False)["input_ids"]
        sequences.append(np.array([*before, *after], np.int32))
        masks.append(np.arange(len(before) + len(after)) >= len(before))
    return sequences, masks
