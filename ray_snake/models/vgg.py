"""VGG-11 for 32x32 pictures."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ray_snake.models.convolution import convolution_block, scaled
from ray_snake.models.initialization import kaiming_for_relu
from ray_snake.models.normalization import Norm
from ray_snake.models.registry import register
from ray_snake.settings_tree import PositiveFloat, PositiveInt

# Channels of each convolution, and whether it ends in max pooling (configuration A).
CONVOLUTIONS = (
    (64, True),
    (128, True),
    (256, False),
    (256, True),
    (512, False),
    (512, True),
    (512, False),
    (512, True),
)


@register("vgg11")
def vgg11(
    *,
    channels: PositiveInt = 3,
    classes: PositiveInt = 10,
    width: PositiveFloat = 1.0,
    norm: Norm = "batch",
) -> nn.Sequential:
    """Build VGG-11 in ten blocks: eight convolutions, one hidden linear layer, the head.

    Configuration A of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale
    Image Recognition" (arXiv 1409.1556, table 1), with normalization and one hidden layer instead
    of two, as is usual for 32x32 pictures. It takes float (batch, channels, height, width), height
    and width up to 32, to float (batch, classes).

    Args:
        channels: Channels of the pictures.
        classes: Outputs of the head.
        width: Multiplies the channels of every layer, which have at least 8.
        norm: `batch`, `group` or `none`; see `normalization`.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    previous = channels
    for number, (outputs, pool) in enumerate(CONVOLUTIONS, start=1):
        outputs = scaled(outputs, width)
        blocks[f"conv{number}"] = convolution_block(previous, outputs, norm=norm, pool=pool)
        previous = outputs
    hidden = scaled(512, width)
    blocks["hidden"] = nn.Sequential(nn.Flatten(), nn.Linear(previous, hidden), nn.ReLU())
    kaiming_for_relu(blocks["hidden"])
    blocks["head"] = nn.Sequential(nn.Linear(hidden, classes))
    return nn.Sequential(blocks)
