"""From sources to the pairs of a split: read, split by prompt, apply the safety transform, mix by weight."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from jaxalign.data.files import read_records
from jaxalign.data.load_report import LoadReport, SourceReport
from jaxalign.data.ordering import permutation, unit_hash
from jaxalign.data.reading import to_pairs
from jaxalign.data.records import Record
from jaxalign.data.schema import DataError, Pair, Skipped, opening_key
from jaxalign.data.settings import DataConfig, SourceConfig

log = logging.getLogger(__name__)

Split = Literal["train", "heldout"]


def load_pairs(config: DataConfig, split: Split) -> tuple[list[Pair], LoadReport]:
    """The pairs of one epoch of a split, source after source, and what became of every row.

    Held out are the `heldout` sources, or of `train` the conversations whose first user turn hashes below
    `heldout_fraction`: the same ones whatever the seed, the other sources and the order of rows.
    Raises DataError on bad rows (on_error: raise), unreadable files, and splits without a pair.
    """
    if split == "heldout" and not config.has_heldout:
        remedy = "give data.heldout or data.heldout_fraction"
        raise DataError(
            "no held-out data", origin="data", got="none", expected="a held-out split", remedy=remedy
        )
    sources = config.heldout if split == "heldout" and config.heldout else config.train
    loaded = [_load_source(source, config, split) for source in sources]
    report = LoadReport(split, tuple(source_report for _, source_report in loaded))
    _refuse_empty(report, per_source=split == "train" or bool(config.heldout))
    # Held-out pairs count once each, whatever the weights of training.
    weights = [source.weight for source in sources] if split == "train" else [None] * len(sources)
    order = mix([len(pairs) for pairs, _ in loaded], weights, config.seed)
    for (_, source_report), rows in zip(loaded, order, strict=True):
        source_report.num_epoch = len(rows)
    for line in report.lines():
        log.log(logging.WARNING if report.errors else logging.INFO, line)
    return [pairs[row] for (pairs, _), rows in zip(loaded, order, strict=True) for row in rows], report


def mix(sizes: Sequence[int], weights: Sequence[float | None], seed: int) -> list[list[int]]:
    """The rows of each source that enter an epoch; without weights every row once.

    With weights, the smallest epoch in which the sources stand in that proportion and no row is left out: one
    source enters once, the others are repeated, and which rows get the odd repeat is drawn by the seed.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return [list(range(size)) for size in sizes]
    scale = max(size / weight for size, weight in zip(sizes, given, strict=True))
    order = []
    for i, (size, weight) in enumerate(zip(sizes, given, strict=True)):
        repeats, rest = divmod(max(size, round(weight * scale)), size)
        order.append(list(range(size)) * repeats + sorted(permutation(size, seed, i)[:rest].tolist()))
    return order


def safety_transform(pair: Pair) -> Pair | None:
    """SafeDPO's transform: the pair if its chosen response is safe, else swapped; None if both are unsafe."""
    if not pair.chosen_unsafe:
        return pair
    if pair.rejected_unsafe:
        return None
    return dataclasses.replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_unsafe=False,
        rejected_unsafe=True,
        chosen_score=pair.rejected_score,
        rejected_score=pair.chosen_score,
    )


def _load_source(source: SourceConfig, config: DataConfig, split: Split) -> tuple[list[Pair], SourceReport]:
    report = SourceReport(source.path or f"{source.name}[{source.split or 'train'}]")
    transform = config.safety_transform or source.view == "safedpo"
    kept = []
    for item in to_pairs(_counted(read_records(source), report), source, config):
        if isinstance(item, DataError):
            if config.on_error == "raise":
                raise item
            report.add_error(item)
        elif isinstance(item, Skipped):
            report.skipped[item.reason] += 1
        elif config.heldout_fraction is not None and _split_of(item, config.heldout_fraction) != split:
            report.num_other_split += 1
        else:
            pair = safety_transform(item) if transform else item
            report.add_pair(item, pair)
            kept += [pair] if pair is not None else []
    return kept, report


def _counted(records: Iterable[Record | DataError], report: SourceReport) -> Iterator[Record | DataError]:
    for record in records:
        report.num_rows += 1
        yield record


def _split_of(pair: Pair, heldout_fraction: float) -> Split:
    return "heldout" if unit_hash(opening_key(pair.prompt)) < heldout_fraction else "train"


def _refuse_empty(report: LoadReport, per_source: bool) -> None:
    empty = [source for source in report.sources if source.num_kept == 0]
    if not empty or (not per_source and len(empty) < len(report.sources)):
        return
    raise DataError(
        "no pairs left",
        origin=empty[0].name,
        got=f"none for the {report.split} split ({empty[0].line()})",
        expected="at least one pair",
        remedy="correct the data, or change view, heldout_fraction or on_error",
    )
