"""What a run can be refused for once its data are tokenised, and which pairs are left out. Nothing is computed here."""

import dataclasses
import logging

import numpy as np

from jaxalign.config import Config, ConfigError
from jaxalign.data.ordering import permutation
from jaxalign.hf.checkpoint import Checkpoint
from jaxalign.run.data import RunData

log = logging.getLogger(__name__)


def usable_data(data: RunData, checkpoint: Checkpoint, config: Config) -> RunData:
    """The data without the pairs that the loss cannot use. Raises ConfigError for what keeps a run from starting."""
    data = usable_scores(data, config)
    check_vocabulary(data, checkpoint, config)
    check_context(data, checkpoint)
    check_sampling(data, config)
    check_labels(data, config)
    return data


def limited_heldout(data: RunData, config: Config) -> RunData:
    """At most `evaluation.max_pairs` held-out pairs, a choice that depends on `train.seed` alone."""
    limit = config.evaluation.max_pairs
    if data.heldout is None or limit is None or limit >= len(data.heldout):
        return data
    rows = np.sort(permutation(len(data.heldout), config.train.seed)[:limit])
    log.info("heldout: evaluating %d of %d pairs (evaluation.max_pairs)", limit, len(data.heldout))
    return dataclasses.replace(data, heldout=data.heldout.select(rows))


def check_sampling(data: RunData, config: Config) -> None:
    """Raise ConfigError if pairs are to be drawn by category and none has one."""
    if config.data.sampling is not None and not data.train.categories.any():
        raise ConfigError("data.sampling draws by category, but no training pair has one; remove it")


def check_labels(data: RunData, config: Config) -> None:
    """Raise ConfigError if the loss would be plain DPO, because no training pair has the labels that it reads."""
    train, name = data.train, config.loss.name
    labelled = train.categories.any(axis=1)
    mixed = train.chosen_unsafe != train.rejected_unsafe
    needs = {
        "safe_dpo": (mixed, "exactly one unsafe response"),
        "cat_dpo": (labelled & mixed, "a category and exactly one unsafe response"),
        "cat_b_dpo": (labelled & mixed, "a category and exactly one unsafe response"),
        "bfpo": ((train.chosen_unsafe > 0) | (train.rejected_unsafe > 0), "an unsafe response"),
        "group_dro": (labelled, "a category"),
    }
    if name in needs and not needs[name][0].any():
        raise ConfigError(
            f"loss {name} acts on pairs with {needs[name][1]}, and no training pair is one; check the labels and "
            "data.categories, or use a loss that reads none"
        )


def check_vocabulary(data: RunData, checkpoint: Checkpoint, config: Config) -> None:
    """Raise ConfigError if the tokenizer gives ids that the model has no embedding for."""
    largest = max(
        int(ids.max())
        for dataset in data.splits.values()
        for part in (dataset.prompt_ids, dataset.chosen_ids, dataset.rejected_ids)
        for ids in part
    )
    if largest >= checkpoint.config.vocab_size:
        raise ConfigError(
            f"the tokenizer gives token id {largest}, the model's vocabulary has {checkpoint.config.vocab_size}; "
            f"check the tokenizer in {config.model.tokenizer or config.model.path}"
        )


def check_context(data: RunData, checkpoint: Checkpoint) -> None:
    """Raise ConfigError if a pair is longer than the model's context."""
    limit = checkpoint.config.max_position_embeddings
    longest = max(int(dataset.row_lengths.max()) for dataset in data.splits.values())
    if longest > limit:
        raise ConfigError(
            f"the longest pair has {longest} tokens, the model was made for {limit}; "
            "lower data.max_prompt_length or data.max_response_length"
        )


def usable_scores(data: RunData, config: Config) -> RunData:
    """The data, without the training pairs whose scores the loss cannot use, if data.on_error says skip.

    Raises ConfigError if the loss reads scores that the training pairs do not have, or cannot use them.
    """
    if config.loss.reads != "scores":
        return data
    scores, loss = data.train.scores, config.loss.name
    if scores is None:
        raise ConfigError(
            f"loss {loss} reads a score of both responses in every pair, and not every training pair has them; see "
            "`chosen_score` and `rejected_score` of the data formats, or use another loss"
        )
    wrong = np.flatnonzero(scores[:, 0] <= scores[:, 1])
    if loss != "odpo" or not wrong.size:
        return data
    if config.data.on_error == "skip" and wrong.size < len(data.train):
        log.warning(
            "train: %d pairs skipped whose chosen score is not above the rejected one (odpo)", wrong.size
        )
        kept = np.flatnonzero(scores[:, 0] > scores[:, 1])
        return dataclasses.replace(data, train=data.train.select(kept))
    first = int(wrong[0])
    raise ConfigError(
        f"loss odpo takes the logarithm of chosen minus rejected score, and {wrong.size} of {len(data.train)} pairs "
        f"have no chosen score above the rejected one, first {data.train.origins[first]}: {scores[first, 0]} and "
        f"{scores[first, 1]}; choose by score, or set data.on_error: skip to leave such pairs out"
    )
