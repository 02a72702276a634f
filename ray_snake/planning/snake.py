"""Snake Learning (Yu et al. 2025): a few consecutive blocks train at a time, node after node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.coverage import Coverage
from ray_snake.planning.order import Order, Turn, find_order
from ray_snake.planning.span import Visit, chosen_spans, cut_spans, trained_blocks
from ray_snake.planning.strategy import Strategy


class Snake(Strategy):
    """The span crawls through the network and the nodes as `snake.order` says.

    A visit counts towards coverage when it is handed out. A refused visit is told through
    `refused`, so that its node trains that span again sooner. The first `snake.warmup_trips` trips
    train the whole model on the nodes that can.

    Args:
        config: The run's settings.
        nodes: Number of nodes.
        blocks: Number of blocks of the network.

    Raises:
        ConfigError: If spans or warm-up nodes don't fit, or there is no such order.
    """

    order: ClassVar[type[Order] | None] = None
    """A user's own order; none: the one that the settings name."""

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        snake = config.snake
        if snake.spans is None:
            self.spans = cut_spans(blocks, snake.span_width)
            chosen = [tuple(span.blocks()) for span in self.spans]
        else:
            self.spans = chosen_spans(blocks, snake.spans)
            chosen = list(snake.spans)
        trained = [
            trained_blocks(one, blocks, train_first=snake.train_first, train_last=snake.train_last)
            for one in chosen
        ]
        self._places = list(zip(self.spans, trained, strict=True))
        self.coverage = Coverage(nodes, len(self.spans))
        self._order = (self.order or find_order(snake.order))(
            spans=len(self.spans), seed=config.seed, stay=snake.trips_per_span
        )
        self._warmup_nodes = frozenset(_warmup_nodes(config, nodes))

    def crossing(self, trip: int) -> list[int]:
        """Return the nodes of a trip as the order has them."""
        return self._order.crossing(trip, self.nodes)

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a warm-up visit, or one to the span that order and coverage choose."""
        warmup = self.config.snake.warmup_trips
        if trip <= warmup:
            if node in self._warmup_nodes:
                return self.whole(number, trip, node)
            turn = Turn(number=number, trip=trip, node=node)
        else:
            turn = Turn(number=number - warmup * self.nodes, trip=trip - warmup, node=node)
        choice = self._order.choose(turn, self.coverage.least_trained(node, self._order.stay - 1))
        span, trained = self._places[choice]
        return Visit(number=number, trip=trip, node=node, span=span, trained=trained)

    def is_warm_up(self, visit: Visit) -> bool:
        """Return whether a visit trains the whole model, as only some nodes may be able to."""
        return visit.trip <= self.config.snake.warmup_trips and visit.node in self._warmup_nodes

    def learning_rate(self, visit: Visit) -> float:
        """Return the learning rate of a visit: lower where the whole model trains."""
        factor = self.config.snake.warmup_rate if self.is_warm_up(visit) else 1.0
        return factor * super().learning_rate(visit)

    def handed_out(self, visit: Visit) -> None:
        """Count a visit to a span."""
        if not self.is_warm_up(visit):
            self.coverage.add(visit.node, self._places.index((visit.span, visit.trained)))

    def refused(self, visit: Visit) -> None:
        """Take a refused visit out of the coverage."""
        if not self.is_warm_up(visit):
            self.coverage.take_back(visit.node, self._places.index((visit.span, visit.trained)))


def _warmup_nodes(config: SnakeConfig, nodes: int) -> Sequence[int]:
    """Return the nodes that can train the whole model.

    Raises:
        ConfigError: If there is no such node.
    """
    chosen: Sequence[int] | None = config.snake.warmup_nodes
    if chosen is None:
        return range(nodes)
    if max(chosen) >= nodes:
        raise ConfigError(
            "snake.warmup_nodes",
            f"there is no node {max(chosen)} of {nodes}",
            f"use numbers from 0 to {nodes - 1}",
        )
    return chosen
