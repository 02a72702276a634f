"""LISA: both ends of the network always train, and a few layers between them, drawn anew."""

from __future__ import annotations

import numpy as np

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError
from ray_snake.planning.span import Span, Visit
from ray_snake.planning.strategy import Strategy
from ray_snake.seeds import derive_seed


class Lisa(Strategy):
    """Layerwise importance sampled AdamW (Pan et al. 2024, arXiv:2403.17919).

    The embedding and the head train in every visit. So do `baseline.layers` of the layers between
    them, all equally likely, drawn for each visit: its steps are the method's sampling period. The
    paper has one node with all rows; on several it is a sequence.

    Raises:
        ConfigError: If the network has fewer such layers.
    """

    def __init__(self, config: SnakeConfig, *, nodes: int, blocks: int) -> None:
        super().__init__(config, nodes=nodes, blocks=blocks)
        if config.baseline.layers > blocks - 2:
            raise ConfigError(
                "baseline.layers",
                f"{config.baseline.layers} are more than the {max(0, blocks - 2)} blocks between "
                "the network's first and last",
                "lower it",
            )

    def plan(self, number: int, trip: int, node: int) -> Visit:
        """Return a visit that trains the ends and the layers that are drawn for it."""
        draw = np.random.Generator(np.random.PCG64(derive_seed(self.config.seed, "layers", number)))
        layers = 1 + draw.choice(self.blocks - 2, size=self.config.baseline.layers, replace=False)
        return Visit(
            number=number,
            trip=trip,
            node=node,
            span=Span(0, self.blocks),
            trained=(0, *sorted(int(one) for one in layers), self.blocks - 1),
        )
