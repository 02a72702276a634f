"""The normalization layers that the convolutional networks choose from."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["group", "batch", "none"]

MOST_GROUPS = 32
LEAST_CHANNELS_PER_GROUP = 4


def group_count(channels: int) -> int:
    """Return how many equal groups `channels` channels are normalized in.

    The largest divisor of `channels` up to 32 groups (Wu and He, "Group Normalization",
    arXiv 1803.08494, section 4) that leaves a group at least four channels: with fewer, a group on
    a picture of one pixel would have its own mean taken off and be all zeros.
    """
    most = max(1, min(MOST_GROUPS, channels // LEAST_CHANNELS_PER_GROUP))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def normalization(norm: Norm, channels: int) -> nn.Module:
    """Return the layer that normalizes a batch of `channels` x height x width feature maps.

    `batch` keeps running statistics as buffers (Ioffe and Szegedy, arXiv 1502.03167) that travel
    with their block, and that `training.fix_norms_after_trips` fixes; `group` keeps none, so it
    doesn't see which node a batch comes from; `none` passes its input on.
    """
    if norm == "group":
        return nn.GroupNorm(group_count(channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.Identity()
