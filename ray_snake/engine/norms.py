"""Batch norms of blocks that train: where they use and keep the statistics that they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def keep_statistics(module: nn.Module) -> list[nn.Module]:
    """Have the batch norms that train use, and not change, the statistics that they have.

    Their weights train all the same (FixBN, Zhong et al. 2023, arXiv:2303.06530).

    Returns:
        Those that did not so before.
    """
    norms: list[nn.Module] = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
    ]
    for layer in norms:
        layer.eval()
    return norms


@contextmanager
def statistics_for(module: nn.Module, rows: int) -> Iterator[None]:
    """Have batch norms train on some rows; one alone gets the statistics that there are.

    A row is alone where it is a shard's only one, or a batch goes through in parts. torch refuses
    to take the variance of one value, which such a row is for a norm behind the last pooling.

    Args:
        module: What trains, forward and backward pass.
        rows: How many go through it at once.
    """
    alone = keep_statistics(module) if rows == 1 else []
    try:
        yield
    finally:
        for layer in alone:
            layer.train()
