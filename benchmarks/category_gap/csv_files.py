"""What the tables are made of, for others to make their own: runs.csv, a line a test run, and tuning.csv, a setting."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from choosing import scores_of_settings
from metrics import SUMMARIES, summary
from plan import Plan, Row
from results import Results
from world import NAMES

from jaxalign.files import write_whole


def write_csv_files(folder: Path, plan: Plan, results: Results) -> None:
    """Both files, in the folder. Rates are shares."""
    _write(folder / "runs.csv", [_run(row) for row in results.shown if row["phase"] != "tune"])
    _write(folder / "tuning.csv", _settings(plan, results))


def _run(row: Row) -> dict[str, object]:
    """Figures of one run on a test seed, with the safe rate of each category."""
    rates = dict(zip(NAMES, row["figures"]["safe"], strict=True))
    found = {name: f"{x:.5f}" for name, x in (summary(row["figures"]) | rates).items()}
    return {"phase": row["phase"], "name": row["name"], "seed": row["seed"]} | found


def _settings(plan: Plan, results: Results) -> list[dict[str, object]]:
    """Every setting that was tried: its numbers, and means over the screening seeds; no means where a run failed.

    Finalists have a second line, with means over all validation seeds.
    """
    numbers = {
        (row["name"], row["setting"]): row["numbers"] for row in results.rows if row["phase"] == "tune"
    }
    options = dict.fromkeys(name for found in numbers.values() for name in found)
    lines: list[dict[str, object]] = []
    for method in plan.methods:
        for seeds in (plan.screening_seeds, plan.validation_seeds):
            for setting, scores in scores_of_settings(results.rows, method, seeds).items():
                given = {name: numbers[method, setting].get(name, "") for name in options}
                shown = {name: f"{scores[name]:.5f}" if scores[name] > -1e9 else "" for name in SUMMARIES}
                lines.append({"name": method, "setting": setting, "seeds": len(seeds)} | given | shown)
    return lines


def _write(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, text.getvalue())
