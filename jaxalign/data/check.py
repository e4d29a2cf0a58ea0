"""What is wrong with the data and what is worth knowing, before any training. Tables only: nothing is changed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign.data.dataset import TokenizedDataset
from jaxalign.data.load_report import CategoryCount, LoadReport
from jaxalign.data.schema import NO_CATEGORY, DataError, Pair, prompt_key
from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import Split, load_pairs
from jaxalign.data.tokenize import tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEAR_IDENTICAL = 0.9  # word overlap of two responses from which a pair says little
LENGTH_BIAS = (
    0.7  # share of pairs with the longer response on one side from which length alone tells the sides
)
NUM_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class TextCounts:
    """Texts of the pairs of one category as they enter an epoch; lengths in tokens."""

    pairs: int
    prompts: int
    repeated: int  # rows that say what an earlier one says; the repeats of a weighted source do not count
    near_identical: int
    chosen_length: float
    rejected_length: float
    chosen_longer: float  # share of pairs, ties counted as one half
    cut: tuple[int, int, int]  # prompts, chosen, rejected


@dataclass(frozen=True)
class SplitCheck:
    """The findings about one split; texts by category, the entry "" for all pairs."""

    report: LoadReport
    texts: dict[str, TextCounts]


@dataclass(frozen=True)
class DataCheck:
    """All findings. Errors stop a run or spoil its figures; warnings are for the reader to judge."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    splits: list[SplitCheck] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def render(self, console: Console) -> None:
        """Print tables, warnings, errors and the verdict."""
        for split in self.splits:
            for line in split.report.lines():
                console.print(Text(line))
            console.print(_label_table(split.report))
            console.print(_text_table(split))
        # Text() because messages quote the data, which may hold what rich takes for markup.
        for warning in self.warnings:
            console.print(Text(f"warning: {warning}", style="yellow"))
        for error in self.errors:
            console.print(Text(f"error: {error}", style="red"))
        verdict = "data are sound" if self.ok else "data are not fit for training"
        console.print(f"{verdict}: {len(self.errors)} errors, {len(self.warnings)} warnings")


def check_data(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> DataCheck:
    """Read, transform and tokenise all splits and report what was found; data errors are collected, not raised."""
    check = DataCheck()
    pairs: dict[Split, list[Pair]] = {}
    splits: tuple[Split, ...] = ("train", "heldout") if config.has_heldout else ("train",)
    for split in splits:
        try:
            pairs[split] = _check_split(config, tokenizer, split, check)
        except DataError as error:
            if str(error) not in check.errors:  # both splits of one source fail alike
                check.errors.append(str(error))
    if len(pairs) == 2:
        _check_overlap(pairs["train"], pairs["heldout"], check)
        _check_coverage(pairs["train"], pairs["heldout"], check)
    return check


def _check_split(
    config: DataConfig, tokenizer: "PreTrainedTokenizerBase", split: Split, check: DataCheck
) -> list[Pair]:
    skipping = config.model_copy(update={"on_error": "skip"})  # to see all errors, not the first alone
    bad_rows = check.errors if config.on_error == "raise" else check.warnings
    pairs, report = load_pairs(skipping, split)
    for source in report.sources:
        for reason, error in source.examples.items():
            message = f"{source.errors[reason]} rows with {reason}, the first: {error}"
            if message not in bad_rows:  # both splits of one source see the same bad rows
                bad_rows.append(message)
    dataset = tokenize_pairs(pairs, tokenizer, skipping)
    bad_rows += [f"{split}: {message}" for message in dataset.skipped[:NUM_SHOWN]]
    if len(dataset.skipped) > NUM_SHOWN:
        bad_rows.append(f"{split}: {len(dataset.skipped) - NUM_SHOWN} more pairs that cannot be tokenised")
    skipped_rows = set(dataset.skipped_rows)
    pairs = [pair for i, pair in enumerate(pairs) if i not in skipped_rows]  # as in the data set
    texts = _text_counts(pairs, dataset)
    check.splits.append(SplitCheck(report, texts))
    check.warnings.extend(f"{split}: {warning}" for warning in _warnings(pairs, texts[""]))
    return pairs


def word_overlap(first: str, second: str) -> float:
    """Jaccard index of the words of two texts, repeats counted and letter case ignored: 1 if they are the same."""
    a, b = Counter(first.casefold().split()), Counter(second.casefold().split())
    return (a & b).total() / max((a | b).total(), 1)


def _text_counts(pairs: Sequence[Pair], dataset: TokenizedDataset) -> dict[str, TextCounts]:
    lengths, cut = dataset.lengths, dataset.num_cut > 0
    rows = {"": np.ones(len(dataset), bool)}
    rows |= {name: dataset.categories[:, k] > 0 for k, name in enumerate(dataset.category_names)}
    rows[NO_CATEGORY] = dataset.categories.sum(axis=1) == 0
    counts = {}
    for name, member in rows.items():
        if not member.any():
            continue
        group = [pair for pair, inside in zip(pairs, member, strict=True) if inside]
        chosen, rejected = lengths[member, 1], lengths[member, 2]
        prompts, chosen_cut, rejected_cut = cut[member].sum(axis=0).tolist()
        counts[name] = TextCounts(
            pairs=len(group),
            prompts=len({prompt_key(pair.prompt) for pair in group}),
            repeated=_num_repeated(group),
            near_identical=sum(word_overlap(pair.chosen, pair.rejected) >= NEAR_IDENTICAL for pair in group),
            chosen_length=float(chosen.mean()),
            rejected_length=float(rejected.mean()),
            chosen_longer=float((np.sign(chosen - rejected).mean() + 1) / 2),
            cut=(prompts, chosen_cut, rejected_cut),
        )
    return counts


def _num_repeated(pairs: Sequence[Pair]) -> int:
    rows = {id(pair): pair for pair in pairs}.values()  # a weighted source repeats the very same objects
    return len(rows) - len({(pair.prompt, pair.chosen, pair.rejected) for pair in rows})


def _warnings(pairs: Sequence[Pair], total: TextCounts) -> list[str]:
    harmless = sum(bool(p.categories) and not (p.chosen_unsafe or p.rejected_unsafe) for p in pairs)
    unlabeled = sum(not p.categories and (p.chosen_unsafe or p.rejected_unsafe) for p in pairs)
    safer_lost = sum(p.chosen_unsafe and not p.rejected_unsafe for p in pairs)
    numbers = {
        "pairs repeat an earlier one (the same prompt, chosen and rejected response)": total.repeated,
        f"pairs are near-identical (word overlap of at least {NEAR_IDENTICAL})": total.near_identical,
        "pairs have a category though both responses are safe: no margin acts on them": harmless,
        "pairs have an unsafe response and no category: no margin acts on them": unlabeled,
        "pairs prefer an unsafe response to a safe one (data.safety_transform swaps these)": safer_lost,
        "prompts are cut at data.max_prompt_length": total.cut[0],
        "responses are cut at data.max_response_length": total.cut[1] + total.cut[2],
    }
    found = [f"{number} {what}" for what, number in numbers.items() if number]
    longer = total.chosen_longer
    if not 1 - LENGTH_BIAS <= longer <= LENGTH_BIAS:
        found.append(
            f"the chosen response is the longer one in {longer:.0%} of pairs: length alone tells them"
        )
    return found


def _check_overlap(train: Sequence[Pair], heldout: Sequence[Pair], check: DataCheck) -> None:
    seen = {prompt_key(pair.prompt): pair.origin for pair in train}
    shared = {key: pair.origin for pair in heldout if (key := prompt_key(pair.prompt)) in seen}
    if shared:
        examples = ", ".join(f"{origin} and {seen[key]}" for key, origin in list(shared.items())[:NUM_SHOWN])
        check.errors.append(
            f"{len(shared)} prompts are in train and in heldout, such as those of {examples}; "
            "take them out of one, or split one source with data.heldout_fraction"
        )


def _check_coverage(train: Sequence[Pair], heldout: Sequence[Pair], check: DataCheck) -> None:
    known = {name for pair in heldout for name in pair.categories}
    missing = sorted({name for pair in train for name in pair.categories} - known)
    if missing:
        check.warnings.append(f"no held-out pair of {', '.join(missing)}: no figure can be given for these")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(columns[0], min_width=16, overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _label_table(report: LoadReport) -> Table:
    columns = ("pairs", "chosen\nunsafe", "both\nunsafe", "swapped", "dropped", "identical")
    table = _table(
        f"{report.split}: labels before the safety transform, and what it did", ("category", *columns)
    )
    for name, count in sorted(report.by_category.items(), key=lambda item: -item[1].pairs):
        values = [getattr(count, key) for key in CategoryCount.__slots__]
        table.add_row(Text(name), *map(str, values))
    return table


def _text_table(split: SplitCheck) -> Table:
    columns = (
        "pairs",
        "prompts",
        "re-\npeated",
        "near-\nidentical",
        "tokens\nchosen",
        "tokens\nrejected",
        "chosen\nlonger",
        "cut\np/c/r",
    )
    table = _table(f"{split.report.split}: texts of one epoch", ("category", *columns))
    for name, count in sorted(split.texts.items(), key=lambda item: (item[0] != "", -item[1].pairs)):
        table.add_row(
            Text(name or "all"),
            str(count.pairs),
            str(count.prompts),
            str(count.repeated),
            str(count.near_identical),
            f"{count.chosen_length:.1f}",
            f"{count.rejected_length:.1f}",
            f"{count.chosen_longer:.0%}",
            "/".join(map(str, count.cut)),
        )
    return table
