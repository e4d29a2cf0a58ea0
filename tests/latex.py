"""Evaluates the LaTeX of the documentation's formulas, so that what is printed can be compared with what is computed.

Understands what the pages use: + - * / ^, implicit products, \\frac, \\sigma, \\log, \\max, |x|, [a < b].
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

DERIVATIVE = re.compile(r"\\frac\{\\partial L\}\{\\partial (\w+)\}")
ABSOLUTE = re.compile(r"\|([^|]+)\|")
TOKEN = re.compile(r"\d+\.?\d*|(?:\\[a-zA-Z]+|[a-zA-Z])(?:_(?:\{[^}]*\}|\w))?|[-+/^(){}\[\]<>,]")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    r"\sigma": lambda x: 1 / (1 + np.exp(-x)),
    r"\log": np.log,
    r"\max": np.maximum,
    r"\abs": np.abs,
}
COMPARISONS = {"<": np.less, ">": np.greater, r"\le": np.less_equal}


def evaluate(block: str, symbols: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of `a = ...` statements by their left side, derivatives as 'd p_w'; later ones see earlier ones."""
    text = re.sub(r"\\(begin|end)\{aligned\}|&|\\left|\\right", " ", block)
    text = DERIVATIVE.sub(r"d \1", re.sub(r"\\,", " ", text))
    text = ABSOLUTE.sub(r"\\abs(\1)", text)
    values = dict(symbols)
    for statement in re.split(r"\\\\|\\qquad", text):
        *names, formula = (side.strip(" \n,") for side in statement.split("="))
        value = Expression(formula, values).value()
        for name in names:
            values[name.removeprefix("-").strip()] = -value if name.startswith("-") else value
    return values


class Expression:
    """A formula read from left to right. Raises ValueError at what it does not understand."""

    def __init__(self, formula: str, symbols: Mapping[str, np.ndarray]) -> None:
        self.tokens, self.symbols = TOKEN.findall(formula), symbols
        if left := TOKEN.sub("", formula).strip():
            raise ValueError(f"cannot read {left!r} in {formula!r}")

    def value(self) -> np.ndarray:
        """The value of the whole formula."""
        result = self.sum()
        if self.tokens:
            raise ValueError(f"cannot read on at {' '.join(self.tokens)!r}")
        return result

    def sum(self) -> np.ndarray:
        result = -self.product() if self.take("-") else self.product()
        while self.next() in ("+", "-"):
            sign = 1 if self.tokens.pop(0) == "+" else -1
            result = result + sign * self.product()
        return result

    def product(self) -> np.ndarray:
        result = self.power()
        while self.next() not in (None, "+", "-", ")", "}", "]", ",", *COMPARISONS):
            result = result / self.power() if self.take("/") else result * self.power()
        return result

    def power(self) -> np.ndarray:
        base = self.atom()
        if not self.take("^"):
            return base
        return base ** (self.group("{", "}") if self.next() == "{" else self.atom())

    def atom(self) -> np.ndarray:
        match token := self.next():
            case "(":
                return self.group("(", ")")
            case "[":
                return self.condition()
            case r"\frac":
                self.expect(token)
                return self.group("{", "}") / self.group("{", "}")
            case _ if token in FUNCTIONS:
                self.expect(token)
                return FUNCTIONS[token](*self.arguments())
            case _:
                self.expect(token)
                return self.leaf(str(token))

    def leaf(self, token: str) -> np.ndarray:
        if token[0].isdigit():
            return np.array(float(token))
        if token not in self.symbols:
            raise ValueError(f"unknown symbol {token!r}; known: {sorted(self.symbols)}")
        return self.symbols[token]

    def arguments(self) -> list[np.ndarray]:
        """Those in parentheses, or the one factor that follows, as in \\log\\sigma(x) or \\log q."""
        if not self.take("("):
            return [self.atom()]
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        self.expect(")")
        return found

    def condition(self) -> np.ndarray:
        """1 where [a < b] holds, else 0."""
        self.expect("[")
        left, comparison, right = self.sum(), self.tokens.pop(0), self.sum()
        self.expect("]")
        return COMPARISONS[comparison](left, right).astype(np.float64)

    def group(self, opening: str, closing: str) -> np.ndarray:
        self.expect(opening)
        result = self.sum()
        self.expect(closing)
        return result

    def next(self) -> str | None:
        return self.tokens[0] if self.tokens else None

    def take(self, token: str) -> bool:
        if self.next() != token:
            return False
        self.tokens.pop(0)
        return True

    def expect(self, token: str | None) -> None:
        if not self.tokens or not self.take(str(token)):
            raise ValueError(f"expected {token!r}, found {self.next()!r}")
