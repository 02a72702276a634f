"""ResNet-18 for 32x32 pictures."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ray_snake.models.convolution import convolution_block, scaled
from ray_snake.models.initialization import kaiming_for_relu
from ray_snake.models.normalization import Norm, normalization
from ray_snake.models.registry import register
from ray_snake.settings_tree import PositiveFloat, PositiveInt

STAGE_CHANNELS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them (He et al., arXiv 1512.03385, figure 5).

    It takes float (batch, inputs, height, width) to (batch, outputs, height / stride,
    width / stride). The branch starts as zero, so that the block starts as its shortcut: through
    its last norm's weight (Goyal et al., arXiv 1706.02677, section 5.1) or, without norms, through
    its last convolution (Zhang et al., "Fixup Initialization", arXiv 1901.09321, section 3).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: 1, or 2 to halve the picture.
        norm: The normalization.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
        self.norm1 = normalization(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = normalization(norm, outputs)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias),
                normalization(norm, outputs),
            )
        )
        kaiming_for_relu(self)
        last = self.conv2 if norm == "none" else self.norm2
        nn.init.zeros_(last.get_parameter("weight"))

    def forward(self, features: Tensor) -> Tensor:
        """Return the branch plus the shortcut, after ReLU."""
        branch = self.relu(self.norm1(self.conv1(features)))
        branch = self.norm2(self.conv2(branch))
        activated: Tensor = self.relu(branch + self.shortcut(features))
        return activated


@register("resnet18")
def resnet18(
    *,
    channels: PositiveInt = 3,
    classes: PositiveInt = 10,
    width: PositiveFloat = 1.0,
    norm: Norm = "batch",
) -> nn.Sequential:
    """Build ResNet-18 in ten blocks: the stem, eight basic blocks, the head.

    He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385, table 1), with the
    3x3 stem without pooling that is usual for 32x32 pictures (section 4.2). It takes float
    (batch, channels, height, width), height and width from 1 up, to float (batch, classes).

    Args:
        channels: Channels of the pictures.
        classes: Outputs of the head.
        width: Multiplies the channels of every layer, which have at least 8.
        norm: `batch`, `group` or `none`; see `normalization`.
    """
    previous = scaled(STAGE_CHANNELS[0], width)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        stem=convolution_block(channels, previous, norm=norm)
    )
    for stage, stage_channels in enumerate(STAGE_CHANNELS):
        outputs = scaled(stage_channels, width)
        for position in range(BLOCKS_PER_STAGE):
            stride = 2 if stage > 0 and position == 0 else 1
            number = stage * BLOCKS_PER_STAGE + position + 1
            blocks[f"block{number}"] = BasicBlock(previous, outputs, stride=stride, norm=norm)
            previous = outputs
    blocks["head"] = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(previous, classes)
    )
    return nn.Sequential(blocks)
