"""docs/proof.md quotes what `python -m tests.losses.figures --markdown` gives."""

import re
from pathlib import Path

import pytest

from tests.losses import trl_losses
from tests.losses.figures import Count, Deviation, counts, figures, quoted

PAGE = Path(__file__).resolve().parents[2] / "docs" / "proof.md"
REMEDY = "docs/proof.md is behind: put in what `python -m tests.losses.figures --markdown` prints"


def quoted_rows() -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+?) \| ([\d.e+-]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def test_page_quotes_the_counts():
    rows = quoted_rows()
    assert {count.what: rows.get(count.what) for count in counts()} == {
        count.what: str(count.value) for count in counts()
    }, REMEDY


@pytest.mark.slow  # half a minute, and the laws bound the same deviations
@trl_losses.NEEDED
def test_page_quotes_deviations_that_hold():
    rows, found = quoted_rows(), figures()
    assert set(rows) == {figure.what for figure in found}, REMEDY
    measured = {figure.what: figure.value for figure in found if isinstance(figure, Deviation)}
    beyond = {what: value for what, value in measured.items() if value > float(rows[what])}
    assert not beyond, f"{beyond} deviate more than the page says: {rows}"
    assert sum(isinstance(figure, Count) for figure in found) + len(measured) == len(found)


@pytest.mark.parametrize(
    ("deviation", "expected"), [(1e-6, 2e-6), (4.9e-7, 1e-6), (2.6e-6, 1e-5), (1.1e-15, 5e-15)]
)
def test_quoted_deviation_is_at_least_twice_what_was_measured(deviation, expected):
    assert quoted(deviation) == expected
