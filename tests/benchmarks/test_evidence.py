"""The tables of docs/evidence.md say what the committed results of the study say."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
QUOTES = (
    r"\n[^\n]*`benchmarks/results/(\w+)/results.md`[^\n]*:\n\n(?=\|)"  # the line above a table that is quoted
)
TITLES = ("Methods", "Ablations", "Maximum of the margins")
Table = dict[str, dict[str, str]]


def first_table(text: str) -> Table:
    """The first table of a text: row by first cell, column by title, emphasis left out."""
    lines = text[text.index("\n|") + 1 :].split("\n\n")[0].replace("*", "").splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def expected(results: str, row: str) -> dict[str, str]:
    """What the results say of a row of the page: a method, or `method minus another`."""
    name, _, other = row.partition(" minus ")
    if other:
        return first_table(results.split(f"\n### {name}\n")[1])[f"minus {other}"]
    parts = dict(part.split("\n", 1) for part in results.split("\n## ")[1:])
    tables = [first_table("\n" + parts[title]) for title in TITLES if title in parts]
    chosen = re.search(rf"^\* {re.escape(name)} \((\d+) of \d+; (\d+) %", results, re.M)
    settings = dict(zip(("settings", "sure"), chosen.groups(), strict=True)) if chosen else {}
    return next(table[name] for table in tables if name in table) | settings


def quoted() -> list[tuple[str, Table]]:
    parts = re.split(QUOTES, PAGE)
    return [(name, first_table("\n" + text)) for name, text in zip(parts[1::2], parts[2::2], strict=True)]


@pytest.mark.parametrize(("name", "table"), quoted())
def test_table_of_the_page_quotes_the_results(name, table):
    results = (ROOT / "benchmarks" / "results" / name / "results.md").read_text(encoding="utf-8")
    for row, cells in table.items():
        found = expected(results, row)
        for title, shown in cells.items():
            whole = found[title].rstrip("!")
            assert shown in {whole, whole.split(" ")[0]}, (row, title)


def test_page_quotes_methods_and_differences_of_both_worlds_and_the_ablations():
    assert [name for name, _ in quoted()] == [
        *["category_gap", "category_gap"],  # methods, differences
        *["category_gap_rare64", "category_gap_rare64"],
        *["category_gap", "category_gap_rare64"],  # the maximum of the margins
        "category_gap",  # ablations
    ]


@pytest.mark.parametrize(("column", "name"), [(0, "category_gap"), (1, "category_gap_rare64")])
def test_readme_quotes_the_results(column, name):
    table = first_table((ROOT / "README.md").read_text(encoding="utf-8").split("\n## Does it work\n")[1])
    methods = (
        "dpo",
        "ipo",
        "safe_dpo",
        "bfpo",
        "simpo",
        "cat_dpo probe",
        "cat_dpo probe, one category",
        "b_dpo",
    )
    results = (ROOT / "benchmarks" / "results" / name / "results.md").read_text(encoding="utf-8")
    for cells, method in zip(table.values(), methods, strict=True):
        found = expected(results, method)
        shown = ", ".join(found[title].split(" ")[0] for title in ("gap", "helpful"))
        assert list(cells.values())[column] == shown, method
