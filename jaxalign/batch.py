"""The pytrees that pass between data, losses and the train step, and the legend of dimension letters.

Legend: B pairs, N rows, L tokens of a row, G groups of rows, S response tokens of a group, M micro-batches,
V vocabulary, D model width, F feed-forward width, H query heads, K key/value heads in a model and harm
categories everywhere else, E width of a head, R adapter rank.

This module must not import other parts of jaxalign.
"""

import dataclasses
from typing import Any

import jax

Array = Any  # a jax.Array, or a numpy.ndarray on the host side

PROMPT, CHOSEN, REJECTED = 0, 1, 2
"""Values of Places.branch."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where each token of a row stands: all that attention and positions depend on.

    A token sees another one of its own segment that is not later in the row and belongs to the prompt or to its own
    branch. So a segment may hold a prompt with both of its responses, [prompt | chosen | rejected], or just one.

    segment   [N, L] int32    1, 2, ... within a row; 0 for padding
    branch    [N, L] int32    PROMPT, CHOSEN or REJECTED
    position  [N, L] int32    from 0 in each sequence: the chosen and the rejected response both go on from the prompt

    unfolded_length, which is static, bounds the tokens of a row once every prompt is repeated for its rejected
    response (L where none is shared); None where it is not known, at most 2 L.
    """

    segment: Array
    branch: Array
    position: Array
    unfolded_length: int | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The tokens of the pairs of a batch in rows, and which of the model's states predict their responses.

    The N rows form G groups of N / G neighbours. Group g lists the S response tokens (or fewer) of its rows:

    tokens     [N, L] int32    token ids
    places     Places [N, L]
    predictor  [G, S] int32    the token before the response token: row within the group * L + column
    target     [G, S] int32    the response token (end of sequence included)
    response   [G, S] int32    2 * pair + 0 for a chosen, + 1 for a rejected response; -1 for padding
    """

    tokens: Array
    places: Places
    predictor: Array
    target: Array
    response: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Preference pairs and their tokens. A pair of weight 0 is padding and must not count anywhere.

    A step takes the micro-batches of an update stacked: every array then has M in front.

    rows            Rows               the pairs in any layout: how they lie there changes no figure
    alone           Rows | None        the same responses after the empty prompt, where the policy's MI is read
    lengths         [B, 2] int32       tokens of each response
    categories      [B, K] float32     1 where the pair belongs to the harm category
    chosen_unsafe   [B]    float32     1 where the chosen response is unsafe
    rejected_unsafe [B]    float32     1 where the rejected response is unsafe
    weight          [B]    float32     1 for a real pair, 0 for padding
    reference_logps [B, 2] float32     summed response log-probs under the reference, nats
    mi              [B, 2] float32     mutual information of prompt and response, nats per token
    scores          [B, 2] float32     score of each response, for losses that read one: a data score, or the
                                       margin reward of MODPO; zeros where there are none
    index           [B]    int32       row of the pair in its dataset, -1 for padding
    """

    rows: Rows
    alone: Rows | None
    lengths: Array
    categories: Array
    chosen_unsafe: Array
    rejected_unsafe: Array
    weight: Array
    reference_logps: Array
    mi: Array
    scores: Array
    index: Array
