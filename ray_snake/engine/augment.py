"""Augmentation: pictures changed at random, in a way that named seeds decide per row and epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ray_snake.config import AugmentationConfig
from ray_snake.engine.samples import Rows
from ray_snake.seeds import derive_seed


class Augmentation:
    """Mirrors and shifts the pictures of one visit.

    What a row becomes in a draw does not depend on the batch that it is in, so the outputs of a
    frozen prefix can be kept for every draw.

    Args:
        settings: What is changed.
        rows: Number of rows of the shard.
        passes: Passes over the shard in the visit.
        seed: The visit's seed.

    Attributes:
        draws: Number of different draws: epoch e takes draw e modulo this.
    """

    def __init__(self, settings: AugmentationConfig, *, rows: int, passes: int, seed: int) -> None:
        self._settings = settings
        self._rows = rows
        self._seed = seed
        changes = settings.flip or settings.crop > 0
        self.draws = min(passes, settings.variants or passes) if changes else 1
        self._drawn: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, inputs: Tensor, rows: Rows, draw: int) -> Tensor:
        """Return pictures (n, channels, height, width), float, as they are in a draw.

        Args:
            inputs: Those of `rows`, on any device; it is not written to.
            rows: Row numbers (n,).
            draw: From 0 to `draws` - 1.
        """
        flips, down, right = (drawn[torch.from_numpy(rows)] for drawn in self._of(draw))
        if self._settings.flip:
            chosen = flips.to(inputs.device).view(-1, 1, 1, 1)
            inputs = torch.where(chosen, inputs.flip(-1), inputs)
        if self._settings.crop:
            inputs = _shifted(inputs, down, right, self._settings.crop)
        return inputs

    def _of(self, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return for every row whether it is mirrored, and where its crop begins."""
        if draw not in self._drawn:
            seed = derive_seed(self._seed, "augmentation", draw)
            generator = np.random.Generator(np.random.PCG64(seed))
            places = 2 * self._settings.crop + 1
            self._drawn[draw] = (
                torch.from_numpy(generator.random(self._rows) < 0.5),
                torch.from_numpy(generator.integers(0, places, self._rows)),
                torch.from_numpy(generator.integers(0, places, self._rows)),
            )
        return self._drawn[draw]


def _shifted(inputs: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    """Pad with zeros, and cut each picture out at its own place (He et al. 2016, CIFAR-10)."""
    count, channels, height, width = inputs.shape
    device = inputs.device
    padded = torch.nn.functional.pad(inputs, (padding,) * 4)
    y = down.to(device).view(-1, 1, 1, 1) + torch.arange(height, device=device).view(1, 1, -1, 1)
    x = right.to(device).view(-1, 1, 1, 1) + torch.arange(width, device=device).view(1, 1, 1, -1)
    picture = torch.arange(count, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[picture, channel, y, x]
