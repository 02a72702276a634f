"""Strategies: who trains what next, and whether results follow each other or are averaged.

The snake is one (`planning.snake`), its rivals are others (`ray_snake.baselines`). A strategy plans
visits; the driver carries them out. The same settings give the same visits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from ray_snake.config import SnakeConfig, TrainingConfig
from ray_snake.errors import ConfigError
from ray_snake.extensions import find
from ray_snake.planning.span import Span, Visit


class Strategy(ABC):
    """Hands out a run's visits in order.

    A trip visits every node once, forth and back in turn; a strategy says which blocks a visit
    trains. It can plan other trips too: `crossing`.

    Args:
        config: The run's settings.
        nodes: Number of nodes.
        blocks: Number of blocks of the network.

    Raises:
        ConfigError: If the settings don't fit the strategy, the nodes or the network.
    """

    averages: ClassVar[bool] = False
    """Whether some visits are averaged: all of a trip's then start from the same model."""

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        self.config = config
        self.nodes = nodes
        self.blocks = blocks
        self.total = config.snake.trips * nodes
        self._handed_out = 0
        self._crossing: list[int] = []
        self._crossing_of = 0

    @abstractmethod
    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return the visit that comes next.

        Args:
            number: Its number, from 1.
            trip: Its trip, from 1.
            node: Its node, from 0.
        """

    def crossing(self, trip: int) -> list[int]:
        """Return the nodes of a trip in order: forth on the first trip, back on the second."""
        forth = list(range(self.nodes))
        return forth if trip % 2 == 1 else forth[::-1]

    def learning_rate(self, visit: Visit) -> float:
        """Return the learning rate of a visit: constant within a trip."""
        return scheduled(self.config.training, trip=visit.trip, trips=self.config.snake.trips)

    def is_warm_up(self, visit: Visit) -> bool:
        """Return whether a visit needs more of its node than most nodes can give."""
        del visit
        return False

    def handed_out(self, visit: Visit) -> None:  # noqa: B027 - for those that count
        """Note that a visit was handed out."""

    def refused(self, visit: Visit) -> None:  # noqa: B027 - likewise
        """Note that a visit's result did not become part of the model."""

    def next(self) -> Visit | None:
        """Hand out the next visit, or none when the run's trips are done."""
        visit = self.peek()
        if visit is not None:
            self._handed_out = visit.number
            self.handed_out(visit)
        return visit

    def peek(self) -> Visit | None:
        """Return the visit that `next` would hand out now, without handing it out."""
        if self._handed_out == self.total:
            return None
        trip, position = divmod(self._handed_out, self.nodes)
        if self._crossing_of != trip + 1:
            self._crossing_of = trip + 1
            self._crossing = self.crossing(trip + 1)
        return self.plan(self._handed_out + 1, trip + 1, self._crossing[position])

    def upcoming_nodes(self) -> list[int]:
        """Return the nodes that still have visits, in the order of their next one."""
        trip, position = divmod(self._handed_out, self.nodes)
        left = [] if position == 0 else self.crossing(trip + 1)[position:]
        next_trip = trip + 1 if position == 0 else trip + 2
        if next_trip * self.nodes <= self.total:
            left = [*left, *self.crossing(next_trip)]
        return list(dict.fromkeys(left))

    def whole(
        self,
        number: int,
        trip: int,
        node: int,
        *,
        averaged: bool = False,
        cut: int | None = None,
    ) -> Visit:
        """Return a visit that trains all blocks, on the node or on both sides of a cut."""
        return Visit(
            number=number,
            trip=trip,
            node=node,
            span=Span(0, self.blocks),
            trained=tuple(range(self.blocks)),
            averaged=averaged,
            cut=cut,
        )


def check_may_share(config: SnakeConfig) -> None:
    """Check that what split learning sends may leave a node.

    Raises:
        ConfigError: If the settings don't say so.
    """
    if not config.baseline.shares_activations:
        raise ConfigError(
            "baseline.shares_activations",
            f"is false, and with strategy {config.strategy!r} the activations at the cut and the "
            "label of every row, and the node's label counts, leave their node for a server at "
            "the driver's side",
            "set it to true if they may, or choose a strategy that keeps them on the node",
        )


def scheduled(training: TrainingConfig, *, trip: int, trips: int) -> float:
    """Return the learning rate of a trip (from 1).

    `cosine` is eta/2 * (1 + cos(pi * (trip - 1) / trips)), Loshchilov and Hutter (2017,
    arXiv:1608.03983) without restarts, stepped once a trip.
    """
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (trip - 1) / trips))


def make_strategy(
    config: SnakeConfig, *, nodes: int, blocks: int, kind: type[Strategy] | None = None
) -> Strategy:
    """Return the settings' strategy at a run's start.

    Args:
        config: The run's settings.
        nodes: Number of nodes.
        blocks: Number of blocks of the network.
        kind: A user's own class; none: what `strategy` names.

    Raises:
        ConfigError: If there is none of that name, or the settings don't fit it.
    """
    chosen = kind or find("strategy", config.strategy)
    if not (isinstance(chosen, type) and issubclass(chosen, Strategy)):
        raise ConfigError(
            "strategy",
            f"{config.strategy!r} is no subclass of ray_snake.Strategy",
            "derive it from ray_snake.Strategy",
        )
    if chosen.averages and config.codec.name != "none":
        raise ConfigError(
            "codec.name",
            f"{config.codec.name!r} is for blocks that go from node to node, and "
            f"{config.strategy!r} averages them at the driver's side",
            'set it to "none"',
        )
    if chosen.averages and config.training.optimizer_state != "reset":
        raise ConfigError(
            "training.optimizer_state",
            f"{config.training.optimizer_state!r} is for blocks that go from node to node, and "
            f"{config.strategy!r} averages them",
            'set it to "reset"',
        )
    return chosen(config, nodes=nodes, blocks=blocks)
