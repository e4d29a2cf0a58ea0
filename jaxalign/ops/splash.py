"""Attention by the splash kernel of Pallas, for TPUs: causal, with segments, on rows where no prompt is shared.

The kernel knows segments but not branches. So the prompts are repeated for their rejected responses within attention
alone: [prompt | chosen | rejected] becomes [prompt | chosen] [prompt | rejected], two sequences.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from jaxalign.batch import CHOSEN, PROMPT, REJECTED, Places
from jaxalign.ops.visibility import ATTENTION_RESULTS, Attention, check_shapes

LANES = 128
"""What the length of a row in the kernel must be a multiple of; rows are padded to it."""

DEFAULT_BLOCK_SIZE = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unfolding:
    """Where each of L tokens stands among U places, once the shared prompts of its row are repeated.

    source    [N, U] int32    the token at each place
    is_first  [N, U] bool     whether this is its first place
    first     [N, L] int32    the first place of each token; beyond U for some padding
    second    [N, L] int32    its second place; beyond U if it has none
    """

    source: jax.Array
    is_first: jax.Array
    first: jax.Array
    second: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """The sequences of the rows that the kernel works on: a query sees the keys of its own that are not later.

    sequence   [N, U] int32        the sequence at each place
    fits       [N]    bool         whether U places are enough
    unfolding  Unfolding | None    None where no prompt is repeated, and a place is a token
    """

    sequence: jax.Array
    fits: jax.Array
    unfolding: Unfolding | None


@dataclasses.dataclass(frozen=True)
class SplashAttention(Attention):
    """Attention on unfolded rows: memory linear in the length, blocks above the diagonal are skipped."""

    block_size: int = DEFAULT_BLOCK_SIZE
    interpret: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.block_size < 1 or self.block_size % LANES:
            raise ValueError(f"block_size: got {self.block_size}, expected a multiple of {LANES}")

    def prepare(self, places: Places) -> Sequences:
        """Places [N, L] -> the sequences of the rows."""
        L = places.segment.shape[1]
        unfolded_length = 2 * L if places.unfolded_length is None else places.unfolded_length
        padding = (0, 0), (0, _whole_lanes(L) - L)
        places = jax.tree.map(lambda x: jnp.pad(x, padding), places)
        sequence, is_shared = _sequences(places)
        if unfolded_length == L:
            return Sequences(sequence, ~is_shared.any(axis=1), None)
        return _unfolded(places, sequence, is_shared, _whole_lanes(unfolded_length))

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, prepared: Sequences) -> jax.Array:
        """See `Attention`. A row that needs more places than `Places.unfolded_length` says becomes NaN."""
        check_shapes(query, key, value)
        L, E = query.shape[1], query.shape[3]
        factor = jnp.where(prepared.fits, self.scale_for(E), jnp.nan)  # nothing is lost silently
        query *= factor.astype(query.dtype)[:, None, None, None]
        padding = (0, 0), (0, _whole_lanes(L) - L), (0, 0), (0, 0)
        query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
        if prepared.unfolding is not None:
            query, key, value = (_unfold(x, prepared.unfolding) for x in (query, key, value))
        mixed = self._kernel(query, key, value, prepared.sequence)
        if prepared.unfolding is not None:
            mixed = _fold(mixed, prepared.unfolding)
        return mixed[:, :L]

    def _kernel(self, query: jax.Array, key: jax.Array, value: jax.Array, sequence: jax.Array) -> jax.Array:
        """Causal attention within each sequence: [N, U, H, E]."""
        U, H = query.shape[1:3]
        window = None if self.sliding_window is None else self.sliding_window - 1
        mask = splash.LocalMask((U, U), (window, 0), offset=0)
        kernel = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * H),
            block_sizes=self._block_sizes(U),
            attn_logits_soft_cap=self.soft_cap,
            head_shards=1,  # of the heads that this device has: the mesh is the caller's
            q_seq_shards=1,
            residual_checkpoint_name=ATTENTION_RESULTS,
            interpret=self.interpret,
        )
        heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
        mixed = jax.vmap(kernel)(*heads_first, splash.SegmentIds(sequence, sequence))
        return mixed.swapaxes(1, 2)

    def _block_sizes(self, length: int) -> splash.BlockSizes:
        """The largest block that divides the length, and is at most what was asked for."""
        size = max(s for s in range(LANES, self.block_size + 1, LANES) if length % s == 0)
        return splash.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_q_dq=size,
            block_kv_dq=size,
        )


def _whole_lanes(length: int) -> int:
    return -(-length // LANES) * LANES


def _sequences(places: Places) -> tuple[jax.Array, jax.Array]:
    """The first sequence of each token, and whether it is a prompt's that has a second one: [N, L] each.

    The sequences of segment s are 2 s, [prompt | chosen], and 2 s + 1, [prompt | rejected]; padding is 0.
    """

    def has(branch: int) -> jax.Array:
        """Whether the segment of a token has a response of this branch."""
        by_segment = jax.vmap(lambda x, s: jax.ops.segment_max(x, s, num_segments=x.shape[0] + 1))
        found = by_segment((places.branch == branch).astype(jnp.int32), places.segment)
        return jnp.take_along_axis(found, places.segment, axis=1) > 0

    is_prompt = (places.branch == PROMPT) & (places.segment > 0)
    has_rejected = has(REJECTED)
    in_second = has_rejected & jnp.where(is_prompt, ~has(CHOSEN), places.branch == REJECTED)
    return 2 * places.segment + in_second.astype(jnp.int32), is_prompt & has_rejected & ~in_second


def _unfolded(places: Places, sequence: jax.Array, is_shared: jax.Array, length: int) -> Sequences:
    """The second copies of the prompts, then all tokens, sorted by sequence: so in each the prompt comes first."""
    L = sequence.shape[1]
    last = np.iinfo(np.int32).max
    copies = jnp.where(is_shared, sequence + 1, last)
    tokens = jnp.where(
        places.segment > 0, sequence, last - 1
    )  # padding after all sequences, then what is no copy
    keys = jnp.concatenate([copies, tokens], axis=1)
    order = jnp.argsort(keys, axis=1, stable=True).astype(jnp.int32)
    place = jnp.argsort(order, axis=1).astype(jnp.int32)
    order = order[:, :length]
    unfolding = Unfolding(
        source=order % L,
        is_first=order >= L,
        first=place[:, L:],
        second=jnp.where(is_shared, place[:, :L], length),
    )
    fits = (keys < last - 1).sum(axis=1) <= length
    return Sequences(jnp.take_along_axis(keys, order, axis=1), fits, unfolding)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [N, L, ...] at the columns [N, U], zero where they lie beyond L."""
    return jax.vmap(lambda row, at: jnp.take(row, at, axis=0, mode="fill", fill_value=0))(x, index)


# Both ways gather, forward and backward: TPUs are slow at the scatter that is the derivative of a gather.
@jax.custom_vjp
def _unfold(x: jax.Array, unfolding: Unfolding) -> jax.Array:
    """[N, L, ...] -> [N, U, ...]: each token at its places."""
    return _take(x, unfolding.source)


def _unfold_backward(unfolding: Unfolding, grad: jax.Array) -> tuple[jax.Array, None]:
    return _take(grad, unfolding.first) + _take(grad, unfolding.second), None


_unfold.defvjp(lambda x, unfolding: (_unfold(x, unfolding), unfolding), _unfold_backward)


@jax.custom_vjp
def _fold(x: jax.Array, unfolding: Unfolding) -> jax.Array:
    """[N, U, ...] -> [N, L, ...]: what stands at the first place of each token."""
    return _take(x, unfolding.first)


def _fold_backward(unfolding: Unfolding, grad: jax.Array) -> tuple[jax.Array, None]:
    is_first = jnp.expand_dims(unfolding.is_first, range(2, grad.ndim))
    return jnp.where(is_first, _take(grad, unfolding.source), 0), None


_fold.defvjp(lambda x, unfolding: (_fold(x, unfolding), unfolding), _fold_backward)
