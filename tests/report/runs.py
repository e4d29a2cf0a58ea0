"""Workdirs of runs as a training leaves them, of random figures: any number of categories and steps. No tests here."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.schema import PKU_CATEGORIES
from jaxalign.evaluation.heldout_pairs import HeldoutPairs
from jaxalign.evaluation.mutual_information import mutual_information_summary

TARGET, MAXIMUM, BETA, THRESHOLD = 0.05, 2.0, 0.1, 0.5
MARKUP = "<script>alert('x')</script> & $co_st$"


def write_run(
    workdir: Path,
    *,
    names: Sequence[str] = PKU_CATEGORIES,
    num_steps: int = 40,
    seed: int = 0,
    loss: str = "cat_b_dpo",
    skill: float = 1.0,
    sinking: float = 0.0,
    fingerprint: str | None = None,
    system_prompt: str | None = None,
) -> Path:
    """Everything that a finished run of `loss` leaves; a larger `skill` ends with fewer violations.

    Chosen responses lose `sinking` nats per token by the last step.
    """
    rng = np.random.default_rng(seed)
    hardness = np.linspace(0.4, 1.6, len(names))[np.random.default_rng(7).permutation(len(names))]
    write(
        workdir / "manifest.json",
        manifest(loss, num_steps, fingerprint or fingerprint_of(names), system_prompt),
    )
    lines = metric_lines(
        rng, names, num_steps, hardness / skill, sinking, margins="cat" in loss, mi="b_dpo" in loss
    )
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(workdir / "finished.json", {"step": num_steps})
    pairs = heldout(rng, names, 2.0 * skill / hardness)
    folder = workdir / "evaluation"
    write(folder / "before.json", preference(pairs, step=0, start=True))
    write(folder / "after.json", preference(pairs, step=num_steps))
    (folder / "after_pairs.jsonl").write_text("".join(f"{line}\n" for line in pairs.lines()))
    if "b_dpo" in loss:
        write(folder / "mutual_information.json", mutual_information(rng, names))
    return workdir


def write_safety(workdir: Path, *, names: Sequence[str] = PKU_CATEGORIES, skill: float = 1.0) -> None:
    """Safety results before and after, with certificates; the first categories are the worst."""
    for moment, gain in (("before", 0.0), ("after", 0.25 * skill)):
        rates = {name: min(0.99, 0.55 + 0.4 * k / len(names) + gain) for k, name in enumerate(names)}
        constraints = certificate(names) if moment == "after" else None
        write_result(workdir, f"safety_{moment}", rates, constraints)


def write_result(
    workdir: Path,
    name: str,
    rates: Mapping[str, float],
    constraints: dict[str, Any] | None = None,
    *,
    helpfulness: dict[str, Any] | None = None,
    corrected: Mapping[str, float] | None = None,
    **source: Any,
) -> None:
    """The safety result of a file, with safe rates by category; `source` is laid over its source.

    `corrected` has the rates that a known error of the judge makes of them.
    """
    usual = {
        "prompt_set": "held-out prompts", "fingerprint": "f", "prompts": 900, "answers": 900, "judge": "refusal words",
        "limits": "Knows refusals by their words alone.", "refusal_judge": None,
        "refusal_limits": None, "judge_fingerprint": None,
    }  # fmt: skip
    spread = {"safe_rate": {"gap": estimate(0.2), "gap_if_equal": 0.12}}
    if corrected is not None:
        spread["corrected_safe_rate"] = {"gap": estimate(0.3), "gap_if_equal": 0.15}
    known = corrected or {}
    content = {
        "source": usual | source,
        "overall": group(0.9, 900, None if corrected is None else 0.8),
        "categories": {
            name: group(rate, 30 + k, known.get(name)) for k, (name, rate) in enumerate(rates.items())
        },
        "spread": spread if rates else {},
        "over_refusal": {"rate": estimate(0.1), "prompts": 50},
        "under_refusal": None,
        "helpfulness": helpfulness,
        "certificate": constraints,
        "notes": ["2 answers were not judged."],
    }
    write(workdir / "evaluation" / f"{name}.json", content)


def add_probes(
    workdir: Path,
    signal: str,
    probes: Mapping[int, Mapping[str, float | None]],
    judge: Mapping[str, Any] | None = None,
) -> None:
    """Make a run one with probes: the figures by step, under their names below `probe/`.

    The judge is the refusal rule unless its settings are given.
    """
    manifest = json.loads((workdir / "manifest.json").read_text())
    manifest["config"]["adaptive"] |= {
        "signal": signal,
        "probe": {"judge": {"kind": "refusal"} if judge is None else judge},
    }
    write(workdir / "manifest.json", manifest)
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for step, figures in probes.items():
        lines[step - 1] |= {f"probe/{name}": value for name, value in figures.items()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def estimate(value: float) -> dict[str, float]:
    """A figure with an interval."""
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.06)}


def group(rate: float, prompts: int, corrected: float | None = None) -> dict[str, Any]:
    """The safe rate of a category, with the corrected one if it is known."""
    known = None if corrected is None else estimate(corrected)
    return {"safe_rate": estimate(rate), "corrected_safe_rate": known, "prompts": prompts, "unjudged": 1}


def certificate(
    names: Sequence[str],
    statuses: Sequence[str] = ("not met", "too few prompts", "met"),
    target: float = TARGET,
) -> dict[str, Any]:
    """Constraints with these statuses in turn, the last one for all others."""
    of_name = [statuses[min(k, len(statuses) - 1)] for k in range(len(names))]
    constraints = [
        {"category": name, "status": status, "target": target, "violation_rate": 0.1, "upper_bound": 0.2,
         "margin": 0.5, "prompts": 30, "message": f"{status}: rate 0.1"}
        for name, status in zip(names, of_name, strict=True)
    ]  # fmt: skip
    return {
        "bound": "Clopper-Pearson",
        "correction": f"Bonferroni over {len(names)}",
        "constraints": constraints,
    }


def fingerprint_of(names: Sequence[str]) -> str:
    """Runs of the same categories have the same held-out pairs."""
    return hashlib.sha256(repr(tuple(names)).encode()).hexdigest()


def write(path: Path, value: Any) -> None:
    """JSON, as a run writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def manifest(loss: str, num_steps: int, fingerprint: str, system_prompt: str | None) -> dict[str, Any]:
    margin = {"target_rate": TARGET, "minimum": 0.0, "maximum": MAXIMUM, "step_size": 0.1}
    return {
        "jaxalign": "0.1.0",
        "git_revision": "0123abcd",
        "config": {
            "model": {"path": "models/tiny", "dtype": "float32", "lora": None},
            "data": {"train": [{"format": "pku", "path": "train.jsonl"}], "system_prompt": system_prompt},
            "loss": {"name": loss, "beta": BETA},
            "adaptive": {"violation": {"threshold": THRESHOLD}, "margin": margin},
            "reference": {"mode": "precomputed"},
            "train": {"batch_size": 64, "num_steps": num_steps},
        },
        "fingerprints": {"model": "c" * 64, "data train": "d" * 64, "data heldout": fingerprint},
        "versions": {"python": "3.11", "jax": "0.10.2"},
        "devices": {"count": 1, "kind": "cpu", "processes": 1},
    }


def metric_lines(
    rng: np.random.Generator,
    names: Sequence[str],
    num_steps: int,
    hardness: np.ndarray,
    sinking: float,
    *,
    margins: bool,
    mi: bool,
) -> list[dict[str, Any]]:
    """One line a step; a category is absent from some steps, and the sixth step is skipped."""
    violation, margin, seen = np.ones(len(names)), np.zeros(len(names)), np.zeros(len(names), bool)
    lines = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        present = rng.random(len(names)) < 0.8
        seen |= present
        rates = np.clip(np.exp(-4 * done / hardness) + 0.06 * rng.normal(size=len(names)), 0.0, 1.0)
        violation = np.where(present, 0.9 * violation + 0.1 * rates, violation)
        margin = np.where(present, np.clip(margin + 0.1 * (violation - TARGET), 0.0, MAXIMUM), margin)
        length = 50.0
        chosen = BETA * length * (0.02 * done - sinking * done)
        rejected = BETA * length * (-0.6 * done) + 0.1 * rng.normal()
        line: dict[str, Any] = {
            "step": step,
            "loss": None if step == 6 else 0.69 * math.exp(-2 * done) + 0.02 * rng.random(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": 0.5 + 0.45 * done,
            "violation_rate": float(rates.mean()) if names else 0.5,
            "logps/chosen": -100.0 + chosen / BETA,
            "logps/rejected": -100.0 + rejected / BETA,
            "pairs": 64.0,
            "response_tokens": 2 * 64 * length,
            "grad_norm": None if step == 6 else 1.0 + 0.3 * rng.random(),
            "skipped_steps": float(step >= 6),
            "seconds_per_step": 0.5,
            "response_tokens_per_second": 12800.0 + 400 * rng.normal(),
        }
        for k, name in enumerate(names):
            if present[k]:
                line |= {f"category/{name}/pairs": 4.0, f"category/{name}/violation_rate": float(rates[k])}
            if seen[k] and margins:
                line[f"adaptive/margin/{name}"] = float(margin[k])
                line[f"adaptive/violation/{name}"] = float(violation[k])
        if mi:
            line |= {"adaptive/weight_chosen": 0.9, "adaptive/weight_rejected": 1.1}
            line |= {"adaptive/balance/chosen_mi": 0.8 - 0.1 * done, "adaptive/balance/rejected_mi": 0.6}
        lines.append(line)
    return lines


def heldout(rng: np.random.Generator, names: Sequence[str], centres: np.ndarray) -> HeldoutPairs:
    """Eight pairs a category (of none, without one), two of a prompt; every tenth has a second category."""
    own = np.repeat(np.arange(max(len(names), 1)), 8)
    number = np.arange(len(names))
    categories = own[:, None] == number
    categories[::10] |= ((own[::10] + 1) % max(len(names), 1))[:, None] == number
    gaps = np.append(centres, 1.0)[own] + rng.normal(0.0, 1.2, len(own))
    return HeldoutPairs(tuple(names), np.arange(len(own)) // 2, categories, gaps)


def preference(pairs: HeldoutPairs, *, step: int, start: bool = False) -> dict[str, Any]:
    """Preference figures as a run writes them; at the start every gap is 0."""

    def means(inside: np.ndarray) -> dict[str, float]:
        gap = 0 * pairs.reward_gap[inside] if start else pairs.reward_gap[inside]
        return {
            "pairs": int(inside.sum()),
            "loss": float(np.logaddexp(0, -gap).mean()),
            "accuracy": float((0.5 * (np.sign(gap) + 1)).mean()),
            "reward_gap": float(gap.mean()),
            "violation_rate": float((gap < THRESHOLD).mean()),
            "chosen_logps": -100.0 + (0.0 if start else 3.0 * float(gap.mean())),
            "rejected_logps": -100.0 - (0.0 if start else 7.0 * float(gap.mean())),
        }

    categories = {name: means(inside) for name, inside in pairs.members().items()}
    rates = {name: figures["violation_rate"] for name, figures in categories.items()}
    worst = max(rates, key=lambda name: rates[name]) if rates else None
    gap = max(rates.values()) - min(rates.values()) if rates else 0.0
    spread = {"violation_rate": {"worst_category": worst, "worst": rates[worst], "gap": gap}} if worst else {}
    return {
        "num_pairs": len(pairs.prompts),
        "step": step,
        "beta": BETA,
        "threshold": THRESHOLD,
        "overall": means(np.ones(len(pairs.prompts), bool)),
        "categories": categories,
        "without_category": None,
        "spread": spread,
    }


def mutual_information(rng: np.random.Generator, names: Sequence[str]) -> dict[str, Any]:
    """The summary of 600 pairs whose chosen responses depend more on their prompts."""
    mi = np.abs(rng.normal([0.8, 0.5], [0.3, 0.25], (600, 2)))
    weights = 2 * mi[:, ::-1] / mi.sum(axis=1, keepdims=True)
    categories = np.eye(len(names))[rng.integers(0, len(names), 600)] if names else np.zeros((600, 0))
    return mutual_information_summary(mi, weights, categories, names)
