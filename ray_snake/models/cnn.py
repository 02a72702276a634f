"""A small convolutional network for small pictures."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ray_snake.models.convolution import LEAST_CHANNELS, convolution_block
from ray_snake.models.normalization import Norm
from ray_snake.models.registry import register
from ray_snake.settings_tree import PositiveInt


@register("cnn")
def cnn(
    *,
    channels: PositiveInt = 1,
    classes: PositiveInt = 10,
    width: PositiveInt = 16,
    norm: Norm = "batch",
) -> nn.Sequential:
    """Build a small convolutional network in five blocks: four convolutions and the head.

    It takes float (batch, channels, height, width) to float (batch, classes); height and width may
    be anything from 4 up, since the head averages what is left of the picture (Lin et al.,
    "Network In Network", arXiv 1312.4400, section 3.2).

    Args:
        channels: Channels of the pictures.
        classes: Outputs of the head.
        width: Channels of the first convolution, at least 8; the others have 2, 2 and 4 times as
            many.
        norm: `batch`, `group` or `none`; see `normalization`.
    """
    base = max(LEAST_CHANNELS, width)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=convolution_block(channels, base, norm=norm),
        conv2=convolution_block(base, 2 * base, norm=norm, pool=True),
        conv3=convolution_block(2 * base, 2 * base, norm=norm),
        conv4=convolution_block(2 * base, 4 * base, norm=norm, pool=True),
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * base, classes)),
    )
    return nn.Sequential(blocks)
