"""How the settings of a method are chosen: one rule for all, on the validation seeds alone."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from metrics import SUMMARIES, summary
from plan import Plan, Row


def score(rows: Iterable[Row]) -> dict[str, float]:
    """Mean summary of some runs; worse than any if one of them failed."""
    rows = list(rows)
    if any(row["figures"] is None for row in rows):
        return dict.fromkeys(SUMMARIES, -np.inf)
    found = [summary(row["figures"]) for row in rows]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def scores_of_settings(rows: Iterable[Row], name: str, seeds: Sequence[int]) -> dict[int, dict[str, float]]:
    """Mean summary on these validation seeds of each setting of a method that was tried on all of them."""
    by_setting: dict[int, list[Row]] = {}
    for row in rows:
        if row["phase"] == "tune" and row["name"] == name and row["seed"] in seeds:
            by_setting.setdefault(row["setting"], []).append(row)
    return {
        setting: score(found) for setting, found in sorted(by_setting.items()) if len(found) == len(seeds)
    }


@dataclasses.dataclass(frozen=True)
class Choice:
    """The setting of a method.

    num_helpful: settings, of all that were screened, that are as helpful as dpo allows.
    own_floor: no finalist is that helpful, so they were held to the method's own most helpful one.
    sureness: how often the choice falls on this setting when the validation seeds are resampled.
    """

    setting: int
    num_helpful: int
    own_floor: bool
    sureness: float


def choose_finalists(plan: Plan, rows: Sequence[Row]) -> dict[str, list[int]]:
    """The settings of every method that are worth more seeds: its most helpful one, and the safest that stay helpful.

    On the screening seeds. Where fewer stay helpful than there are places, the most helpful of the others follow.
    """
    scores = {name: scores_of_settings(rows, name, plan.screening_seeds) for name in plan.methods}
    found = {}
    for name, of_method in scores.items():
        floor = _floor(plan, scores, name)
        first = max(of_method, key=lambda i: of_method[i]["helpful"])

        def place(i: int, of_method: dict[int, dict[str, float]] = of_method, floor: float = floor) -> tuple:
            helpful = of_method[i]["helpful"] >= floor
            return helpful, of_method[i]["worst" if helpful else "helpful"]

        rest = sorted(set(of_method) - {first}, key=place, reverse=True)
        found[name] = [first, *rest][: plan.num_finalists]
    return found


def choose_settings(plan: Plan, rows: Sequence[Row]) -> dict[str, Choice]:
    """The setting of every method: the finalist with the safest worst category, among those that stay helpful.

    On all validation seeds, and one rule for all methods, dpo too.
    """
    screened = {name: scores_of_settings(rows, name, plan.screening_seeds) for name in plan.methods}
    floor_of_dpo = _floor(plan, screened, "dpo")
    draws = np.random.default_rng(0).integers(
        plan.num_validation_seeds, size=(999, plan.num_validation_seeds)
    )
    tables = {name: _by_seed(rows, name, plan.validation_seeds) for name in plan.methods}
    chosen = {}
    for name in plan.methods:
        best, own = _best(plan, tables, name, np.arange(plan.num_validation_seeds))
        again = [_best(plan, tables, name, draw)[0] for draw in draws]
        num_helpful = sum(one["helpful"] >= floor_of_dpo for one in screened[name].values())
        chosen[name] = Choice(best, num_helpful, own, float(np.mean(np.equal(again, best))))
    return chosen


def _best(
    plan: Plan, tables: Mapping[str, Mapping[int, np.ndarray]], name: str, draw: np.ndarray
) -> tuple[int, bool]:
    """The best finalist on a draw of the validation seeds, and whether only the method's own floor allows it."""
    means = {
        key: {i: dict(zip(("helpful", "worst"), table[:, draw].mean(axis=1), strict=True))
              for i, table in tables[key].items()}
        for key in {"dpo", name}
    }  # fmt: skip
    floor = _floor(plan, means, name)
    allowed = {i: one for i, one in means[name].items() if one["helpful"] >= floor}
    return max(allowed, key=lambda i: allowed[i]["worst"]), bool(floor < _floor(plan, means, "dpo"))


def _by_seed(rows: Iterable[Row], name: str, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    """[2, S] helpfulness and worst category, by seed, of each setting that was tried on all these seeds."""
    found: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        if row["phase"] == "tune" and row["name"] == name and row["seed"] in seeds:
            one = score([row])
            found.setdefault(row["setting"], {})[row["seed"]] = [one["helpful"], one["worst"]]
    return {
        setting: np.array([by_seed[seed] for seed in seeds]).T
        for setting, by_seed in sorted(found.items())
        if len(by_seed) == len(seeds)
    }


def _floor(plan: Plan, scores: Mapping[str, Mapping[int, dict[str, float]]], name: str) -> float:
    """How helpful a setting of a method must be.

    Within `tolerance` of the most helpful setting of plain dpo; where the method has none that is, within `tolerance`
    of its own most helpful one.
    """
    most = {key: max(one["helpful"] for one in scores[key].values()) for key in ("dpo", name)}
    floor = most["dpo"] - plan.tolerance
    return floor if most[name] >= floor else most[name] - plan.tolerance
