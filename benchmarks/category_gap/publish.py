"""Puts what a study found where the documentation shows it: `python benchmarks/category_gap/publish.py DIR NAME`.

Tables, settings tried and test runs go to benchmarks/results/NAME/, figures to docs/figures/NAME_*.svg.
"""

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "categories.svg": "categories",
    "settings.svg": "settings",
    "margins_cat_dpo_probe.svg": "margins",
    "margins_cat_dpo_probe_multiplicative.svg": "margins_multiplicative",
}


def publish(folder: Path, name: str, root: Path) -> None:
    """Copy the tables and figures of a finished study."""
    results, figures = root / "benchmarks" / "results" / name, root / "docs" / "figures"
    results.mkdir(parents=True, exist_ok=True)
    figures.mkdir(parents=True, exist_ok=True)
    for file in ("results.md", "runs.csv", "tuning.csv"):
        shutil.copyfile(folder / file, results / file)
    for file, title in FIGURES.items():
        shutil.copyfile(folder / file, figures / f"{name}_{title}.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="--output of study.py")
    parser.add_argument("name", metavar="NAME", help="category_gap or category_gap_rare64")
    args = parser.parse_args()
    publish(args.folder, args.name, ROOT)
