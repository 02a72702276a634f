"""A multilayer perceptron."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ray_snake.models.initialization import kaiming_for_relu
from ray_snake.models.registry import register
from ray_snake.settings_tree import PositiveInt


@register("mlp")
def mlp(
    *, inputs: PositiveInt, classes: PositiveInt, hidden: tuple[PositiveInt, ...] = (128, 64)
) -> nn.Sequential:
    """Build a multilayer perceptron with ReLU: one block per hidden layer, and the head.

    It takes float (batch, ...) with `inputs` values a row to float (batch, classes).

    Args:
        inputs: Values in one row, all its dimensions multiplied.
        classes: Outputs of the head.
        hidden: Width of each hidden layer; the first block also flattens its input.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    width = inputs
    for number, outputs in enumerate(hidden, start=1):
        block = nn.Sequential(nn.Linear(width, outputs), nn.ReLU())
        kaiming_for_relu(block)
        blocks[f"hidden{number}"] = block
        width = outputs
    blocks["head"] = nn.Sequential(nn.Linear(width, classes))
    first = next(iter(blocks))
    blocks[first] = nn.Sequential(nn.Flatten(), *blocks[first].children())
    return nn.Sequential(blocks)
