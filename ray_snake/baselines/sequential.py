"""One model that goes from node to node, each going on from what the one before left."""

from __future__ import annotations

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.span import Span, Visit
from ray_snake.planning.strategy import Strategy


class Cyclic(Strategy):
    """Sequential training of the whole model (Li and Lyu 2023, arXiv:2311.03154)."""

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit that trains everything."""
        return self.whole(number, trip, node)


class FedCyBGD(Strategy):
    """Cyclic block updates (Wang et al. 2024, arXiv:2406.11187), without its compression.

    The network is cut into one segment per node (of equal block counts, as far as possible). The
    nodes take turns, and each only ever trains its own segment, with `baseline.train_last` the last
    block beside.
    """

    keeps_nodes = "each has a segment of the network for its own"

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit that trains the node's segment."""
        segments = min(self.nodes, self.blocks)
        segment = node % segments
        span = Span(
            segment * self.blocks // segments,
            (segment + 1) * self.blocks // segments,
        )
        trained = {*span.blocks()}
        if self.config.baseline.train_last:
            trained.add(self.blocks - 1)
        return Visit(number=number, trip=trip, node=node, span=span, trained=tuple(sorted(trained)))


class Alone(Cyclic):
    """One node that trains the whole model by itself.

    On all rows in one place it is centralised training, the upper bound; on one node's own rows it
    is local training, the lower bound.

    Raises:
        ConfigError: If there are more nodes: their rows would have to move.
    """

    keeps_nodes = "it trains on one node's rows"

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        if nodes != 1:
            raise ConfigError(
                "strategy",
                f"{config.strategy!r} trains on one node's rows, and there are {nodes} nodes",
                "give one shard, or set data.partition.nodes = 1 for all rows of data.source",
            )
