"""`jaxalign report`: one page about runs, from what they left. What it says is made in the report package."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign import __version__
from jaxalign.config import ConfigError
from jaxalign.evaluation.bootstrap import Estimate
from jaxalign.evaluation.heldout_pairs import ALL_PAIRS, HeldoutPairs, interval_rates, read_heldout_pairs
from jaxalign.files import write_json, write_whole
from jaxalign.report import rows
from jaxalign.report.build import build_document
from jaxalign.report.document import Document
from jaxalign.report.html import to_html
from jaxalign.report.markdown import to_markdown
from jaxalign.report.png import to_png
from jaxalign.report.record import CategoryPairs, HeldoutPairsSummary, read_run
from jaxalign.run.compare import RESAMPLING, differences
from jaxalign.run.manifest import read_manifest
from jaxalign.run.pair_files import HELDOUT_PAIRS

Format = Literal["html", "md", "json", "png"]
NUM_BINS = 40
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def report(workdirs: Sequence[Path], output: Path, kind: Format | None = None) -> None:
    """Write the report of runs, in the format that the suffix of `output` names unless one is given.

    Raises ConfigError for what is no run, ReportError and its like for damaged files.
    """
    kind = kind or _kind_of(output)
    if output.is_dir():
        raise ConfigError(f"{output} is a folder, expected a file to write; name one in it, or another one")
    document = read_document(workdirs)
    if kind == "json":
        write_json(output, document.as_dict())
        return
    text = {"html": to_html, "md": to_markdown}.get(kind)
    write_whole(output, to_png(document) if text is None else text(document))


def read_document(workdirs: Sequence[Path]) -> Document:
    """What there is to say of the runs, before it is written in some format."""
    repeated = [str(path) for path in workdirs if [p.resolve() for p in workdirs].count(path.resolve()) > 1]
    if repeated:
        raise ConfigError(f"{repeated[0]} is given twice; name each run once")
    runs = [
        read_run(path, _manifest(path), name, summarise)
        for path, name in zip(workdirs, run_names(workdirs), strict=True)
    ]
    return build_document(runs, differences(workdirs, runs), __version__)


def run_names(workdirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [path.resolve().parts for path in workdirs]
    for length in count(1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("paths that differ have ends that differ")


def summarise(folder: Path, threshold: float) -> HeldoutPairsSummary | None:
    """Intervals and quantiles of the held-out pairs in a folder; None where the run left no single pairs."""
    if not (folder / HELDOUT_PAIRS).exists():
        return None
    pairs = read_heldout_pairs(folder / HELDOUT_PAIRS)
    gaps = pairs.reward_gap[np.isfinite(pairs.reward_gap)]
    if not gaps.size:
        return None
    low, high = np.quantile(gaps, (0.005, 0.995))
    edges = _edges(min(low, threshold), max(high, threshold), threshold)
    counts, _ = np.histogram(np.clip(gaps, edges[0], edges[-1]), edges)
    members = pairs.members() | {ALL_PAIRS: np.ones(len(pairs.prompts), bool)}
    groups = {
        name: _group(pairs, members[name], accuracy, threshold)
        for name, accuracy in interval_rates(pairs, pairs.accuracy, RESAMPLING).items()
    }
    overall = groups.pop(ALL_PAIRS)
    return HeldoutPairsSummary(groups, overall, tuple(edges.tolist()), tuple(counts.tolist()))


def _kind_of(output: Path) -> Format:
    kinds: dict[str, Format] = {".html": "html", ".htm": "html", ".md": "md", ".json": "json", ".png": "png"}
    kind = kinds.get(output.suffix.lower())
    if kind is None:
        raise ConfigError(f"{output} ends in none of {', '.join(kinds)}; rename it, or give --format")
    return kind


def _manifest(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    if manifest is None:
        raise ConfigError(f"{path} has no manifest.json: it is not the workdir of a run")
    return manifest


def _edges(low: float, high: float, threshold: float) -> np.ndarray:
    """Edges of NUM_BINS bins or one more, one of them at the threshold, so that no bar is on both sides."""
    width = (high - low) / NUM_BINS or 1.0 / NUM_BINS
    first, last = np.floor((low - threshold) / width), np.ceil((high - threshold) / width)
    return threshold + width * np.arange(first, max(last, first + 1) + 1)


def _group(pairs: HeldoutPairs, inside: np.ndarray, accuracy: Estimate, threshold: float) -> CategoryPairs:
    inside = inside & np.isfinite(pairs.reward_gap)
    gaps = pairs.reward_gap[inside]
    q05, q25, q50, q75, q95 = map(float, np.quantile(gaps, _QUANTILES))
    return CategoryPairs(
        pairs=len(gaps),
        prompts=len(np.unique(pairs.prompts[inside])),
        accuracy=_interval(accuracy),
        gap=rows.Interval(q50, q05, q95, (q25, q75)),
        below=float((gaps < threshold).mean()),
    )


def _interval(estimate: Estimate) -> rows.Interval:
    return rows.Interval(estimate.value, estimate.low, estimate.high)
