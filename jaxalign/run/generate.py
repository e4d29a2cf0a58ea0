"""`jaxalign generate`: prompts in, answers out as lines of JSON. Batches and buckets are in generation.py."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign.config import ConfigError
from jaxalign.data.encoder import Encoder
from jaxalign.data.schema import Message
from jaxalign.data.settings import TextConfig
from jaxalign.files import write_whole
from jaxalign.hf.checkpoint import Checkpoint, generation_defaults
from jaxalign.models.sampling import GREEDY, Sampling
from jaxalign.parallel import is_main_process
from jaxalign.run.data import load_tokenizer
from jaxalign.run.generation import Answer, Decoding, generate_ids
from jaxalign.run.load import LoadedModel, WhichStep, load_model
from jaxalign.run.prompt_file import Prompt, read_prompt_file

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """From conversations to token ids, from ids to text, and the ids that end an answer."""

    tokenizer: Any
    encoder: Encoder
    stop_ids: tuple[int, ...]

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def text_format(
    model: LoadedModel,
    *,
    raw: bool = False,
    system_prompt: str | None = None,
    without_template: str = "give --raw to use prompts as they stand",
) -> TextFormat:
    """The format that a run was trained with, the chat format of a pretrained model, or as the options say.

    `without_template` is the remedy for a tokenizer without one.
    Raises ConfigError for options without effect, and for a tokenizer that has no chat template.
    """
    given = TextConfig() if model.run is None else model.run.data
    tokenizer = model.checkpoint.load_tokenizer() if model.run is None else load_tokenizer(model.run)
    if raw and given.prompt_format == "raw":
        raise ConfigError("--raw has no effect: this run was trained on raw prompts; leave it out")
    chat = given.prompt_format == "chat" and not raw
    if not chat and system_prompt is not None:
        raise ConfigError(
            "a system prompt has an effect on chats alone, and these prompts are raw; leave it out"
        )
    if chat and not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {model.checkpoint.path} has no chat template; {without_template}"
        )
    of_chat = system_prompt if system_prompt is not None else given.system_prompt
    config = (
        TextConfig(prompt_format="chat", system_prompt=of_chat) if chat else TextConfig(prompt_format="raw")
    )
    return TextFormat(tokenizer, Encoder(tokenizer, config), stop_ids(model.checkpoint, tokenizer))


def stop_ids(checkpoint: Checkpoint, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: those at which transformers would stop, and the tokenizer's end of sequence."""
    defaults = checkpoint.generation_config
    if defaults is None:
        defaults = generation_defaults(checkpoint.hf_config)
    given = defaults.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(id_) is int for id_ in ids):
        raise ConfigError(f"{checkpoint.path}: eos_token_id={given!r}: expected a token id or a list of them")
    return tuple(sorted({*ids, tokenizer.eos_token_id} - {None}))


def generate_texts(
    model: LoadedModel,
    prompts: Sequence[tuple[Message, ...]],
    *,
    sampling: Sampling = GREEDY,
    num_samples: int = 1,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    seed: int = 0,
    format: TextFormat | None = None,
    show: bool = True,
) -> list[list[str]]:
    """`num_samples` answers to each prompt, in the order of the prompts.

    `format` is `text_format(model)` unless given.
    The answers depend on model, prompt, seed, number of the prompt and of the sample, and not on `batch_size` or the
    devices. Raises GenerationError, DataError, ConfigError.
    """
    format = format or text_format(model)
    decoding = Decoding(format.stop_ids, max_new_tokens, sampling, num_samples)
    names = [f"prompt {i}" for i in range(len(prompts))]
    texts: list[list[str]] = [[] for _ in prompts]
    found = _answers(model, format, prompts, names, decoding, seed, batch_size=batch_size, show=show)
    for i, answers in found:
        texts[i] = [format.text(answer.ids) for answer in answers]
    return texts


def _answers(
    model: LoadedModel,
    format: TextFormat,
    prompts: Sequence[tuple[Message, ...]],
    names: Sequence[str],
    decoding: Decoding,
    seed: int,
    *,
    batch_size: int,
    show: bool = True,
) -> Iterator[tuple[int, list[Answer]]]:
    """The number of each prompt with all its answers; not in the order of the prompts."""
    ids = [format.encoder.prompt_ids(messages, name) for messages, name in zip(prompts, names, strict=True)]
    answers = generate_ids(
        model.decoder,
        model.params,
        model.lora_params,
        model.mesh,
        ids,
        decoding,
        key=jax.random.key(seed),
        batch_size=batch_size,
        names=names,
        show=show and is_main_process(),
    )
    samples: list[Answer] = []
    for answer in answers:  # those to one prompt come one after the other
        samples.append(answer)
        if len(samples) == decoding.num_samples:
            yield answer.prompt, samples
            samples = []


def generate(
    path: Path,
    source: str,
    output: Path | None,
    *,
    sampling: Sampling,
    num_samples: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int | None,
    system_prompt: str | None,
    raw: bool,
    step: WhichStep,
) -> None:
    """Answer the prompts of `source` with the model at `path`: lines of JSON to `output`, or to standard output.

    Raises ConfigError, DataError, GenerationError, CheckpointError.
    """
    if seed is not None and sampling.greedy:
        raise ConfigError(
            f"--seed {seed} has no effect at temperature 0; leave it out, or give --temperature"
        )
    prompts = read_prompt_file(source)
    with _sorted_lines(output) as add:
        model = load_model(path, step=step)
        format = text_format(model, raw=raw, system_prompt=system_prompt)
        decoding = Decoding(format.stop_ids, max_new_tokens, sampling, num_samples)
        messages, names = [prompt.messages for prompt in prompts], [prompt.origin for prompt in prompts]
        found = _answers(model, format, messages, names, decoding, seed or 0, batch_size=batch_size)
        for i, answers in found:
            add(i, _line(i, prompts[i], [format.text(answer.ids) for answer in answers], answers))


def _line(index: int, prompt: Prompt, responses: list[str], answers: list[Answer]) -> dict[str, Any]:
    return {
        "index": index,
        **({} if prompt.id is None else {"id": prompt.id}),
        "prompt": prompt.given,
        "responses": responses,
        "stopped": [answer.stopped for answer in answers],
    }


@contextlib.contextmanager
def _sorted_lines(output: Path | None) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A function that takes numbered objects: lines of JSON in the order of their numbers, once all are there.

    Until then they are in `output` with ".partial" behind its name: a process that is killed leaves what it had.
    Raises ConfigError for a `.partial` that is there already.
    """
    lines: dict[int, str] = {}
    partial = _new_partial(output) if output is not None and is_main_process() else None

    def add(number: int, value: dict[str, Any]) -> None:
        if partial is not None and not lines:
            _create(partial)
        lines[number] = json.dumps(value, ensure_ascii=False) + "\n"
        if partial is not None:
            with partial.open("a", encoding="utf-8") as file:
                file.write(lines[number])

    try:
        yield add
    except BaseException:
        if lines and partial is not None:
            log.warning("the answers to %d prompts so far are in %s", len(lines), partial)
        raise
    text = "".join(lines[number] for number in sorted(lines))
    if output is None and is_main_process():
        print(text, end="")
    if output is not None and partial is not None:
        write_whole(output, text)
        partial.unlink(missing_ok=True)


def _new_partial(output: Path) -> Path:
    if output.is_dir():
        raise ConfigError(
            f"--output {output} is a folder, expected a file; name one, such as {output}/answers.jsonl"
        )
    partial = output.with_name(f"{output.name}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists():
        raise _taken(partial)
    return partial


def _create(partial: Path) -> None:
    try:
        partial.touch(exist_ok=False)
    except FileExistsError as error:  # made by another process since this one began
        raise _taken(partial) from error


def _taken(partial: Path) -> ConfigError:
    return ConfigError(
        f"{partial} holds what another process has so far, or had when it ended; wait for it, use it, or delete it"
    )
