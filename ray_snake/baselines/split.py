"""Split learning: nodes train the front of the network, a server at the driver's side the rest.

For every batch a node sends the server its front's outputs and the labels, and gets the gradient of
those outputs back. So activations and labels leave the nodes, which no other strategy lets happen.
"""

from __future__ import annotations

from typing import ClassVar

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.sharing import check_may_share
from ray_snake.planning.span import Visit
from ray_snake.planning.strategy import Strategy


class Split(Strategy):
    """Split learning (Gupta and Raskar 2018, arXiv:1810.06060), peer to peer.

    Nodes take turns; front and back both go on from what the visit before made of them. The front
    is the first `baseline.cut` blocks.

    Raises:
        ConfigError: If activations and labels may not leave a node, if the cut leaves one side
            without blocks, or if loss, codec or precision need a whole network in one place.
    """

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        check_may_share(config)
        self.cut = config.baseline.cut
        if self.cut >= blocks:
            raise ConfigError(
                "baseline.cut",
                f"{self.cut} blocks on the node leave the server none of the network's {blocks}",
                f"set it to a number from 1 to {blocks - 1}, of a network with 2 blocks or more",
            )
        for term in ("distillation", "proximal"):
            weight = getattr(config.loss, term)
            if weight > 0:
                raise ConfigError(
                    f"loss.{term}",
                    f"{weight:g} compares with a whole network, and with {config.strategy!r} no "
                    "side has one",
                    "set it to 0",
                )
        if config.training.optimizer_state != "reset":
            raise ConfigError(
                "training.optimizer_state",
                f"{config.training.optimizer_state!r} is for networks in one place",
                'set it to "reset"',
            )
        if config.training.precision != "fp32":
            raise ConfigError(
                "training.precision",
                f"{config.training.precision!r} is for networks in one place",
                'set it to "fp32"',
            )
        if config.training.group_lengths:
            raise ConfigError(
                "training.group_lengths",
                "true, and what goes over the cut keeps its padding",
                "set it to false",
            )
        if config.training.micro_batch is not None:
            raise ConfigError(
                "training.micro_batch",
                f"{config.training.micro_batch!r} is for networks in one place",
                'set it to "none", or lower training.batch_size',
            )
        if config.codec.name != "none":
            raise ConfigError(
                "codec.name",
                f"{config.codec.name!r} is for blocks that all nodes hold, and with "
                f"{config.strategy!r} they hold the front alone",
                'set it to "none"',
            )

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit that trains everything, the front on the node and the back beside it."""
        return self.whole(number, trip, node, averaged=self.averages, cut=self.cut)


class SplitFed(Split):
    """SplitFed V1 (Thapa et al. 2022, arXiv:2004.12088).

    In a round every node starts from the same front, and the server from the same back with a copy
    for each node; then fronts and backs are averaged like FedAvg's models.
    """

    averages: ClassVar[bool] = True
