"""The training batches of a run: its loader, and what is said of the rows that it makes."""

import logging

from jaxalign.config import Config, ConfigError
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.loader import PairLoader

log = logging.getLogger(__name__)

MUCH_PADDING = 0.15  # a share of row tokens that is worth a warning: they cost as much time as others


def make_loader(config: Config, train: TokenizedDataset, groups: int, multiple: int) -> PairLoader:
    """Training batches by step, for that many groups of rows; warns of much padding.

    Raises ConfigError if a pair does not fit into a row.
    """
    try:
        loader = PairLoader(
            train,
            batch_size=config.train.batch_size,
            rows=config.rows,
            num_micro_batches=config.train.num_micro_batches,
            num_groups=groups,
            multiple=multiple,
            num_steps=config.train.num_steps,
            num_epochs=config.train.num_epochs,
            seed=config.train.seed,
            sampling=config.data.sampling,
            alone=config.adaptive.mi_source == "policy",
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if loader.padding is not None and loader.padding > MUCH_PADDING:
        log.warning("%s", _padding_warning(config, loader, loader.padding))
    return loader


def describe_rows(config: Config, loader: PairLoader) -> str:
    """The steps of a run and the shape of their rows on one line, with how much of them is padding."""
    shape, padding = loader.shape, loader.padding
    return (
        f"{loader.num_steps} steps of at most {config.train.batch_size} pairs: {config.train.num_micro_batches} x "
        f"{shape.num_rows} rows of {shape.length} tokens"
        + ("" if padding is None else f", {padding:.1%} of them padding")
    )


def _padding_warning(config: Config, loader: PairLoader, padding: float) -> str:
    origin, longest = loader.longest
    if config.rows.layout == "padded":
        remedy = "set rows.layout: packed"
    elif config.rows.length is not None:
        remedy = "set rows.length: null, which chooses one for the data"
    else:
        remedy = (
            "lower data.max_prompt_length or data.max_response_length, leave out the longest pairs, or take more "
            "pairs at a time (train.batch_size / train.num_micro_batches)"
        )
    return (
        f"{padding:.1%} of the tokens in training rows are padding, which takes as much time as any others: the "
        f"longest pair, {origin}, has {longest} tokens in a row of {loader.shape.length}; {remedy}"
    )
