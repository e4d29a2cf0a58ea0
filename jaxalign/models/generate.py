"""Answers to prompts, token after token: a prompt goes through the decoder once, its keys and values are kept.

Arrays in, arrays out, to be traced under `jax.jit`. No text, no files and no batching of a prompt set here.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.batch import PROMPT, Places
from jaxalign.models.decoder import Attend
from jaxalign.models.functional import DecoderFns, LayerParams, Params, StepFn
from jaxalign.models.sampling import Sampling, choose
from jaxalign.ops.cache import LayerCache, append, attend_to_cache, new_cache
from jaxalign.ops.visibility import is_visible

NOT_FINITE = -1
"""Stands for a token, and ends its row, where the logits are not finite."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """The new tokens of N rows.

    tokens   [N, T] int32   0 from `lengths` on; NOT_FINITE where the model gave no finite logits
    lengths  [N]    int32   how many there are, with the stop id; 0 for an empty prompt
    stopped  [N]    bool    whether the last of them is a stop id
    """

    tokens: jax.Array
    lengths: jax.Array
    stopped: jax.Array


class _State(NamedTuple):
    """What goes from step to step; a row that is `done` gets no more tokens."""

    number: jax.Array  # [] int32, tokens so far, of rows that go on
    done: jax.Array  # [N] bool
    newest: jax.Array  # [N] int32
    result: Generated
    caches: list[LayerCache]  # of the layers


def generate_tokens(
    decoder: DecoderFns,
    params: Params,
    lora_params: Params | None,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    keys: jax.Array,
    *,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    layers: Sequence[LayerParams] | None = None,
) -> Generated:
    """Up to `max_new_tokens` (T) tokens after each prompt, until all rows have met a stop id.

    A row depends on its own prompt and key alone, but for rounding: not on its neighbours, nor on the padding.

    Args:
        decoder: the model; rows and heads are spread as its `constrain` says.
        params: base parameters, which stay as they are sharded.
        lora_params: adapter parameters, or None for the base alone.
        prompts: [N, P] int32, padded on the left.
        prompt_lengths: [N] int32; a row of length 0 is padding and gets no tokens.
        keys: [N] PRNG keys; token number i is drawn with the key `fold_in(key, i)` of its row. Not read if greedy.
        sampling: how a token is chosen.
        stop_ids: a row ends with any of them.
        max_new_tokens: T.
        layers: what `decoder.split_layers` makes of the parameters, so that several calls share it.

    Raises:
        ValueError: for shapes that do not fit together.
        GenerationError: for a top_k beyond the vocabulary.
    """
    N, P = prompts.shape
    if prompt_lengths.shape != (N,) or keys.shape != (N,) or max_new_tokens < 1:
        raise ValueError(
            f"prompts {prompts.shape}, prompt_lengths {prompt_lengths.shape}, keys {keys.shape}, max_new_tokens "
            f"{max_new_tokens}: expected [N, P], [N], [N], and at least 1"
        )
    pick = _picker(keys, sampling, stop_ids)
    # float32 means float32 also where matrix units would round their inputs by default.
    exact = decoder.spec.compute_dtype == jnp.float32
    with jax.default_matmul_precision("float32" if exact else None):
        places = _places(prompt_lengths, P, P + max_new_tokens)
        logits, caches = _prefilled(decoder, params, lora_params, prompts, places)
        start = _start(prompt_lengths == 0, caches, max_new_tokens)
        layers = decoder.split_layers(params, lora_params) if layers is None else layers
        one_more = _one_more(decoder, decoder.make_step(params, layers), places, P)

        def step(state: _State) -> _State:
            logits, caches = one_more(state)
            return pick(state._replace(caches=caches), logits)

        def going(state: _State) -> jax.Array:
            return (state.number < max_new_tokens) & ~state.done.all()

        return lax.while_loop(going, step, pick(start, logits)).result


def _places(prompt_lengths: jax.Array, width: int, size: int) -> Places:
    """Places [N, size] of rows whose prompts end at column `width`: each counts from the first token of its own."""
    position = jnp.arange(size, dtype=jnp.int32)[None] - (width - prompt_lengths)[:, None]
    segment = (position >= 0).astype(jnp.int32)
    return Places(segment, jnp.full_like(segment, PROMPT), jnp.maximum(position, 0))


def _prefilled(
    decoder: DecoderFns, params: Params, lora_params: Params | None, prompts: jax.Array, places: Places
) -> tuple[jax.Array, list[LayerCache]]:
    """Logits [N, V] after the prompts, and the cache of each layer with room for all `places` [N, S]."""
    P, S = prompts.shape[1], places.segment.shape[1]
    of_prompts = dataclasses.replace(jax.tree.map(lambda x: x[:, :P], places), unfolded_length=P)
    logits, (keys, values) = decoder.prefill(params, lora_params, prompts, of_prompts)
    caches = [new_cache(keys[i], values[i], S) for i in range(decoder.config.num_layers)]
    return _whole_rows(decoder, logits), [_constrained(decoder, cache) for cache in caches]


def _whole_rows(decoder: DecoderFns, logits: jax.Array) -> jax.Array:
    """Logits [N, V] with all of a row on one device, which chooses its token."""
    return decoder.spec.constrain(logits, ("batch", None))


def _constrained(decoder: DecoderFns, cache: LayerCache) -> LayerCache:
    """The cache with rows and heads where the model has them, so that it is never gathered."""
    return jax.tree.map(lambda x: decoder.spec.constrain(x, ("batch", "kv_heads", None, None)), cache)


def _start(empty: jax.Array, caches: list[LayerCache], max_new_tokens: int) -> _State:
    N = len(empty)
    nothing = jnp.zeros(N, jnp.int32)
    result = Generated(jnp.zeros((N, max_new_tokens), jnp.int32), nothing, jnp.zeros(N, bool))
    return _State(jnp.zeros((), jnp.int32), empty, nothing, result, caches)


def _picker(
    keys: jax.Array, sampling: Sampling, stop_ids: tuple[int, ...]
) -> Callable[[_State, jax.Array], _State]:
    """A function that adds to each row that goes on the token chosen from logits [N, V]."""
    stops = jnp.asarray(stop_ids, jnp.int32)[None]

    def pick(state: _State, logits: jax.Array) -> _State:
        of_token = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.number)
        newest = jnp.where(state.done, 0, choose(logits, of_token, sampling))
        number = state.number + 1
        tokens = lax.dynamic_update_slice_in_dim(state.result.tokens, newest[:, None], state.number, axis=1)
        lengths = jnp.where(state.done, state.result.lengths, number)
        stopped = state.result.stopped | (~state.done & (newest[:, None] == stops).any(axis=1))
        done = state.done | stopped | (newest == NOT_FINITE)
        return _State(number, done, newest, Generated(tokens, lengths, stopped), state.caches)

    return pick


def _one_more(
    decoder: DecoderFns, run: StepFn, places: Places, width: int
) -> Callable[[_State], tuple[jax.Array, list[LayerCache]]]:
    """A function from a state to the logits [N, V] after its newest tokens, and the caches with these in them."""
    attention = decoder.spec.attention
    columns = jnp.arange(places.segment.shape[1], dtype=jnp.int32)[None]

    def one_more(state: _State) -> tuple[jax.Array, list[LayerCache]]:
        column = width + state.number - 1
        own = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, column, 1, axis=1), places)
        visible = is_visible(
            own,
            places,
            query_index=column,
            key_index=columns,
            sliding_window=attention.sliding_window,
        )

        def attend(
            cache: LayerCache, query: jax.Array, key: jax.Array, value: jax.Array
        ) -> tuple[jax.Array, LayerCache]:
            cache = _constrained(decoder, append(cache, key, value, column))
            return attend_to_cache(attention, query, cache, visible), cache

        attends: list[Attend] = [functools.partial(attend, cache) for cache in state.caches]
        logits, caches = run(state.newest, own.position[:, 0], attends)
        return _whole_rows(decoder, logits), caches

    return one_more
