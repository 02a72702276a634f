"""Rounds of parallel training from one model, whose results are averaged at the driver's side.

A trip is a round. Its visits are carried out one after another, or `snake.heads` at once; none sees
another's result.
"""

from __future__ import annotations

from typing import ClassVar

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.span import Span, Visit
from ray_snake.planning.strategy import Strategy


class FedAvg(Strategy):
    """Federated averaging (McMahan et al. 2017, arXiv:1602.05629), all nodes in every round.

    Each node trains the whole model; the average is weighted by the samples that each has seen.
    """

    averages: ClassVar[bool] = True
    spreads: ClassVar[bool] = True

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit that trains everything."""
        return self.whole(number, trip, node, averaged=True)


class FedProx(FedAvg):
    """FedAvg with a proximal term (Li et al. 2020, arXiv:1812.06127): mu is `loss.proximal`.

    Raises:
        ConfigError: If mu is 0, which would be FedAvg.
    """

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        if config.loss.proximal == 0:
            raise ConfigError(
                "loss.proximal", "is 0, and fedprox without it is fedavg", "set it, say to 0.01"
            )


class FedPart(FedAvg):
    """FedPart (Wang et al. 2024, arXiv:2410.11559): rounds that train and send one block each.

    A cycle is `baseline.full_rounds` rounds of the whole model, and then `baseline.block_rounds`
    for every block from the first to the last.
    """

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit that trains the round's blocks."""
        full, each = self.config.baseline.full_rounds, self.config.baseline.block_rounds
        place = (trip - 1) % (full + each * self.blocks) - full
        if place < 0:
            return self.whole(number, trip, node, averaged=True)
        block = place // each
        return Visit(
            number=number,
            trip=trip,
            node=node,
            span=Span(block, block + 1),
            trained=(block,),
            averaged=True,
        )
