"""Answers of a model on its mesh to any number of prompts: batches, buckets of lengths, keys, progress.

Takes token ids and parameters as they are, so that a run under way can ask its own policy. Text and files are in
generate.py.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxalign.data.packing import round_up
from jaxalign.models.functional import DecoderFns, LayerParams, Params
from jaxalign.models.generate import NOT_FINITE, Generated, generate_tokens
from jaxalign.models.sampling import GREEDY, GenerationError, Sampling
from jaxalign.parallel import num_groups, partition_spec, put_global, replicated
from jaxalign.progress import Stage
from jaxalign.run.policy import platform_of, row_multiple


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sampled answer to one prompt: ids without the stop id, and whether there was one before the limit."""

    prompt: int
    sample: int
    ids: tuple[int, ...]
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are made. Raises GenerationError for what has no meaning or no effect."""

    stop_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    num_samples: int = 1

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("max_new_tokens", "num_samples"):
            if getattr(self, name) < 1:
                raise GenerationError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.sampling.greedy and self.num_samples > 1:
            raise GenerationError(
                f"{self.num_samples} samples at temperature 0 would all be the same; ask for one, or give a temperature"
            )


def generate_ids(
    decoder: DecoderFns,
    params: Params,
    lora_params: Params | None,
    mesh: Mesh,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    key: jax.Array,
    batch_size: int,
    names: Sequence[str] | None = None,
    label: str = "generate",
    show: bool = True,
) -> Iterator[Answer]:
    """All answers to prompts of token ids, batch by batch, those to the longest prompts first.

    Sample s of prompt number i is drawn with the key fold_in(fold_in(key, i), s): batches, their order and the devices
    change no answer, but for rounding. A batch is `batch_size` rounded up to spread over the devices; its prompts are
    padded to a power of two times the platform's row length. Each such length is compiled once for a decoder, a
    `decoding` and a batch size, and stays compiled. Raises GenerationError, with the name of the prompt, for one that
    does not fit the model, before anything is computed; and for logits that are not finite.
    """
    if batch_size < 1:
        raise GenerationError(f"batch_size={batch_size}: expected at least 1")
    names = [f"prompt {i}" for i in range(len(prompts))] if names is None else names
    for name, prompt in zip(names, prompts, strict=True):
        check_prompt(name, prompt, decoder, decoding.max_new_tokens)
    rows = [(i, s) for i in range(len(prompts)) for s in range(decoding.num_samples)]
    rows.sort(
        key=lambda row: -len(prompts[row[0]])
    )  # stable; the longest first, as they need the most memory
    return _answers(
        _Batches(
            decoder,
            params,
            lora_params,
            _splitter(decoder)(params, lora_params),
            mesh,
            prompts,
            decoding,
            key,
        ),
        rows,
        names,
        batch_size=round_up(min(batch_size, max(1, len(rows))), num_groups(mesh)),
        stage=Stage(label, len(rows), enabled=show),
    )


def check_prompt(name: str, prompt: Sequence[int], decoder: DecoderFns, max_new_tokens: int) -> None:
    """Raise GenerationError for a prompt that is empty, too long, or not in the model's vocabulary."""
    limit, vocabulary = decoder.config.max_position_embeddings, decoder.config.vocab_size
    if not prompt:
        raise GenerationError(f"{name} has no tokens; give it at least one, such as a chat template does")
    if len(prompt) + max_new_tokens > limit:
        raise GenerationError(
            f"{name} has {len(prompt)} tokens, with {max_new_tokens} new ones more than the model's context of "
            f"{limit}; shorten it, or ask for fewer new tokens"
        )
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise GenerationError(
            f"{name} holds token ids from {min(prompt)} to {max(prompt)}, the model's vocabulary has {vocabulary}; use "
            "the tokenizer of this model"
        )


def bucket(length: int, multiple: int) -> int:
    """The columns that prompts of up to this length are padded to: `multiple` times a power of two."""
    return multiple * 2 ** (-(-length // multiple) - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class _Batches:
    """What all batches have in common."""

    decoder: DecoderFns
    params: Params
    lora_params: Params | None
    layers: list[LayerParams]
    mesh: Mesh
    prompts: Sequence[Sequence[int]]
    decoding: Decoding
    key: jax.Array

    def __call__(self, rows: Sequence[tuple[int, int]], batch_size: int) -> Generated:
        """The tokens after these (prompt, sample), on the host, with rows of padding behind them."""
        longest = max(len(self.prompts[i]) for i, _ in rows)
        width = bucket(longest, row_multiple(platform_of(self.mesh)))
        tokens = np.zeros((batch_size, width), np.int32)
        lengths, index, sample = np.zeros((3, batch_size), np.int32)
        for n, (i, s) in enumerate(rows):
            lengths[n], index[n], sample[n] = len(self.prompts[i]), i, s
            tokens[n, width - lengths[n] :] = self.prompts[i]

        def placed(x: np.ndarray) -> jax.Array:
            spec = partition_spec(("batch", *(None,) * (x.ndim - 1)), x.shape, self.mesh)
            return put_global(x, NamedSharding(self.mesh, spec))

        decoding = self.decoding
        run = compiled(self.decoder, self.mesh, decoding.sampling, decoding.stop_ids, decoding.max_new_tokens)
        key = put_global(np.asarray(jax.random.key_data(self.key)), replicated(self.mesh))
        arrays = [placed(x) for x in (tokens, lengths, index, sample)]
        return jax.device_get(run(self.params, self.lora_params, self.layers, key, *arrays))


@functools.lru_cache(maxsize=16)
def _splitter(decoder: DecoderFns) -> Callable[..., list[LayerParams]]:
    return jax.jit(decoder.split_layers)


@functools.lru_cache(maxsize=16)
def compiled(
    decoder: DecoderFns, mesh: Mesh, sampling: Sampling, stop_ids: tuple[int, ...], max_new_tokens: int
) -> Callable[..., Generated]:
    """The jitted function of parameters, key data, prompts [N, P], and their lengths, index and sample, each [N]."""

    def run(
        params: Params,
        lora_params: Params | None,
        layers: list[LayerParams],
        key_data: jax.Array,
        prompts: jax.Array,
        lengths: jax.Array,
        index: jax.Array,
        sample: jax.Array,
    ) -> Generated:
        key = jax.random.wrap_key_data(key_data)
        fold = jax.vmap(lambda i, s: jax.random.fold_in(jax.random.fold_in(key, i), s))
        return generate_tokens(
            decoder,
            params,
            lora_params,
            prompts,
            lengths,
            fold(index, sample),
            sampling=sampling,
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            layers=layers,
        )

    return jax.jit(run, out_shardings=replicated(mesh))


def _answers(
    batches: _Batches,
    rows: list[tuple[int, int]],
    names: Sequence[str],
    *,
    batch_size: int,
    stage: Stage,
) -> Iterator[Answer]:
    num_tokens, started = 0, time.monotonic()
    with stage:
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            generated = batches(batch, batch_size)
            num_tokens += int(generated.lengths.sum())
            stage.advance(len(batch), f"{num_tokens / (time.monotonic() - started):.0f} tokens/s")
            for n, (prompt, sample) in enumerate(batch):
                ids, stopped = (
                    generated.tokens[n, : generated.lengths[n]].tolist(),
                    bool(generated.stopped[n]),
                )
                if NOT_FINITE in ids:
                    raise GenerationError(
                        f"the logits after {names[prompt]} and {len(ids) - 1} new tokens are not finite; check the "
                        "model's weights, or compute in float32"
                    )
                yield Answer(prompt, sample, tuple(ids[:-1] if stopped else ids), stopped)
