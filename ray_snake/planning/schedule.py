"""The visits of a run, one after another: order and coverage put together."""

from __future__ import annotations

import math

from ray_snake.config import SnakeSection, TrainingConfig
from ray_snake.planning.coverage import Coverage
from ray_snake.planning.order import Turn, make_order
from ray_snake.planning.span import Visit, cut_spans, trained_blocks


class Schedule:
    """Hands out a run's visits in order; the same inputs give the same visits.

    A visit counts towards coverage when it is handed out. A refused visit is told through
    `refused`, so that its node trains that span again sooner.

    Args:
        snake: The order, span width, trips and ends.
        nodes: Number of nodes.
        blocks: Number of blocks of the network.
        seed: The run's seed.

    Raises:
        ConfigError: If a span is wider than the network.
    """

    def __init__(self, snake: SnakeSection, *, nodes: int, blocks: int, seed: int) -> None:
        self.spans = cut_spans(blocks, snake.span_width)
        self.total = snake.trips * nodes
        self.nodes = nodes
        self.blocks = blocks
        self.coverage = Coverage(nodes, len(self.spans))
        self._order = make_order(
            snake.order, spans=len(self.spans), seed=seed, stay=snake.trips_per_span
        )
        self._trained = [
            trained_blocks(span, blocks, train_first=snake.train_first, train_last=snake.train_last)
            for span in self.spans
        ]
        self._handed_out = 0
        self._crossing: list[int] = []
        self._crossing_of = 0

    def upcoming_nodes(self) -> list[int]:
        """Return the nodes that still have visits, in the order of their next one."""
        trip, position = divmod(self._handed_out, self.nodes)
        left = [] if position == 0 else self._order.crossing(trip + 1, self.nodes)[position:]
        next_trip = trip + 1 if position == 0 else trip + 2
        if next_trip * self.nodes <= self.total:
            left = [*left, *self._order.crossing(next_trip, self.nodes)]
        return list(dict.fromkeys(left))

    def next(self) -> Visit | None:
        """Hand out the next visit, or none when the run's trips are done."""
        visit = self.peek()
        if visit is not None:
            self._handed_out = visit.number
            self.coverage.add(visit.node, self.spans.index(visit.span))
        return visit

    def peek(self) -> Visit | None:
        """Return the visit that `next` would hand out now, without handing it out."""
        if self._handed_out == self.total:
            return None
        trip, position = divmod(self._handed_out, self.nodes)
        if self._crossing_of != trip + 1:
            self._crossing_of = trip + 1
            self._crossing = self._order.crossing(trip + 1, self.nodes)
        turn = Turn(number=self._handed_out + 1, trip=trip + 1, node=self._crossing[position])
        open_spans = self.coverage.least_trained(turn.node, self._order.stay - 1)
        choice = self._order.choose(turn, open_spans)
        return Visit(
            number=turn.number,
            trip=turn.trip,
            node=turn.node,
            span=self.spans[choice],
            trained=self._trained[choice],
        )

    def refused(self, visit: Visit) -> None:
        """Take a refused visit out of the coverage."""
        self.coverage.take_back(visit.node, self.spans.index(visit.span))


def learning_rate(training: TrainingConfig, *, trip: int, trips: int) -> float:
    """Return the learning rate of a trip (from 1): constant within it.

    `cosine` is eta/2 * (1 + cos(pi * (trip - 1) / trips)), Loshchilov and Hutter (2017,
    arXiv:1608.03983) without restarts, stepped once a trip.
    """
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (trip - 1) / trips))
