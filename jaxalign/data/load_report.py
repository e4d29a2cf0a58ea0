"""What became of every row of every source while pairs were loaded. It counts and decides nothing."""

from collections import Counter
from dataclasses import dataclass, field

from jaxalign.data.schema import IDENTICAL, NO_CATEGORY, DataError, Pair


@dataclass(slots=True)
class CategoryCount:
    """Pairs of one category before the safety transform, and what the transform did to them."""

    pairs: int = 0
    chosen_unsafe: int = 0
    both_unsafe: int = 0
    swapped: int = 0
    dropped: int = 0
    identical: int = 0  # bad rows, not among the pairs; counted in both splits of one source


@dataclass(slots=True)
class SourceReport:
    """The rows of one source, seen from one split."""

    name: str
    num_rows: int = 0  # rows read
    num_kept: int = 0  # pairs of this split
    num_epoch: int = 0  # pairs that one epoch holds of it, after mixing by weight
    num_other_split: int = 0  # pairs on the other side of heldout_fraction
    num_swapped: int = 0
    num_dropped: int = 0  # both responses unsafe
    skipped: Counter[str] = field(default_factory=Counter)  # left out by a rule of the format or view
    errors: Counter[str] = field(default_factory=Counter)  # bad rows, skipped under on_error: skip
    examples: dict[str, DataError] = field(default_factory=dict)  # the first error of each reason
    by_category: dict[str, CategoryCount] = field(default_factory=dict)

    def add_error(self, error: DataError) -> None:
        """Count a bad row."""
        self.errors[error.reason] += 1
        self.examples.setdefault(error.reason, error)
        if error.reason == IDENTICAL:
            for name in error.categories or (NO_CATEGORY,):
                self.by_category.setdefault(name, CategoryCount()).identical += 1

    def add_pair(self, before: Pair, after: Pair | None) -> None:
        """Count a pair of this split; `after` is what the safety transform made of it."""
        swapped = after is not None and after.chosen_unsafe != before.chosen_unsafe
        self.num_kept += after is not None
        self.num_swapped += swapped
        self.num_dropped += after is None
        for name in before.categories or (NO_CATEGORY,):
            count = self.by_category.setdefault(name, CategoryCount())
            count.pairs += 1
            count.chosen_unsafe += before.chosen_unsafe
            count.both_unsafe += before.chosen_unsafe and before.rejected_unsafe
            count.swapped += swapped
            count.dropped += after is None

    def line(self) -> str:
        """All counts that are not zero, in one line of text."""
        parts = [f"{self.num_rows} rows", f"{self.num_kept} pairs kept", f"{self.num_epoch} in an epoch"]
        counts = {"in the other split": self.num_other_split, "swapped": self.num_swapped}
        counts["dropped (both responses unsafe)"] = self.num_dropped
        counts |= {f"skipped ({reason})": number for reason, number in self.skipped.items()}
        counts |= {f"bad rows skipped ({reason})": number for reason, number in self.errors.items()}
        parts += [f"{number} {what}" for what, number in counts.items() if number]
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of the rows of all sources of one split."""

    split: str
    sources: tuple[SourceReport, ...]

    @property
    def num_pairs(self) -> int:
        """Pairs in one epoch."""
        return sum(source.num_epoch for source in self.sources)

    @property
    def errors(self) -> Counter[str]:
        """Bad rows by reason."""
        return sum((source.errors for source in self.sources), Counter())

    @property
    def by_category(self) -> dict[str, CategoryCount]:
        """Counts of each category over all sources, in the order of first sight."""
        total: dict[str, CategoryCount] = {}
        for source in self.sources:
            for name, count in source.by_category.items():
                entry = total.setdefault(name, CategoryCount())
                for key in CategoryCount.__slots__:
                    setattr(entry, key, getattr(entry, key) + getattr(count, key))
        return total

    def lines(self) -> list[str]:
        """One line of text per source, for logs."""
        return [f"{self.split}: {source.line()}" for source in self.sources]
