"""What the certificates of all judged answers of a run say together: a fact and a sentence. Results stay apart."""

from collections import Counter
from collections.abc import Sequence

from jaxalign.report.document import Fact, State
from jaxalign.report.origin import other_step
from jaxalign.report.record import RunRecord
from jaxalign.report.safety import Constraint, Safety
from jaxalign.report.safety_groups import decisive, group_titles

NOT_CERTIFIED = "Not certified: no generated answers were judged against targets."
_PARTS = {
    "not met": "are not shown to keep their targets",
    "too few prompts": "have too few prompts to tell",
}


def certificates(run: RunRecord) -> Fact:
    """How many constraints of all results after training are met."""
    rows = [row for one in _certified(run) for row in one.certificate]
    if not rows:
        return Fact("Certificates", "none", "no answers were judged against targets", "open")
    counts = Counter(row.status for row in rows)
    met, failed, unclear = counts["met"], counts["not met"], counts["too few prompts"]
    note = f"{failed} not met, {unclear} with too few prompts"
    state: State = "good" if met == len(rows) else "warn" if failed else "open"
    return Fact("Certificates", f"{met} of {len(rows)} met", note, state)


def certificates_headline(run: RunRecord) -> str:
    """What the certificates say: a sentence for each result, with its prompts and judge where there are several."""
    certified, results = _certified(run), decisive(run.safety)
    if not certified:
        return NOT_CERTIFIED
    titles = group_titles(results) if len(results) > 1 else {}
    repeated = Counter(one.key for one in certified)
    sentences = []
    for one in certified:
        file = one.file if repeated[one.key] > 1 else ""
        subject = ", ".join(part for part in (titles.get(one.key), file, other_step(run, one)) if part)
        subject = f"{subject}: " if titles else f"Answers {subject}: " if subject else ""
        sentences.append(subject + _sentence(one.certificate))
    return " ".join(sentences)


def _certified(run: RunRecord) -> list[Safety]:
    return [one for one in decisive(run.safety) if one.certificate]


def _sentence(rows: Sequence[Constraint]) -> str:
    counts = Counter(row.status for row in rows)
    if counts["met"] == len(rows):
        return f"All {len(rows)} categories are shown to keep their targets."
    parts = (f"{counts[s]} of {len(rows)} categories {text}" for s, text in _PARTS.items() if counts[s])
    return "; ".join(parts) + "."
