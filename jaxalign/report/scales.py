"""Values to places and back to text: linear scales, round ticks, figures in words. Nothing is drawn here."""

import math
from dataclasses import dataclass
from typing import Literal

Unit = Literal["rate", "points", "plain", "count"]
"""How a figure is written: a share as per cent, a difference of shares in points, a number, a whole number."""

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map of [low, high] to [start, end]; what lies outside goes to the nearer end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the scale, about so many."""
        rough = (self.high - self.low) / max(about, 1)
        if rough <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def domain(values: list[float], *, include: tuple[float, ...] = (), pad: float = 0.04) -> tuple[float, float]:
    """The range of the finite values and of what it must include, a little widened; (0, 1) without any."""
    finite = [v for v in [*values, *include] if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = pad * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def figure(value: float | int | str | None, unit: Unit = "plain", *, signed: bool = False) -> str:
    """A figure in text; a dash where it is missing or not finite."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return MISSING
    sign, value = "+" if signed else "", value + 0.0  # no minus before 0
    match unit:
        case "rate":
            digits = 0 if abs(value) >= 0.0995 or round(100 * value, 1) == round(100 * value) else 1
            text = f"{100 * value:{sign}.{digits}f} %"
        case "points":
            text = f"{100 * value:+.1f}"
        case "count":
            text = f"{value:{sign},.0f}"
        case _:
            text = _plain(value, sign)
    return text.replace("-", "−")


def _plain(value: float, sign: str) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        digits = 2 if abs(value) < 100 else 1
        return f"{value:{sign}.{digits}f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.2g}"


def tick_text(value: float, unit: Unit) -> str:
    """The text beside a tick, without needless digits."""
    if unit in ("rate", "points"):
        return f"{100 * value:g}{' %' * (unit == 'rate')}".replace("-", "−")
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    return shown.replace("-", "−")
