"""Safety results that may be compared: of the same prompts, from the same judges, asked alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxalign.report.safety import Key, Safety


@dataclass(frozen=True, slots=True)
class SafetyGroup:
    """All results of a run under one key; of those of one moment, the newest step comes last."""

    before: tuple[Safety, ...]
    after: tuple[Safety, ...]

    @property
    def all(self) -> tuple[Safety, ...]:
        """Before and after."""
        return self.before + self.after

    @property
    def shown(self) -> Safety:
        """The result that the group is about: the newest after training, else before."""
        return self.all[-1]

    @property
    def corrected(self) -> bool:
        """Whether all of them are corrected for the judge's error: only then are corrected rates compared."""
        return all(one.corrected for one in self.all)

    def labels(self) -> list[str]:
        """A short name for each result, which tells it from the others."""
        return [*_labels("before", self.before), *_labels("after", self.after)]


def safety_groups(results: Iterable[Safety]) -> dict[Key, SafetyGroup]:
    """The results by what they may be compared under, in the order in which they were read."""
    found: dict[Key, list[Safety]] = {}
    for one in results:
        found.setdefault(one.key, []).append(one)
    return {key: SafetyGroup(_of(members, "before"), _of(members, "after")) for key, members in found.items()}


def group_titles(results: Iterable[Safety]) -> dict[Key, str]:
    """Prompt set and judge of each key, with whatever else it takes to tell the keys apart."""
    first: dict[Key, Safety] = {}
    for one in results:
        first.setdefault(one.key, one)
    titles = {}
    for key, one in first.items():
        name = (one.prompt_set, one.judge)
        alike = [other.key for other in first.values() if (other.prompt_set, other.judge) == name]
        fingerprint = "that are not known" if one.judge_fingerprint is None else one.judge_fingerprint[:8]
        parts = (
            f"prompts {one.fingerprint[:8]}",
            "",
            f"refusals told by {one.refusal_judge or 'none'}",
            f"judge with settings and weights {fingerprint}",
            f"answered with {one.answer_settings or 'settings that are not known'}",
        )
        differing = [part for k, part in enumerate(parts) if len({other[k] for other in alike}) > 1]
        titles[key] = ", ".join([f"{one.prompt_set}, judged by {one.judge}", *differing])
    return titles


def decisive(results: Iterable[Safety]) -> list[Safety]:
    """The results after training that a verdict rests on: under each key those of the newest step.

    One that does not tell its step is never left out.
    """
    found = []
    for group in safety_groups(results).values():
        newest = max((one.step for one in group.after if one.step is not None), default=None)
        found += [one for one in group.after if one.step in (None, newest)]
    return found


def weakest(results: Sequence[Safety]) -> Safety | None:
    """The result whose worst category is the least safe: of those with certificates, if any has one."""
    measured = [one for one in results if one.worst is not None]
    certified = [one for one in measured if one.certificate]
    return min(certified or measured, key=_worst_rate, default=None)


def _worst_rate(one: Safety) -> float:
    return min(rate.shown(one.corrected).value for rate in one.categories.values())


def _of(members: Sequence[Safety], moment: str) -> tuple[Safety, ...]:
    chosen = [one for one in members if one.moment == moment]
    return tuple(sorted(chosen, key=lambda one: (-1 if one.step is None else one.step, one.file)))


def _labels(moment: str, results: Sequence[Safety]) -> list[str]:
    """The moment alone for a single result; for several their steps, or the names of their files."""
    if len(results) < 2:
        return [moment] * len(results)
    steps = [one.step for one in results]
    by_step = None not in steps and len(set(steps)) == len(steps)
    return [f"{moment}, step {one.step}" if by_step else f"{moment}, {one.file}" for one in results]
