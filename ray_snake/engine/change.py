"""What a visit did to its weights: how far they moved, and whether they are still numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CHUNK = 2**18


@torch.no_grad()
def update_norm(weights: Sequence[Tensor], arrived: Sequence[Tensor]) -> float:
    """Return the L2 norm of the weights' change: inf unless all of them are finite.

    It goes over the weights once, in pieces that stay in the processor's cache.

    Args:
        weights: What a visit returned.
        arrived: What it started from: the same weights in the same order.
    """
    total = 0.0
    for weight, before in zip(weights, arrived, strict=True):
        flat, flat_before = weight.flatten(), before.flatten()
        buffer = torch.empty_like(flat[:CHUNK])
        for start in range(0, flat.numel(), CHUNK):
            piece = flat[start : start + CHUNK]
            difference = buffer[: len(piece)]
            torch.sub(piece, flat_before[start : start + CHUNK], out=difference)
            total += float(difference.dot(difference))
    return math.sqrt(total) if math.isfinite(total) else math.inf


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no floating-point tensor holds NaN or infinity."""
    return all(_is_finite(tensor) for tensor in tensors if tensor.is_floating_point())


def _is_finite(tensor: Tensor) -> bool:
    # A sum only reads, where `isfinite` writes as much again; but finite numbers can overflow it.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())
