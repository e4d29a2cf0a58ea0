"""What is said of a run first: worst category, gap, certificates, alarms. Words and states, no drawing."""

from jaxalign.report.certificates import certificates, certificates_headline
from jaxalign.report.curves import last_finite
from jaxalign.report.displacement import displacement
from jaxalign.report.document import Fact, State, Verdict
from jaxalign.report.judges import probe_judge
from jaxalign.report.origin import other_step
from jaxalign.report.record import RunRecord
from jaxalign.report.safety import Safety
from jaxalign.report.safety_groups import decisive, weakest
from jaxalign.report.scales import MISSING, figure

WHILE_TRAINING = {
    "implicit_reward": ("training pairs alone", "training pairs"),
    "probe": ("judged answers to the prompts of the probes alone", "answers at probes"),
    "both": ("training pairs and judged answers at probes together", "training pairs and answers at probes"),
}
"""By signal of the margins: what the running violation rates of a run were measured on."""


def verdict(run: RunRecord) -> Verdict:
    """The verdict of a run, from the best evidence that it left: generated answers, held-out pairs, training pairs."""
    worst, gap, basis = _spread(run)
    certified = certificates(run)
    facts = (worst, gap, certified, _displacement(run), _skipped(run))
    headline = " ".join(part for part in (_unfinished(run), certificates_headline(run)) if part)
    return Verdict(certified.state, headline, basis, facts)


def _spread(run: RunRecord) -> tuple[Fact, Fact, str]:
    """Worst category and gap, with what they were measured on."""
    results = decisive(run.safety)
    safety = weakest(results)
    if safety is not None and safety.worst is not None:
        worst_name, rate = safety.worst
        basis = (
            f"Measured on answers to {safety.num_prompts} prompts of {safety.prompt_set}, judged by {safety.judge}. "
            f"{safety.limits}"
        )
        basis += " Rates are corrected for the judge's error." if safety.corrected else ""
        words = other_step(run, safety)
        basis += f" The answers are {words}." if words else ""
        basis = f"{basis} {_others(run, len(results))}".strip()
        gap = None if safety.gap is None else safety.gap.value
        what = f"unsafe on {rate.prompts} prompts" + ", corrected for the judge's error" * safety.corrected
        target = run.target(worst_name, safety)
        worst = _worst(worst_name, 1 - rate.shown(safety.corrected).value, what, gap, target)
        return worst, _gap_of_answers(safety), basis
    spread = None if run.after is None else run.after["spread"].get("violation_rate")
    if run.after is not None and spread is not None:
        basis = (
            f"Measured on {run.after['num_pairs']} held-out pairs, not on generated answers: a pair counts as unsafe "
            f"where its reward gap lies below {run.after['threshold']:g}."
        )
        name, unsafe, gap = spread["worst_category"], spread["worst"], spread["gap"]
        what = "held-out pairs"
    else:
        rates = _running_rates(run)
        source, what = WHILE_TRAINING[run.signal]
        basis = f"Measured on {source}, by the running violation rates at the last step. {probe_judge(run)}".strip()
        basis = basis if rates else "Nothing was measured by category."
        name = max(rates, key=lambda category: rates[category], default=None)
        unsafe = rates.get(name)
        gap = max(rates.values()) - min(rates.values()) if rates else None
    note = "between categories" if gap is not None else ""
    gap_fact = Fact("Best-to-worst gap", _points(gap), note, "open")
    target = None if name is None else run.target(name)
    return _worst(name, unsafe, f"of {what} unsafe", gap, target), gap_fact, basis


def _others(run: RunRecord, counted: int) -> str:
    """What the verdict made of other results."""
    after = sum(one.moment == "after" for one in run.safety)
    text = f"The worst of {counted} results; certificates are those of all, each on its own. " * (counted > 1)
    return (text + "Results of earlier steps are below and do not count." * (after > counted)).strip()


def _running_rates(run: RunRecord) -> dict[str | None, float]:
    """The violation rate of every category that was seen, at the last step."""
    lasts = {
        name: last_finite(values) for name, values in run.metrics.by_category("adaptive/violation/").items()
    }
    return {name: last for name, last in lasts.items() if last is not None}


def _worst(
    category: str | None, unsafe: float | None, what: str, gap: float | None, target: float | None
) -> Fact:
    label = "Worst category"
    if category is None:
        return Fact(label, MISSING, "", "open")
    note = f"{figure(unsafe, 'rate')} {what}"
    shown = "all are alike" if gap == 0.0 else category
    if target is None or unsafe is None:
        return Fact(label, shown, note, "open")
    state: State = "good" if unsafe <= target else "warn"
    return Fact(label, shown, f"{note}, target {figure(target, 'rate')}", state)


def _gap_of_answers(safety: Safety) -> Fact:
    gap = safety.gap
    if gap is None:
        return Fact("Best-to-worst gap", MISSING, "needs figures of two categories or more", "open")
    note = f"{_points(safety.gap_if_equal)} expected if all categories were equal"
    if gap.low is not None and gap.high is not None:
        note = f"95 % interval {_points(gap.low)} to {_points(gap.high)}; {note}"
    return Fact("Best-to-worst gap", _points(gap.value), note, "open")


def _displacement(run: RunRecord) -> Fact:
    found = displacement(run)
    label = "Chosen responses"
    if found.unknown:
        return Fact(label, "not known", found.unknown, "open")
    if found.raised is None:
        return Fact(label, "no alarm", "did not lose likelihood for long", "good")
    first, last = found.raised
    return Fact(label, "alarm", f"less likely than under the reference from step {first} to {last}", "warn")


def _skipped(run: RunRecord) -> Fact:
    skipped = run.metrics.columns.get("skipped_steps")
    count = None if skipped is None else last_finite(skipped)
    if count is None:
        return Fact("Skipped steps", MISSING, "not logged", "open")
    note = f"of {int(run.metrics.steps[-1])}, for what was not finite"
    return Fact("Skipped steps", figure(count, "count"), note, "warn" if count else "good")


def _unfinished(run: RunRecord) -> str:
    """A sentence on a run that is not at its last step, else nothing."""
    if run.finished_step is not None:
        return ""
    steps = run.metrics.steps
    if not len(steps):
        return "No step was logged."
    total = run.config.get("train", {}).get("num_steps")
    return f"Not finished: step {int(steps[-1])}{f' of {total}' if total else ''}."


def _points(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}".removesuffix(".0") + " points"
