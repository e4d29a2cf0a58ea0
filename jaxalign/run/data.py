"""The tokenised data of a run, from its configuration."""

import dataclasses
import logging
from typing import Any

from jaxalign.config import Config
from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.load_report import LoadReport
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import Split, load_pairs
from jaxalign.data.tokenize import tokenize_pairs
from jaxalign.hf import read

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunData:
    """Train and held-out pairs with the report of how they were read; no held-out pairs if none are configured."""

    train: TokenizedDataset
    heldout: TokenizedDataset | None
    reports: tuple[LoadReport, ...]

    @property
    def splits(self) -> dict[str, TokenizedDataset]:
        """The splits that there are, by name."""
        return {"train": self.train, **({"heldout": self.heldout} if self.heldout is not None else {})}


def load_split(config: DataConfig, tokenizer: Any, split: Split) -> tuple[TokenizedDataset, LoadReport]:
    """Read and tokenise one split; what was left out or cut is logged."""
    pairs, report = load_pairs(config, split)
    dataset = tokenize_pairs(pairs, tokenizer, config)
    log.info("%s: %d pairs tokenised", split, len(dataset))
    return dataset, report


def load_data(config: DataConfig, tokenizer: Any) -> RunData:
    """Both splits."""
    train, train_report = load_split(config, tokenizer, "train")
    if not config.has_heldout:
        return RunData(train, None, (train_report,))
    heldout, heldout_report = load_split(config, tokenizer, "heldout")
    return RunData(train, heldout, (train_report, heldout_report))


def load_tokenizer(config: Config) -> Any:
    """The tokenizer of the model, or the one that the configuration names. Raises CheckpointError."""
    if config.model.tokenizer is not None:
        return read.load_tokenizer(config.model.tokenizer)
    return read.open_checkpoint(config.model.path).load_tokenizer()
