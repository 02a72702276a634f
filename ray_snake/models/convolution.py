"""The plain convolution block that the convolutional networks are stacked from."""

from __future__ import annotations

from torch import nn

from ray_snake.models.initialization import kaiming_for_relu
from ray_snake.models.normalization import Norm, normalization

LEAST_CHANNELS = 8


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded, and at least 8."""
    return max(LEAST_CHANNELS, round(channels * width))


def convolution_block(
    inputs: int, outputs: int, *, norm: Norm, pool: bool = False
) -> nn.Sequential:
    """Return a block of 3x3 convolution, normalization, ReLU and, with `pool`, 2x2 max pooling.

    It takes float (batch, inputs, height, width) to (batch, outputs, height', width'), where
    height' is height, or with `pool` half of it rounded up, so that small pictures never vanish.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        norm: The normalization; without one the convolution has a bias.
        pool: Whether the picture is halved.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none"),
        normalization(norm, outputs),
        nn.ReLU(),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    block = nn.Sequential(*layers)
    kaiming_for_relu(block)
    return block
