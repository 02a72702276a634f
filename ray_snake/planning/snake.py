"""Snake Learning (Yu et al. 2025): a few consecutive blocks train at a time, node after node."""

from __future__ import annotations

from typing import ClassVar

from ray_snake.config import SnakeConfig
from ray_snake.planning.coverage import Coverage
from ray_snake.planning.order import Order, Turn, find_order
from ray_snake.planning.span import Visit, cut_spans, trained_blocks
from ray_snake.planning.strategy import Strategy


class Snake(Strategy):
    """The span crawls through the network and the nodes as `snake.order` says.

    A visit counts towards coverage when it is handed out. A refused visit is told through
    `refused`, so that its node trains that span again sooner.

    Args:
        config: The run's settings.
        nodes: Number of nodes.
        blocks: Number of blocks of the network.

    Raises:
        ConfigError: If a span is wider than the network, or there is no such order.
    """

    order: ClassVar[type[Order] | None] = None
    """A user's own order; none: the one that the settings name."""

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        snake = config.snake
        self.spans = cut_spans(blocks, snake.span_width)
        self.coverage = Coverage(nodes, len(self.spans))
        self._order = (self.order or find_order(snake.order))(
            spans=len(self.spans), seed=config.seed, stay=snake.trips_per_span
        )
        self._trained = [
            trained_blocks(span, blocks, train_first=snake.train_first, train_last=snake.train_last)
            for span in self.spans
        ]

    def crossing(self, trip: int) -> list[int]:
        """Return the nodes of a trip as the order has them."""
        return self._order.crossing(trip, self.nodes)

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit to the span that the order chooses of those that coverage leaves open."""
        turn = Turn(number=number, trip=trip, node=node)
        choice = self._order.choose(turn, self.coverage.least_trained(node, self._order.stay - 1))
        return Visit(
            number=number,
            trip=trip,
            node=node,
            span=self.spans[choice],
            trained=self._trained[choice],
        )

    def handed_out(self, visit: Visit) -> None:
        """Count a visit."""
        self.coverage.add(visit.node, self.spans.index(visit.span))

    def refused(self, visit: Visit) -> None:
        """Take a refused visit out of the coverage."""
        self.coverage.take_back(visit.node, self.spans.index(visit.span))
