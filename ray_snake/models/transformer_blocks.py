"""The blocks of transformers models, and where they get their weights from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ray_snake.errors import ModelError
from ray_snake.hub import local_folder
from ray_snake.models.families import Family
from ray_snake.models.lora import draw_adapters
from ray_snake.models.padding import mark, real_positions
from ray_snake.models.pretrained import FILES, Checkpoint
from ray_snake.models.tied import TiedLinear


class Weights:
    """Where the blocks of one network get their weights from.

    Args:
        skeleton: The model of transformers that the blocks are part of: it knows how to draw them.
        model: A folder, or an id of a model hub; none: all are drawn.
        revision: Of a model of a hub.
        dtype: That weights get.
        may_draw: Whether a head that is not stored is drawn.
    """

    def __init__(
        self,
        skeleton: Any,  # noqa: ANN401 - a model of transformers
        *,
        model: str | None,
        revision: str | None,
        dtype: torch.dtype,
        may_draw: bool,
    ) -> None:
        self._skeleton = skeleton
        self._model = model
        self._revision = revision
        self._dtype = dtype
        self._may_draw = may_draw
        self._checkpoint: Checkpoint | None = None

    def folder(self) -> Path | None:
        """Return the folder of the stored ones, fetched where it is not here; none if drawn."""
        if self._model is None:
            return None
        try:
            return local_folder(self._model, FILES, revision=self._revision)
        except (OSError, ValueError) as error:
            raise ModelError(
                "model.options.model",
                f"{self._model!r} can't be fetched ({' '.join(str(error).split())[:200]})",
                "check the name, or give the folder of a copy",
            ) from None

    def fill(self, block: Block) -> None:
        """Give a block its weights: those that are stored, the others drawn."""
        folder = None if self._checkpoint is not None else self.folder()
        if folder is not None:
            self._checkpoint = Checkpoint(folder)
        stored = {} if self._checkpoint is None else self._stored(block, self._checkpoint)
        names = block.state_dict().keys() - block.adapters
        for part_name, part in block.parts.items():
            if any(name.split(".")[1] == part_name and name not in stored for name in names):
                part.to_empty(device="cpu")
                self._draw(part)
                if isinstance(part, TiedLinear) and part.bias is not None:
                    nn.init.zeros_(part.bias)
        draw_adapters(block)
        if self._checkpoint is None:
            return
        tensors = self._checkpoint.read(stored.values())
        self._assign(block, {name: tensors[full].to(self._dtype) for name, full in stored.items()})

    def map_base(self, block: Block) -> bool:
        """Have a block's base mapped from files that are on this machine, if all of it can be.

        What is not stored in the weights' dtype can't: it would be a copy of this process's own.
        """
        if self._model is None:
            return False
        if self._checkpoint is None:
            try:
                folder = local_folder(self._model, FILES, revision=self._revision, fetches=False)
            except (OSError, ValueError):
                return False
            self._checkpoint = Checkpoint(folder)
        prefix = self._skeleton.base_model_prefix
        stored: dict[str, str] = {}
        for name in block.never_trains:
            found = self._checkpoint.find(block.full_name(name), prefix)
            if found is None:
                return False
            stored[name] = found
        tensors = self._checkpoint.read(stored.values())
        if any(one.dtype != self._dtype for one in tensors.values()):
            return False
        self._assign(block, {name: tensors[full] for name, full in stored.items()})
        return True

    def _draw(self, part: nn.Module) -> None:
        """Draw a part's weights but for its adapters, which it has drawn apart."""
        adapters = {id(one) for name, one in part.named_modules() if ".lora_" in f".{name}"}
        part.apply(lambda one: None if id(one) in adapters else self._skeleton._init_weights(one))

    def _assign(self, block: Block, tensors: Mapping[str, Tensor]) -> None:
        try:
            block.load_state_dict(tensors, strict=False, assign=True)
        except RuntimeError as error:
            raise ModelError(
                str(self._model),
                f"its weights don't fit its config.json ({' '.join(str(error).split())[:200]})",
                "copy the folder again",
            ) from None

    def _stored(self, block: Block, checkpoint: Checkpoint) -> dict[str, str]:
        """Return the stored name of each of a block's weights that is stored, by its own name."""
        prefix = self._skeleton.base_model_prefix
        stored: dict[str, str] = {}
        for name in block.state_dict().keys() - block.adapters:
            full = block.full_name(name)
            found = checkpoint.find(full, prefix)
            if found is not None:
                stored[name] = found
            elif not self._may_draw or (full.startswith(f"{prefix}.") and ".pooler." not in full):
                raise ModelError(
                    checkpoint.subject,
                    f"holds no weight {full!r}",
                    "give a folder of the whole model",
                )
        return stored


class Block(nn.Module):
    """Modules of a transformers model that make a block.

    Args:
        family: How they compute.
        parts: The modules by their paths in the model.
        weights: Where they get their weights from.
        marks_padding: Whether features of padding are zeros; see `models.padding`.

    Attributes:
        adapters: Names of LoRA's weights; see `models.lora`.
        never_trains: Names of the block's base; see `engine.stack`.
    """

    adapters: frozenset[str] = frozenset()
    never_trains: frozenset[str] = frozenset()

    def __init__(
        self,
        family: Family,
        parts: Mapping[str, nn.Module],
        weights: Weights,
        *,
        marks_padding: bool,
    ) -> None:
        super().__init__()
        self.family = family
        self.marks_padding = marks_padding
        self._weights = weights
        self.paths = {path.rpartition(".")[2]: path for path in parts}
        self.parts = nn.ModuleDict({path.rpartition(".")[2]: one for path, one in parts.items()})

    def full_name(self, name: str) -> str:
        """Return a weight's name in the whole model without adapters, of its name in this block."""
        _, part, rest = name.replace(".base_layer.", ".").split(".", 2)
        path = self.paths[part]
        if isinstance(self.parts[part], TiedLinear) and path.endswith("predictions.decoder"):
            # BERT keeps the bias of its tied output beside it, and ties that too.
            path = path.rpartition(".")[0]
        return f"{path}.{rest}"

    def fill_weights(self) -> None:
        """Give the block its initial weights, in memory; `Recipe.initial_blocks` looks for this."""
        self._weights.fill(self)

    def map_base(self) -> bool:
        """Map the block's base from the model's own files; return whether that is possible here.

        `runtime.bases` looks for this.
        """
        return self._weights.map_base(self)

    def real(self, features: Tensor) -> Tensor | None:
        """Return where features are no padding, (batch, sequence); none where it isn't marked."""
        return real_positions(features) if self.marks_padding else None


class EmbeddingBlock(Block):
    """The first block: int64 (batch, sequence) to float (batch, sequence, width)."""

    @property
    def padding(self) -> int | None:
        """The token of padding, whose features are zeros; none: padding is like any token."""
        return self.family.config.pad_token_id if self.marks_padding else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed the tokens."""
        real = None if self.padding is None else tokens != self.padding
        features = self.family.embed(self.parts, tokens, real)
        return features if real is None else mark(features, real)


class LayerBlock(Block):
    """A layer: float (batch, sequence, width) to the same shape.

    Args:
        family: As for every block.
        parts: Likewise; here one layer.
        weights: Likewise.
        marks_padding: Likewise.
        number: The layer's number, from 0.
    """

    def __init__(
        self,
        family: Family,
        parts: Mapping[str, nn.Module],
        weights: Weights,
        *,
        marks_padding: bool,
        number: int,
    ) -> None:
        super().__init__(family, parts, weights, marks_padding=marks_padding)
        self._number = number
        (self._name,) = self.parts

    @property
    def alike(self) -> tuple[str, str | None]:
        """What other layers have too that cost the same; see `engine.profile`."""
        return "layer", self.family.kind(self._number)

    def forward(self, features: Tensor) -> Tensor:
        """Run the layer."""
        real = self.real(features)
        features = self.family.run(self.parts[self._name], self._number, features, real)
        return features if real is None else mark(features, real)


class LanguageBlock(Block):
    """The last block: float (batch, sequence, width) to (batch, sequence, tokens)."""

    @property
    def position_scores(self) -> int:
        """The number of tokens; see `BlockStack.position_scores`."""
        tokens: int = self.family.config.vocab_size
        return tokens

    def forward(self, features: Tensor) -> Tensor:
        """Score the tokens."""
        return self.family.language(self.parts, features)


class ClassBlock(Block):
    """The last block: float (batch, sequence, width) to (batch, classes)."""

    def forward(self, features: Tensor) -> Tensor:
        """Score the classes."""
        return self.family.classify(self.parts, features, self.real(features))
