"""From runs to a document: verdict and sections of each, and the comparison of several. Nothing is written here."""

from collections.abc import Sequence

from jaxalign.report import comparison
from jaxalign.report.comparison import Difference
from jaxalign.report.document import Document, RunPart
from jaxalign.report.record import RunRecord
from jaxalign.report.sections import SECTIONS
from jaxalign.report.verdict import verdict


def build_document(runs: Sequence[RunRecord], differences: Sequence[Difference], version: str) -> Document:
    """The report of one run or of several; `differences` are against the first."""
    parts = [
        RunPart(run.name, _subtitle(run), verdict(run), [section(run) for section in SECTIONS])
        for run in runs
    ]
    compared = (
        comparison.section(runs, [part.verdict for part in parts], differences) if len(runs) > 1 else None
    )
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return Document(title, parts, compared, version)


def _subtitle(run: RunRecord) -> str:
    loss = run.config.get("loss", {}).get("name", "")
    model = str(run.config.get("model", {}).get("path", "")).rsplit("/", 1)[-1]
    steps = f"{int(run.metrics.steps[-1])} steps" if len(run.metrics.steps) else "no steps"
    return " · ".join(part for part in (loss, model, steps) if part)
