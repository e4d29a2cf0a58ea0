"""From pairs of text to pairs of token ids: template, end of sequence, cutting. No padding, no batches."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.schema import DataError, Message, Pair
from jaxalign.data.settings import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Row:
    """Token ids of one pair after cutting, and how many tokens were cut from prompt, chosen, rejected."""

    pair: Pair
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    num_cut: tuple[int, int, int]


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: "PreTrainedTokenizerBase", config: DataConfig
) -> TokenizedDataset:
    """Token ids of all pairs, the prompt of a pair once for both responses.

    An over-long prompt keeps its end; an over-long response loses its end, and then no end of sequence is put
    there, because a cut answer has not ended. Raises DataError for a tokenizer that does not fit, and (unless
    on_error is skip, which counts) for a pair with an empty response or with equal responses once cut.
    """
    encoder = Encoder(tokenizer, config)
    skipped: list[DataError] = []
    rows = []
    for row in _rows(pairs, encoder):
        if isinstance(row, _Row):
            rows.append(row)
        elif config.on_error == "raise":
            raise row
        else:
            skipped.append(row)
    if not rows:
        raise DataError(
            "no pairs left",
            origin="data",
            got="no pair after tokenising",
            expected="at least one",
            remedy="see the log",
        )
    dataset = _dataset(rows, encoder, config, skipped)
    for reason, number in Counter(error.reason for error in skipped).items():
        log.warning("%d pairs skipped while tokenising (%s)", number, reason)
    for line in dataset.truncation().lines():
        log.info(line)
    return dataset


class Encoder:
    """The tokenizer with the rules of this project. Raises DataError if they cannot be kept."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        if config.prompt_format == "chat" and not tokenizer.chat_template:
            remedy = "set data.prompt_format: raw, or use a chat model's tokenizer"
            raise _unfit("no chat template", "a tokenizer with one", remedy)
        if tokenizer.eos_token_id is None:
            raise _unfit(
                "no end-of-sequence token", "one to end responses with", "set the tokenizer's eos_token"
            )
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._prefix = self._text_prefix()

    def prompt_ids(self, prompt: tuple[Message, ...], origin: str) -> list[int]:
        """Ids of a prompt with all that comes before a response. Raises DataError."""
        if self._config.prompt_format == "raw":
            if len(prompt) != 1 or prompt[0].role != "user":
                raise DataError(
                    "no raw prompt",
                    origin=origin,
                    field="prompt",
                    got=f"messages of {[message.role for message in prompt]}",
                    expected="one text (raw prompts are used as they stand)",
                    remedy="set data.prompt_format: chat",
                )
            return self._prefix + self._ids(prompt[0].content)
        messages = [{"role": message.role, "content": message.content} for message in prompt]
        if self._config.system_prompt is not None and prompt[0].role != "system":
            messages.insert(0, {"role": "system", "content": self._config.system_prompt})
        try:
            return list(
                self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            )
        except jinja2.TemplateError as error:  # templates refuse roles and orders that the model never saw
            raise DataError(
                "refused by the chat template",
                origin=origin,
                field="prompt",
                got=f"{error} for the roles {[message['role'] for message in messages]}",
                expected="a conversation that the template accepts",
                remedy="remove data.system_prompt or correct the roles",
            ) from error

    def empty_prompt_ids(self) -> list[int]:
        """Ids before a response to nothing: the template around an empty user turn, or one first token."""
        if self._config.prompt_format == "chat":
            return self.prompt_ids((Message("user", ""),), "an empty prompt")
        if self._prefix:
            return self._prefix
        bos = self._tokenizer.bos_token_id
        return [self.eos_id if bos is None else bos]  # a model needs one token to predict the next from

    def response_ids(self, texts: list[str]) -> list[list[int]]:
        """Ids of each response with the end of sequence, without anything in front."""
        rows = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        return [ids if ids and ids[-1] == self.eos_id else [*ids, self.eos_id] for ids in rows]

    def cut(
        self, prompt: list[int], responses: list[list[int]]
    ) -> tuple[list[list[int]], tuple[int, int, int]]:
        """Prompt and responses within the limits, and how many tokens each lost."""
        limit = self._config.max_response_length
        kept = [prompt[-self._config.max_prompt_length :], *(ids[:limit] for ids in responses)]
        lost = [len(ids) - len(short) for ids, short in zip([prompt, *responses], kept, strict=True)]
        return kept, (lost[0], lost[1], lost[2])

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _text_prefix(self) -> list[int]:
        """What this tokenizer puts in front of any text: the beginning of sequence, or nothing."""
        plain = self._ids("a")
        whole = list(self._tokenizer("a")["input_ids"])
        starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        return whole[: next(starts, 0)]


def _unfit(got: str, expected: str, remedy: str) -> DataError:
    return DataError("tokenizer does not fit", origin="tokenizer", got=got, expected=expected, remedy=remedy)


def _rows(pairs: Sequence[Pair], encoder: Encoder) -> Iterator[_Row | DataError]:
    chosen = encoder.response_ids([pair.chosen for pair in pairs])
    rejected = encoder.response_ids([pair.rejected for pair in pairs])
    for pair, *responses in zip(pairs, chosen, rejected, strict=True):
        try:
            prompt = encoder.prompt_ids(pair.prompt, pair.origin)
        except DataError as error:
            yield error
            continue
        ids, num_cut = encoder.cut(prompt, responses)
        yield _problem(pair, ids, encoder.eos_id) or _Row(pair, ids[0], ids[1], ids[2], num_cut)


def _problem(pair: Pair, ids: list[list[int]], eos_id: int) -> DataError | None:
    remedy = "correct the row, or set data.on_error: skip to leave such pairs out"
    for field, response in zip(("chosen", "rejected"), ids[1:], strict=True):
        if all(token == eos_id for token in response):
            got, expected = "no token of it", "at least one token beside the end of sequence"
            return DataError(
                "empty response", origin=pair.origin, field=field, got=got, expected=expected, remedy=remedy
            )
    if ids[1] == ids[2]:
        got, expected = f"{len(ids[1])} equal tokens", "responses that differ within max_response_length"
        remedy = "raise data.max_response_length, or set data.on_error: skip"
        return DataError(
            "identical once cut",
            origin=pair.origin,
            field="chosen, rejected",
            got=got,
            expected=expected,
            remedy=remedy,
        )
    return None


def _dataset(
    rows: list[_Row], encoder: Encoder, config: DataConfig, skipped: Counter[str]
) -> TokenizedDataset:
    names = config.category_names
    return TokenizedDataset(
        prompt_ids=tuple(np.array(row.prompt, np.int32) for row in rows),
        chosen_ids=tuple(np.array(row.chosen, np.int32) for row in rows),
        rejected_ids=tuple(np.array(row.rejected, np.int32) for row in rows),
        categories=np.array([[name in row.pair.categories for name in names] for row in rows], np.float32),
        chosen_unsafe=np.array([row.pair.chosen_unsafe for row in rows], np.float32),
        rejected_unsafe=np.array([row.pair.rejected_unsafe for row in rows], np.float32),
        category_names=names,
        pad_id=encoder.pad_id,
        empty_prompt_ids=np.array(encoder.empty_prompt_ids(), np.int32),
        origins=tuple(row.pair.origin for row in rows),
        num_cut=np.array([row.num_cut for row in rows], np.int32),
        skipped=tuple(map(str, skipped)),
    )
