"""How text becomes token ids here: template, end of sequence, cutting. One pair at a time, no data sets."""

from typing import TYPE_CHECKING

import jinja2

from jaxalign.data.schema import DataError, Message
from jaxalign.data.settings import TextConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """The tokenizer with the rules of this project. Raises DataError if they cannot be kept."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: TextConfig) -> None:
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
        self.empty_prompt_ids = self._empty_prompt_ids()

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
        except jinja2.TemplateSyntaxError as error:
            got = f"a chat template with an error in line {error.lineno} ({error.message})"
            raise _unfit(got, "a template that jinja2 can read", "correct the chat template") from error
        except jinja2.TemplateError as error:  # templates refuse roles and orders that the model never saw
            raise DataError(
                "refused by the chat template",
                origin=origin,
                field="prompt",
                got=f"{error} for the roles {[message['role'] for message in messages]}",
                expected="a conversation that the template accepts",
                remedy="remove data.system_prompt or correct the roles",
            ) from error

    def _empty_prompt_ids(self) -> list[int]:
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

    def cut_prompt(self, prompt: list[int]) -> list[int]:
        """The prompt within the limit: the end of a longer one."""
        return prompt[-self._config.max_prompt_length :]

    def cut(
        self, prompt: list[int], responses: list[list[int]]
    ) -> tuple[list[list[int]], tuple[int, int, int]]:
        """Prompt and responses within the limits, and how many tokens each lost."""
        limit = self._config.max_response_length
        kept = [self.cut_prompt(prompt), *(ids[:limit] for ids in responses)]
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
