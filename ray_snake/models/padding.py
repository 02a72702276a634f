"""Where a batch of token sequences is padded, said by the features themselves.

Block i feeds block i+1 one tensor and nothing beside it. So where a model has to know its padding
(attention in both directions, or a class read off the last token), its blocks keep the features of
padding at exact zeros, and every block sees from its input which positions are real. Features of a
real token come out of sums and norms: that all of them are exactly zero does not happen in a
network with weights drawn at random or trained.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mark(features: Tensor, real: Tensor) -> Tensor:
    """Return features (batch, sequence, width) with zeros where `real` (batch, sequence) is false.

    No gradient flows through the zeros.
    """
    return features.masked_fill(~real.unsqueeze(-1), 0.0)


def real_positions(features: Tensor) -> Tensor:
    """Return where marked features (batch, sequence, width) are no padding: bool (batch, sequence).

    In a row that has nothing else, as in a network of zeros, all positions count as real.
    """
    real = (features.detach() != 0).any(-1)
    return real | ~real.any(-1, keepdim=True)


def at_last(features: Tensor, real: Tensor | None) -> Tensor:
    """Return the features of each row's last real position, (batch, width).

    Args:
        features: (batch, sequence, width).
        real: (batch, sequence), bool; none: all positions are real.
    """
    if real is None:
        return features[:, -1]
    positions = torch.arange(real.shape[-1], device=real.device)
    last = (positions * real).argmax(-1)
    return features[torch.arange(len(features), device=features.device), last]
