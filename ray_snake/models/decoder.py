"""A small transformer decoder: language modelling, and classes of sequences."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_snake.errors import ModelError
from ray_snake.models.padding import at_last, mark, real_positions
from ray_snake.models.registry import register
from ray_snake.models.tied import TiedLinear
from ray_snake.settings_tree import Fraction, NonNegativeInt, PositiveInt

Task = Literal["language_modelling", "sequence_classification"]

ROTARY_BASE = 10_000.0
NORM_EPSILON = 1e-6
INITIAL_STD = 0.02


class TokenEmbedding(nn.Module):
    """The first block: int64 (batch, sequence) to float (batch, sequence, width).

    Args:
        vocabulary: Number of tokens.
        width: Features of a token.
        padding: The token of padding, whose features are then exact zeros; none: padding is like
            any token.
        dropout: Share of features dropped in training.
    """

    def __init__(self, vocabulary: int, width: int, *, padding: int | None, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.padding = padding
        nn.init.normal_(self.tokens.weight, std=INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look the tokens up."""
        features: Tensor = self.dropout(self.tokens(tokens))
        return features if self.padding is None else mark(features, tokens != self.padding)


class DecoderLayer(nn.Module):
    """Causal self-attention and a gated feed-forward network, each behind a norm, each added on.

    RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), rotary positions (Su et al. 2021,
    arXiv:2104.09864) and SwiGLU (Shazeer 2020, arXiv:2002.05202), put together as in Llama (Touvron
    et al. 2023, arXiv:2302.13971). It takes float (batch, sequence, width) to the same shape.

    Args:
        width: Features of a token.
        heads: Attention heads; they share the width.
        hidden: Width of the feed-forward network.
        depth: Layers of the network, for the initial weights.
        dropout: Share of each branch's features dropped in training.
        marks_padding: Whether features of padding arrive as zeros and have to leave as such.

    Attributes:
        alike: All layers cost the same; see `engine.profile`.
    """

    alike = "layer"

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        depth: int,
        dropout: float,
        marks_padding: bool,
    ) -> None:
        super().__init__()
        self._heads = heads
        self._marks_padding = marks_padding
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query_key_value, self.gate, self.up):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
        for layer in (self.attention_out, self.down):
            # Radford et al. (2019), section 2.3: sums over the layers keep their size.
            nn.init.normal_(layer.weight, std=INITIAL_STD / math.sqrt(2 * depth))

    def forward(self, features: Tensor) -> Tensor:
        """Add attention and feed-forward to the features."""
        # Padding is on the right, so that no real position looks at it: no mask is needed.
        real = real_positions(features) if self._marks_padding else None
        features = features + self.dropout(self._attend(self.attention_norm(features)))
        normed = self.feed_forward_norm(features)
        branch = self.down(F.silu(self.gate(normed)) * self.up(normed))
        features = features + self.dropout(branch)
        return features if real is None else mark(features, real)

    def _attend(self, features: Tensor) -> Tensor:
        batch, sequence, width = features.shape
        split = self.query_key_value(features).view(batch, sequence, 3, self._heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            rotated(query), rotated(key), value, is_causal=True
        )
        mixed: Tensor = self.attention_out(attended.transpose(1, 2).reshape(batch, sequence, width))
        return mixed


class LanguageModelHead(nn.Module):
    """The last block: a norm, and a score for each token that may come next.

    It takes float (batch, sequence, width) to float (batch, sequence, vocabulary).

    Args:
        width: Features of a token.
        vocabulary: Number of tokens.
        tied: The embedding whose weight it uses; none: it has its own.

    Attributes:
        position_scores: The number of tokens; see `BlockStack.position_scores`.
    """

    def __init__(self, width: int, vocabulary: int, *, tied: nn.Embedding | None) -> None:
        super().__init__()
        self.position_scores = vocabulary
        self.norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.out: nn.Module = (
            _linear(width, vocabulary, bias=False) if tied is None else TiedLinear(tied)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Score the tokens."""
        scores: Tensor = self.out(self.norm(features))
        return scores


class ClassificationHead(nn.Module):
    """The last block: a norm, and a score for each class, read off a row's last real token.

    It takes float (batch, sequence, width) to float (batch, classes).

    Args:
        width: Features of a token.
        classes: Number of classes.
        marks_padding: Whether features of padding arrive as zeros.
    """

    def __init__(self, width: int, classes: int, *, marks_padding: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.out = _linear(width, classes, bias=True)
        self._marks_padding = marks_padding

    def forward(self, features: Tensor) -> Tensor:
        """Score the classes."""
        real = real_positions(features) if self._marks_padding else None
        scores: Tensor = self.out(self.norm(at_last(features, real)))
        return scores


@register("decoder")
def decoder(
    *,
    vocabulary: PositiveInt,
    width: PositiveInt = 64,
    layers: PositiveInt = 4,
    heads: PositiveInt = 4,
    hidden: PositiveInt | None = None,
    task: Task = "language_modelling",
    classes: PositiveInt = 2,
    padding: NonNegativeInt | None = None,
    tied: bool = False,
    dropout: Fraction = 0.0,
) -> nn.Sequential:
    """Build a transformer decoder: the embedding, one block for each layer, norm and head.

    It takes tokens, int64 (batch, sequence) of any length, padded on the right, to float (batch,
    sequence, vocabulary), scores of what follows each position; or to float (batch, classes).

    Args:
        vocabulary: Number of tokens.
        width: Features of a token.
        layers: Number of layers.
        heads: Attention heads of a layer; each has width / heads features, an even number.
        hidden: Width of the feed-forward networks; none: 8/3 of the width.
        task: `language_modelling`, or `sequence_classification` by the last token.
        classes: Number of classes, of sequences.
        padding: The token of padding. Only classification needs it: targets say which positions of
            a language model count.
        tied: Whether the head uses the embedding's weight.
        dropout: Share of features dropped in training.

    Raises:
        ModelError: If heads don't divide the width into even parts, the padding is no token, or
            there is nothing to tie.
    """
    if width % heads or width // heads % 2:
        raise ModelError(
            "model.options.heads",
            f"{heads} heads don't divide a width of {width} into even parts",
            "choose a width that is a multiple of twice the heads",
        )
    if padding is not None and padding >= vocabulary:
        raise ModelError(
            "model.options.padding",
            f"{padding} is not one of the tokens 0 to {vocabulary - 1}",
            "raise vocabulary, or correct the padding",
        )
    classifies = task == "sequence_classification"
    if tied and classifies:
        raise ModelError(
            "model.options.tied", "a head for classes has no embedding to share", "leave it out"
        )
    marked = padding if classifies else None
    embedding = TokenEmbedding(vocabulary, width, padding=marked, dropout=dropout)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embedding=embedding)
    for number in range(1, layers + 1):
        blocks[f"layer{number}"] = DecoderLayer(
            width,
            heads,
            hidden or -(-8 * width // 3),
            depth=layers,
            dropout=dropout,
            marks_padding=marked is not None,
        )
    if classifies:
        blocks["head"] = ClassificationHead(width, classes, marks_padding=marked is not None)
    else:
        tie = embedding.tokens if tied else None
        blocks["head"] = LanguageModelHead(width, vocabulary, tied=tie)
    return nn.Sequential(blocks)


def rotated(features: Tensor) -> Tensor:
    """Return queries or keys (..., sequence, head width) turned by their positions from 0.

    Feature i and feature i + half of the head width are turned by position / 10000^(2i / head
    width), as in Su et al. (2021), arXiv:2104.09864, equation 34.
    """
    sequence, width = features.shape[-2:]
    half = torch.arange(0, width, 2, device=features.device, dtype=torch.float32)
    positions = torch.arange(sequence, device=features.device, dtype=torch.float32)
    angles = torch.outer(positions, ROTARY_BASE ** (-half / width))
    cosine, sine = angles.cos().to(features.dtype), angles.sin().to(features.dtype)
    first, second = features.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
