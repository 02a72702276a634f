"""What may leave a node beside the blocks that it trained."""

from __future__ import annotations

from ray_snake.config import SnakeConfig
from ray_snake.errors import ConfigError


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
