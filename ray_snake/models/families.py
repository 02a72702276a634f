"""How the model families of `transformers` compute, block by block.

A family takes apart what transformers builds and calls its own layers, so what a layer computes is
transformers' own code. What its model does around the layers (positions, masks, rotary angles) is
done here, by each block for itself, since blocks pass on features and nothing else. Nothing here
imports transformers before it is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ray_snake.models.padding import at_last


class Family(ABC):
    """How models of one kind compute. One object is shared by all blocks of a network.

    Args:
        config: The model's configuration, of a model that was built: it names the attention.
        base: The module that has the layers.

    Attributes:
        base: Path of that module in a model with a head.
        embedding: Names in it of what the first block consists of; those that are there count.
        layers: Name in it of the list of layers.
        final: Names in it of what comes behind the last layer, likewise.
        language_head: Paths in the model of the language model's head.
        class_head: Paths of the classifier's.
        decodes: Whether language modelling needs `config.is_decoder`.
    """

    base: ClassVar[str]
    embedding: ClassVar[tuple[str, ...]]
    layers: ClassVar[str]
    final: ClassVar[tuple[str, ...]]
    language_head: ClassVar[tuple[str, ...]] = ("lm_head",)
    class_head: ClassVar[tuple[str, ...]] = ("score",)
    needs_is_decoder: ClassVar[bool] = False

    def __init__(self, config: Any, base: nn.Module) -> None:  # noqa: ANN401 - of transformers
        self.config = config

    def kind(self, number: int) -> str | None:
        """Return what kind layer `number` is of; none where all are of one."""
        return None

    @abstractmethod
    def embed(self, parts: nn.ModuleDict, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Return features (batch, sequence, width) of tokens, int64 (batch, sequence).

        Args:
            parts: The first block's modules.
            tokens: The tokens.
            real: Where they are no padding, bool (batch, sequence); none: everywhere.
        """

    def run(self, layer: nn.Module, number: int, features: Tensor, real: Tensor | None) -> Tensor:
        """Return what layer `number`, from 0, makes of features (batch, sequence, width)."""
        out: Tensor = layer(features, attention_mask=self.mask(number, features, real))
        return out

    def language(self, parts: nn.ModuleDict, features: Tensor) -> Tensor:
        """Return scores (batch, sequence, tokens) of the last layer's features."""
        scores: Tensor = parts["lm_head"](self.finish(parts, features))
        return scores

    def classify(self, parts: nn.ModuleDict, features: Tensor, real: Tensor | None) -> Tensor:
        """Return scores (batch, classes) of the last layer's features."""
        scores: Tensor = parts["score"](at_last(self.finish(parts, features), real))
        return scores

    def finish(self, parts: nn.ModuleDict, features: Tensor) -> Tensor:
        """Return the features as the family's base model does."""
        for name in self.final:
            if name in parts:
                features = parts[name](features)
        return features

    def mask(self, number: int, features: Tensor, real: Tensor | None) -> Any:  # noqa: ANN401 - what transformers' layers take
        """Return the mask of attention that layer `number` expects."""
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.config, inputs_embeds=features, attention_mask=real, cache=None
        )


class Rotating(Family):
    """Llama, Qwen2, Qwen3 and Gemma: RMSNorm and rotary positions, some with sliding windows."""

    base = "model"
    embedding = ("embed_tokens",)
    layers = "layers"
    final = ("norm",)

    def __init__(self, config: Any, base: nn.Module) -> None:  # noqa: ANN401 - of transformers
        super().__init__(config, base)
        self._rotary = _Rotary(type(base.get_submodule("rotary_emb")), config)
        self._kinds: list[str] | None = getattr(config, "layer_types", None)

    def embed(self, parts: nn.ModuleDict, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Look the tokens up."""
        features: Tensor = parts["embed_tokens"](tokens)
        return features

    def run(self, layer: nn.Module, number: int, features: Tensor, real: Tensor | None) -> Tensor:
        """Return what a layer makes of features, with the angles of its kind."""
        positions = torch.arange(features.shape[1], device=features.device).unsqueeze(0)
        out: Tensor = layer(
            features,
            attention_mask=self.mask(number, features, real),
            position_ids=positions,
            position_embeddings=self._rotary(features, positions, self.kind(number)),
        )
        return out

    def language(self, parts: nn.ModuleDict, features: Tensor) -> Tensor:
        """Return scores of the tokens, bounded where the model bounds them (Gemma 2)."""
        scores = super().language(parts, features)
        bound = getattr(self.config, "final_logit_softcapping", None)
        return scores if bound is None else torch.tanh(scores / bound) * bound

    def mask(self, number: int, features: Tensor, real: Tensor | None) -> Any:  # noqa: ANN401 - what transformers' layers take
        """Return the causal mask, of the layer's window where it has one."""
        if self.kind(number) != "sliding_attention":
            return super().mask(number, features, real)
        from transformers.masking_utils import create_sliding_window_causal_mask

        return create_sliding_window_causal_mask(
            config=self.config, inputs_embeds=features, attention_mask=real, cache=None
        )

    def kind(self, number: int) -> str | None:
        """Return the layer's kind of attention."""
        return self._kinds[number] if self._kinds else None


class OPT(Family):
    """OPT: learned positions that count real tokens, in some models narrower embeddings."""

    base = "model.decoder"
    embedding = ("embed_tokens", "embed_positions", "project_in")
    layers = "layers"
    final = ("final_layer_norm", "project_out")

    def embed(self, parts: nn.ModuleDict, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Add the embeddings of tokens and positions."""
        features: Tensor = parts["embed_tokens"](tokens)
        counted = torch.ones_like(tokens) if real is None else real.to(tokens.dtype)
        if "project_in" in parts:
            features = parts["project_in"](features)
        positions: Tensor = parts["embed_positions"](counted)
        return features + positions


class GPT2(Family):
    """GPT-2: learned positions."""

    base = "transformer"
    embedding = ("wte", "wpe", "drop")
    layers = "h"
    final = ("ln_f",)

    def embed(self, parts: nn.ModuleDict, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Add the embeddings of tokens and positions."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        features: Tensor = parts["drop"](parts["wte"](tokens) + parts["wpe"](positions))
        return features


class BERT(Family):
    """BERT: attention in both directions for classes, to earlier tokens in a language model."""

    base = "bert"
    embedding = ("embeddings",)
    layers = "encoder.layer"
    final = ("pooler",)
    language_head = ("cls.predictions.transform", "cls.predictions.decoder")
    class_head = ("dropout", "classifier")
    needs_is_decoder = True

    def embed(self, parts: nn.ModuleDict, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Add the embeddings of tokens, positions, and the first of two sentences."""
        features: Tensor = parts["embeddings"](
            input_ids=tokens,
            token_type_ids=torch.zeros_like(tokens),
            position_ids=torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0),
        )
        return features

    def language(self, parts: nn.ModuleDict, features: Tensor) -> Tensor:
        """Return scores of the tokens."""
        scores: Tensor = parts["decoder"](parts["transform"](features))
        return scores

    def classify(self, parts: nn.ModuleDict, features: Tensor, real: Tensor | None) -> Tensor:
        """Return scores of the classes, read off the first token."""
        pooled = parts["pooler"](features)
        scores: Tensor = parts["classifier"](parts["dropout"](pooled))
        return scores

    def mask(self, number: int, features: Tensor, real: Tensor | None) -> Any:  # noqa: ANN401 - what transformers' layers take
        """Return the mask of the model's kind of attention."""
        if self.config.is_decoder:
            return super().mask(number, features, real)
        from transformers.masking_utils import create_bidirectional_mask

        return create_bidirectional_mask(
            config=self.config, inputs_embeds=features, attention_mask=real
        )


FAMILIES: Mapping[str, type[Family]] = {
    "llama": Rotating,
    "qwen2": Rotating,
    "qwen3": Rotating,
    "gemma": Rotating,
    "gemma2": Rotating,
    "gemma3_text": Rotating,
    "opt": OPT,
    "gpt2": GPT2,
    "bert": BERT,
}
"""By transformers' `model_type`."""


class _Rotary:
    """Cosines and sines of positions: transformers' own, made where they are first needed.

    They follow from the configuration. As a module's buffers they would belong to a block, and keep
    a network from being built without memory.
    """

    def __init__(self, kind: type[nn.Module], config: Any) -> None:  # noqa: ANN401 - a class of each family
        self._kind = kind
        self._config = config
        self._module: nn.Module | None = None

    def __call__(self, features: Tensor, positions: Tensor, kind: str | None) -> Any:  # noqa: ANN401 - what the module returns
        if self._module is None:
            with torch.device("cpu"):
                self._module = self._kind(config=self._config)
        self._module.to(features.device)
        if hasattr(self._module, "layer_types"):
            return self._module(features, positions, kind)
        return self._module(features, positions)
