"""Named distributions, as the command line writes them: `lognormal(1, 0.5)`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_snake.errors import ConfigError

Draws = NDArray[np.float64]
_FORM = re.compile(r"\s*(?P<name>[a-z]+)\s*\((?P<values>[^()]*)\)\s*")


@dataclass(frozen=True)
class Kind:
    """How numbers of a kind are drawn.

    Attributes:
        parameters: What its numbers are; a kind with none takes any number of them.
        draw: (generator, parameters, how many) -> draws.
    """

    parameters: tuple[str, ...]
    draw: Callable[[np.random.Generator, tuple[float, ...], int], Draws]


KINDS = {
    "constant": Kind(("value",), lambda _, given, n: np.full(n, given[0])),
    "uniform": Kind(
        ("low", "high"), lambda draw, given, n: draw.uniform(given[0], given[1], size=n)
    ),
    "lognormal": Kind(
        ("median", "sigma"), lambda draw, given, n: given[0] * draw.lognormal(0, given[1], size=n)
    ),
    "exponential": Kind(("mean",), lambda draw, given, n: draw.exponential(given[0], size=n)),
    "choice": Kind((), lambda draw, given, n: draw.choice(np.array(given), size=n)),
}


@dataclass(frozen=True)
class Distribution:
    """Non-negative numbers to draw.

    Attributes:
        text: As it was written.
        kind: Its kind.
        values: Its parameters.
    """

    text: str
    kind: Kind
    values: tuple[float, ...]

    @classmethod
    def parse(cls, option: str, text: str) -> Distribution:
        """Read `lognormal(1, 0.5)`, or a bare number, which is a constant.

        Args:
            option: What to call it in an error.
            text: What to read.

        Raises:
            ConfigError: If it is no distribution of non-negative numbers.
        """
        form = _FORM.fullmatch(text)
        name, given = (form["name"], form["values"]) if form else ("constant", text)
        try:
            values = tuple(float(one) for one in given.split(","))
        except ValueError:
            values = ()
        kind = KINDS.get(name)
        fits = kind is not None and values and len(values) == (len(kind.parameters) or len(values))
        fits = fits and (name != "uniform" or values[0] <= values[1])
        if kind is None or not fits or not all(0 <= one < np.inf for one in values):
            forms = ", ".join(
                f"{one}({', '.join(kind.parameters) or 'a, b, ..'})" for one, kind in KINDS.items()
            )
            raise ConfigError(
                option,
                f"{text!r} is no distribution of numbers from 0",
                f"use a number, or {forms}",
            )
        return cls(text=text, kind=kind, values=values)

    def draw(self, generator: np.random.Generator, number: int) -> Draws:
        """Return so many numbers."""
        return self.kind.draw(generator, self.values, number)
