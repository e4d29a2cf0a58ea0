"""The pytrees that pass between data, losses and the train step, and the legend of dimension letters.

Legend: B pairs, N sequences, L tokens of a sequence, V vocabulary, D model width, F feed-forward width,
H query heads, K key/value heads in a model and harm categories everywhere else, R adapter rank.

Branch 0 of a pair is the chosen response, branch 1 the rejected one. This module must not import other parts
of jaxalign.
"""

import dataclasses
from typing import Any

import jax

Array = Any  # a jax.Array, or a numpy.ndarray on the host side


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
    """Preference pairs, padded on the right. A pair of weight 0 is padding and must not count anywhere.

    tokens          [B, 2, L] int32    prompt and response of each branch
    response_mask   [B, 2, L] bool     True at response tokens (end of sequence included)
    categories      [B, K]    float32  1 where the pair belongs to the harm category
    chosen_unsafe   [B]       float32  1 where the chosen response is unsafe
    rejected_unsafe [B]       float32  1 where the rejected response is unsafe
    weight          [B]       float32  1 for a real pair, 0 for padding
    reference_logps [B, 2]    float32  summed response log-probs under the reference, nats
    mi              [B, 2]    float32  mutual information of prompt and response, nats per token
    scores          [B, 2]    float32  score of each response, for losses that read one: a data score, or the
                                       margin reward of MODPO; zeros where there are none
    index           [B]       int32    row of the pair in its dataset, -1 for padding
    """

    tokens: Array
    response_mask: Array
    categories: Array
    chosen_unsafe: Array
    rejected_unsafe: Array
    weight: Array
    reference_logps: Array
    mi: Array
    scores: Array
    index: Array
