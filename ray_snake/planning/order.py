"""Orders: how the snake pairs nodes with spans. A new order is one class; see docs/extending.md.

An order proposes, coverage disposes: whatever an order would like, a node is only ever given one
of the spans that it has trained least often, or less than `stay` times more often than that. So
for every node the counts of any two of its spans differ by `stay` at most, at any time and with
every order, and no node can be locked to a span.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_snake.extensions import check_class, find
from ray_snake.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A visit that has its node but not yet its span.

    Attributes:
        number: The visit's number, from 1.
        trip: Its trip, from 1.
        node: Its node, from 0.
    """

    number: int
    trip: int
    node: int


def there_and_back(step: int, places: int) -> int:
    """Return the place at `step` (from 0) of a walk 0, 1, .., places-1, places-1, .., 1, 0, 0, ..

    The ends are taken twice in a row, so that every place comes equally often.
    """
    phase = step % (2 * places)
    return phase if phase < places else 2 * places - 1 - phase


def nearest(place: int, choices: Sequence[int]) -> int:
    """Return the choice nearest to `place`; of two equally near, the lower one."""
    if place in choices:
        return place
    return min(choices, key=lambda choice: (abs(choice - place), choice))


def forth_and_back(trip: int, nodes: int, *, turns: bool = True) -> list[int]:
    """Return the nodes of a trip (from 1): back on even trips if the snake turns, else forth."""
    forth = list(range(nodes))
    return forth[::-1] if turns and trip % 2 == 0 else forth


class Order(ABC):
    """Decides the order of nodes within a trip and the span of each visit.

    Args:
        spans: Number of spans.
        seed: The run's seed, for orders that draw.
        stay: Trips before the span moves on, for orders that stay with one.
        turns: Whether every second trip goes back, for orders with a fixed crossing.
    """

    def __init__(self, *, spans: int, seed: int, stay: int = 1, turns: bool = True) -> None:
        self.spans = spans
        self.seed = seed
        self.stay = stay
        self.turns = turns

    def crossing(self, trip: int, nodes: int) -> list[int]:
        """Return the nodes of a trip in order: forth on the first trip, back on the second."""
        return forth_and_back(trip, nodes, turns=self.turns)

    @abstractmethod
    def choose(self, turn: Turn, least_trained: Sequence[int]) -> int:
        """Return the span of a visit: one of `least_trained`, which coverage leaves open."""


class SpanMajor(Order):
    """The span stays while the snake crosses all nodes, then moves: a visit moves few bytes.

    A node must learn the final weights of the span that was left, beside those of the span it
    trains. With `stay` trips before the span moves, that is one more span's bytes in `stay` visits.
    """

    def choose(self, turn: Turn, least_trained: Sequence[int]) -> int:
        """Return the trip's span."""
        return nearest(there_and_back((turn.trip - 1) // self.stay, self.spans), least_trained)


class Diagonal(Order):
    """The span moves with every visit, forth and back through the network."""

    def choose(self, turn: Turn, least_trained: Sequence[int]) -> int:
        """Return the span next on the walk, or the nearest to it that the node has to catch up."""
        return nearest(there_and_back(turn.number - 1, self.spans), least_trained)


class RandomOrder(Order):
    """Nodes in a fresh random order each trip, spans drawn evenly: the control."""

    def crossing(self, trip: int, nodes: int) -> list[int]:
        """Return the nodes in an order drawn for this trip."""
        draw = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "crossing", trip)))
        return [int(node) for node in draw.permutation(nodes)]

    def choose(self, turn: Turn, least_trained: Sequence[int]) -> int:
        """Return one of the node's least trained spans, drawn for this visit."""
        return least_trained[derive_seed(self.seed, "span", turn.number) % len(least_trained)]


def find_order(name: str) -> type[Order]:
    """Return the order of a name.

    Raises:
        ConfigError: If there is none of that name, or it lacks a method.
    """
    found: type[Order] = check_class("order", find("order", name), Order)
    return found
