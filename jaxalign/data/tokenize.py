"""From pairs of text to the tokenised data set, and the checks that need tokens. No padding, no batches."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.encoder import Encoder
from jaxalign.data.schema import DataError, Pair
from jaxalign.data.settings import DataConfig
from jaxalign.progress import Stage

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
    skipped: dict[int, DataError] = {}
    rows = []
    with Stage("tokenize", len(pairs)) as stage:
        for i, row in enumerate(_rows(pairs, encoder)):
            stage.advance()
            if isinstance(row, _Row):
                rows.append(row)
            elif config.on_error == "raise":
                raise row
            else:
                skipped[i] = row
    if not rows:
        raise DataError(
            "no pairs left",
            origin="data",
            got="no pair after tokenising",
            expected="at least one",
            remedy="see the log",
        )
    dataset = _dataset(rows, encoder, config, skipped)
    for reason, number in Counter(error.reason for error in skipped.values()).items():
        log.warning("%d pairs skipped while tokenising (%s)", number, reason)
    for line in dataset.truncation().lines():
        log.info(line)
    return dataset


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
    rows: list[_Row], encoder: Encoder, config: DataConfig, skipped: dict[int, DataError]
) -> TokenizedDataset:
    names = config.category_names
    scores = [(row.pair.chosen_score, row.pair.rejected_score) for row in rows]
    num_unscored = sum(None in pair for pair in scores)
    return TokenizedDataset(
        prompt_ids=tuple(np.array(row.prompt, np.int32) for row in rows),
        chosen_ids=tuple(np.array(row.chosen, np.int32) for row in rows),
        rejected_ids=tuple(np.array(row.rejected, np.int32) for row in rows),
        categories=np.array([[name in row.pair.categories for name in names] for row in rows], np.float32),
        chosen_unsafe=np.array([row.pair.chosen_unsafe for row in rows], np.float32),
        rejected_unsafe=np.array([row.pair.rejected_unsafe for row in rows], np.float32),
        category_names=names,
        pad_id=encoder.pad_id,
        empty_prompt_ids=np.array(encoder.empty_prompt_ids, np.int32),
        origins=tuple(row.pair.origin for row in rows),
        num_cut=np.array([row.num_cut for row in rows], np.int32),
        skipped=tuple(map(str, skipped.values())),
        skipped_rows=tuple(skipped),
        scores=None if num_unscored else np.array(scores, np.float32),
        num_unscored=num_unscored,
    )
