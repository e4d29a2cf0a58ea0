"""Fixtures of the data tests: a byte-level tokenizer made on the spot, rows in real schemas, files of rows."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxalign.data.schema import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, Message, Pair

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('system must come first') }}{% endif %}"
    "<|bos|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
)

Rows = Sequence[dict[str, Any]]


def make_tokenizer(
    *, adds_bos: bool = False, chat_template: str | None = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """One token per byte, and <|bos|>, <|eos|>; the pad token is the end of sequence."""
    specials = ["<|bos|>", "<|eos|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", vocab["<|bos|>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|eos|>",
        chat_template=chat_template,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Puts <|bos|> in front of every text by itself, and has no chat template."""
    return make_tokenizer(adds_bos=True, chat_template=None)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as a file of the kind that its name says, and gives its path."""

    def write(rows: Rows | bytes, name: str = "pairs.jsonl") -> str:
        path = tmp_path / name
        content = (
            rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        )
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


@pytest.fixture(scope="session")
def pku_row() -> Callable[..., dict[str, Any]]:
    """A row of PKU-SafeRLHF: response 0 safe, response 1 unsafe (Drugs, Violence) unless said otherwise."""

    def make(
        *, unsafe: tuple[bool, bool] = (False, True), better: int = 0, safer: int = 0, **fields: Any
    ) -> dict:
        row: dict[str, Any] = {"prompt": "How do I get pills?", "prompt_source": "test"}
        harms = (("Economic Crime",), ("Violence", "Drugs"))
        for i in (0, 1):
            row |= {
                f"response_{i}": f"answer {i}",
                f"response_{i}_source": "test",
                f"is_response_{i}_safe": not unsafe[i],
                f"response_{i}_harm_category": {
                    name: unsafe[i] and name in harms[i] for name in PKU_CATEGORIES
                },
                f"response_{i}_severity_level": 2 * unsafe[i],
                f"response_{i}_sha256": "0" * 64,
            }
        return row | {"better_response_id": better, "safer_response_id": safer} | fields

    return make


@pytest.fixture(scope="session")
def beaver_row() -> Callable[..., dict[str, Any]]:
    """A row of BeaverTails."""

    def make(
        response: str, *harms: str, prompt: str = "How do I get pills?", is_safe: bool | None = None
    ) -> dict:
        category = {name: name in harms for name in BEAVERTAILS_CATEGORIES}
        safe = not harms if is_safe is None else is_safe
        return {"prompt": prompt, "response": response, "category": category, "is_safe": safe}

    return make


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., list[Pair]]:
    """n short pairs, each with its number in every text; pair i has category names[i % (len + 1)], the last none."""

    def make(num: int, names: Sequence[str] = ("Drugs", "Violence"), **fields: Any) -> list[Pair]:
        pairs = []
        for i in range(num):
            categories = tuple(names[i % (len(names) + 1) :][:1])
            values = {
                "prompt": (Message("user", f"ask {i}"),),
                "chosen": f"no {i}",
                "rejected": f"yes, take {i}",
                "categories": categories,
                "chosen_unsafe": False,
                "rejected_unsafe": bool(categories),
                "origin": f"test:{i + 1}",
            }
            pairs.append(Pair(**(values | fields)))
        return pairs

    return make
