"""Rows of tokens without the padding that they share: cut, and put together by length.

Only where the first block says which token is padding (`padding`): there nothing that counts
depends on it (`models.padding`), so that a batch may end with its longest row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_snake.engine.samples import Samples, in_order
from ray_snake.engine.stack import BlockStack

READ_ROWS = 4096


def row_lengths(stack: BlockStack, samples: Samples) -> NDArray[np.int64] | None:
    """Return how many tokens each row has up to its padding, (rows,); none without padding."""
    padding = stack.padding
    if padding is None:
        return None
    lengths = []
    for rows in in_order(len(samples), READ_ROWS):
        tokens, _ = samples.batch(rows)
        lengths.append(tokens.shape[1] - (tokens[:, ::-1] != padding).argmax(1))
    return np.concatenate(lengths)


def without_padding(stack: BlockStack, tensor: Tensor) -> Tensor:
    """Return a batch up to the end of its longest row, as a view; whole where there is no padding.

    Args:
        stack: The network.
        tensor: What reaches one of its blocks: tokens (batch, sequence), or features (batch,
            sequence, width), of padding zeros.
    """
    if stack.padding is None:
        return tensor
    counts = tensor != stack.padding if tensor.ndim == 2 else (tensor != 0).any(-1)
    places = torch.nonzero(counts.any(0))
    return tensor[:, : int(places[-1]) + 1] if len(places) else tensor
