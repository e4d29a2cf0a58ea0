"""What judges that are models share: a decoder on the devices, and the last token of many rows in few shapes."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.evaluation.judges.interface import JudgeError
from jaxalign.hf.checkpoint import Checkpoint
from jaxalign.models.functional import DecoderFns, Params, build_decoder
from jaxalign.ops.attention import default_implementation, make_attention, plain_places, supported
from jaxalign.parallel import make_constrain, put_global, replicated, tree_shardings
from jaxalign.parallel.kernels import MeshAttention
from jaxalign.progress import Stage

SHORTEST_ROW = 128  # what kernels of TPUs and GPUs need; longer rows double

Forward = Callable[..., jax.Array]
"""(params, tokens [N, L], last [N], ...) -> [N, X] float32 of the token in column `last` of each row."""


def load_decoder(checkpoint: Checkpoint, dtype: str, mesh: Mesh | None) -> tuple[DecoderFns, Params]:
    """The decoder and its parameters, spread over a mesh, or on one device without one."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    name = default_implementation(platform)
    if supported(name, platform, head_dim=checkpoint.config.head_dim, dtype=dtype) is not None:
        name = "blockwise"
    kernel = make_attention(name, sliding_window=checkpoint.config.sliding_window)
    split = None if mesh is None or mesh.size == 1 else mesh
    on_mesh: dict[str, Any] = {} if split is None else {"constrain": make_constrain(split)}
    decoder = build_decoder(
        checkpoint.config,
        compute_dtype=dtype,
        param_dtype=dtype,
        remat="none",
        attention=kernel if split is None else MeshAttention(kernel=kernel, mesh=split),
        **on_mesh,
    )
    abstract = decoder.abstract_params()
    shardings = None if mesh is None else tree_shardings(decoder.logical_dims(), abstract, mesh)
    return decoder, checkpoint.load_params(abstract, shardings, jnp.dtype(dtype))


def last_states(decoder: DecoderFns, params: Params, tokens: jax.Array, last: jax.Array) -> jax.Array:
    """Hidden states [N, D] of column `last` [N] of each row [N, L]; what lies behind it is not seen."""
    hidden = decoder.hidden(params, None, tokens, plain_places(*tokens.shape))
    return hidden[jnp.arange(len(last)), last]


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Host arrays, the same in every process, whole on every device of a mesh, or on one device without one."""
    return jax.device_put(tree) if mesh is None else put_global(tree, replicated(mesh))


def exact(decoder: DecoderFns) -> Any:
    """A context in which float32 means float32 also where matrix units would round their inputs by default."""
    return jax.default_matmul_precision("float32" if decoder.spec.compute_dtype == jnp.float32 else None)


class LastToken:
    """A forward pass over rows of any length. A row's shape depends on its own length alone, so does its result."""

    def __init__(
        self, forward: Forward, params: Any, *, batch_size: int, max_length: int, mesh: Mesh | None = None
    ) -> None:
        self._params, self._batch_size, self._max_length, self._mesh = params, batch_size, max_length, mesh
        self._forward = jax.jit(forward, out_shardings=None if mesh is None else replicated(mesh))

    def __call__(self, rows: Sequence[Sequence[int]], *args: np.ndarray, width: int = 1) -> np.ndarray:
        """[n, width] float64 for n rows of token ids; NaN for rows that are empty or longer than the limit."""
        lengths = [bucket(len(row), self._max_length) for row in rows]
        found = np.full((len(rows), width), np.nan)
        with Stage("judge", len(rows), enabled=jax.process_index() == 0) as stage:
            for length, chosen in _batches(lengths, self._batch_size):
                tokens, last = self._padded([rows[i] for i in chosen], length)
                values = self._forward(self._params, *replicate((tokens, last, *args), self._mesh))
                found[chosen] = np.asarray(values)[: len(chosen)]
                stage.advance(len(chosen))
        return found

    def _padded(self, rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [batch_size, length] and the columns [batch_size] of the last ones; what is left over is one token."""
        tokens = np.zeros((self._batch_size, length), np.int32)
        last = np.zeros(self._batch_size, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            last[i] = len(row) - 1
        return tokens, last


def bucket(length: int, longest: int) -> int | None:
    """The length of the row that holds so many tokens: few lengths, so few compilations; None if none does."""
    if not 1 <= length <= longest:
        return None
    return min(SHORTEST_ROW * 2 ** ((length - 1) // SHORTEST_ROW).bit_length(), longest)


def _batches(lengths: Sequence[int | None], size: int) -> Iterator[tuple[int, list[int]]]:
    """Rows of one length in batches, without those that have none."""
    order = sorted((length, i) for i, length in enumerate(lengths) if length is not None)
    for length, group in itertools.groupby(order, key=lambda item: item[0]):
        chosen = [i for _, i in group]
        yield from ((length, chosen[start : start + size]) for start in range(0, len(chosen), size))


def length_limit(checkpoint: Checkpoint, given: int | None) -> int:
    """The longest row. Raises JudgeError for more tokens than the model was made for."""
    most = checkpoint.config.max_position_embeddings
    if given is not None and given > most:
        raise JudgeError(f"max_length={given}: {checkpoint.path} reads {most} tokens at most; lower it")
    return most if given is None else given


def written_out(text: str, tokenizer: Any) -> str:
    """The text with special tokens of the tokenizer broken up: no answer can end its own turn or begin another's."""
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for token in sorted(specials, key=len, reverse=True):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
