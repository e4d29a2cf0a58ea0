"""The figures of the test suite that the docs quote: how many laws hold for what, and how far anything strays.

`python -m tests.losses.figures` prints them, with `--markdown` as the block of docs/proof.md. No test lives here.

A deviation is `|ours - expected| / max(1, |expected|)`, the largest one over all pairs, arguments and losses.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable

import tests.conftest  # noqa: F401  the settings that every test runs under

# isort: split
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxalign import adaptive
from tests.adaptive import cases as rules
from tests.losses import cases, trl_cases
from tests.losses.test_loss_laws import LAWS

SEEDS = range(4)  # of `cases.NUM_PAIRS` random pairs each
IN_FLOAT32 = {name for name, case in trl_cases.COUNTERPARTS.items() if case.tolerance > 1e-12}


@dataclasses.dataclass(frozen=True)
class Count:
    """A number that the suite has exactly."""

    what: str
    value: int

    def cells(self) -> tuple[str, str, str]:
        return self.what, str(self.value), ""


@dataclasses.dataclass(frozen=True)
class Deviation:
    """The largest deviation and where it occurs."""

    what: str
    value: float
    where: str

    def cells(self) -> tuple[str, str, str]:
        return self.what, f"{self.value:.1e}", self.where


def figures() -> list[Count | Deviation]:
    return [*counts(), *deviations()]


def counts() -> list[Count]:
    laws = rules.load_laws()
    return [
        Count("losses", len(cases.CASES)),
        Count("laws of losses", len(LAWS)),
        Count("losses under each law, added up", sum(map(len, LAWS.values()))),
        Count("adaptive rules", sum(name.endswith("_rule") for name in adaptive.__all__)),
        Count("settings of rules under test", len(rules.CASES)),
        Count("laws of rules", len(laws)),
        Count("settings under each law, added up", len(laws) * len(rules.CASES)),
        Count("loss types of TRL compared", len(trl_cases.COUNTERPARTS)),
    ]


def deviations() -> list[Deviation]:
    of_losses = [
        largest(f"{what} of a loss from the reference, {name}", over_losses(deviation, dtype))
        for name, dtype in (("float32", jnp.float32), ("float64", jnp.float64))
        for what, deviation in (("value", cases.value_deviation), ("gradient", cases.gradient_deviation))
    ]
    of_rules = largest(
        "state of a rule from the reference, 50 steps in float32",
        ((rules.deviation(c), n) for n, c in rules.CASES.items()),
    )
    in_float64 = [name for name in trl_cases.COUNTERPARTS if name not in IN_FLOAT32]
    from_trl = [
        largest(f"{what} of a loss from TRL{rounded}", over_trl(names, index))
        for rounded, names in (("", in_float64), (", which rounds to float32", sorted(IN_FLOAT32)))
        for index, what in enumerate(("value", "gradient"))
    ]
    return [*of_losses, of_rules, *from_trl]


def over_losses(deviation: Callable[..., float], dtype: jnp.dtype) -> Iterable[tuple[float, str]]:
    with jax.enable_x64(dtype == jnp.float64):
        return [
            (max(deviation(case, dtype, seed) for seed in SEEDS), name) for name, case in cases.CASES.items()
        ]


def over_trl(names: Iterable[str], index: int) -> Iterable[tuple[float, str]]:
    return [
        (trl_cases.deviations(name, extreme=extreme)[index], name)
        for name in names
        for extreme in (False, True)
    ]


def largest(what: str, found: Iterable[tuple[float, str]]) -> Deviation:
    return Deviation(what, *max(found))


def quoted(deviation: float) -> float:
    """Twice as much, up to the next 1, 2 or 5 times a power of ten: another machine rounds a little otherwise."""
    power = 10.0 ** math.floor(math.log10(2 * deviation))
    return next(float(f"{step * power:.0e}") for step in (1, 2, 5, 10) if 2 * deviation <= step * power)


def markdown(found: list[Count | Deviation]) -> str:
    counted = [f"| {f.what} | {f.value} |" for f in found if isinstance(f, Count)]
    strayed = [f"| {f.what} | {quoted(f.value):.0e} | {f.where} |" for f in found if isinstance(f, Deviation)]
    return "\n".join(
        [
            *("| counted | number |", "|---|---:|", *counted, ""),
            *("| largest deviation | at most | found at |", "|---|---:|---|", *strayed),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.losses.figures", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="the block that docs/proof.md quotes")
    options = parser.parse_args()
    found = figures()
    if options.markdown:
        print(markdown(found))
        return
    table = Table("figure", "value", "found at", title="jaxalign: laws and deviations")
    for figure in found:
        table.add_row(*figure.cells())
    Console().print(table)


if __name__ == "__main__":
    main()
