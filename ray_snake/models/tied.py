"""Tied weights across blocks: a layer that uses another block's embedding.

The embedding's block owns the weight: it travels, is stored and is counted there, once. The layer
looks it up whenever it computes, so no copy of it exists anywhere. When the embedding's block is
trained, gradients reach the weight from both of its uses, as in the network uncut; when it is
frozen, so is the layer, and its block trains only the weights that it owns.

The alternative, a copy in the last block, would untie the two in the first visit that trains the
last block alone, and send the widest weight of the network along with every such visit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TiedLinear(nn.Module):
    """A linear layer with the weight of an embedding (Press and Wolf 2017, arXiv:1608.05859).

    Args:
        embedding: The embedding, part of another block.
        bias: A bias of its own, (tokens,); none: no bias.

    Attributes:
        reads: Modules of other blocks whose weights this one computes with. `BlockStack` looks for
            it: those blocks have to be there where this one computes.
    """

    bias: nn.Parameter | None

    def __init__(self, embedding: nn.Embedding, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        # In a tuple, torch takes it for no child: its weight is none of this module's.
        self.reads = (embedding,)
        self.register_parameter("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        """Take features (..., width) to one score for each token, (..., tokens).

        Scores have the weight's dtype: of a frozen embedding in bfloat16 no copy is made.
        """
        weight: Tensor = self.reads[0].weight
        bias: Tensor | None = self.bias
        if features.dtype != weight.dtype and not torch.is_autocast_enabled(features.device.type):
            features = features.to(weight.dtype)
            bias = None if bias is None else bias.to(weight.dtype)
        return F.linear(features, weight, bias)
