"""Models of `transformers` as block stacks: the embedding, each layer, and norm with head.

Needs the extra `hf`. Nothing of transformers is imported before such a model is built.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_snake.errors import ModelError
from ray_snake.models.decoder import Task
from ray_snake.models.families import FAMILIES, Family
from ray_snake.models.padding import mark, real_positions
from ray_snake.models.pretrained import COMPANIONS, Checkpoint, write_folder
from ray_snake.models.registry import register
from ray_snake.models.tied import TiedLinear
from ray_snake.settings_tree import NonNegativeInt, PositiveInt

Number = Literal["float32", "bfloat16", "float16"]


class _Block(nn.Module):
    """Modules of a transformers model that make a block.

    Args:
        family: How they compute.
        parts: The modules by their paths in the model.
        marks_padding: Whether features of padding are zeros; see `models.padding`.
    """

    def __init__(
        self, family: Family, parts: Mapping[str, nn.Module], *, marks_padding: bool
    ) -> None:
        super().__init__()
        self.family = family
        self.marks_padding = marks_padding
        self.paths = {path.rpartition(".")[2]: path for path in parts}
        self.parts = nn.ModuleDict({path.rpartition(".")[2]: one for path, one in parts.items()})

    def full_name(self, name: str) -> str:
        """Return a weight's name in the whole model, of its name in this block."""
        _, part, rest = name.split(".", 2)
        path = self.paths[part]
        if isinstance(self.parts[part], TiedLinear) and path.endswith("predictions.decoder"):
            # BERT keeps the bias of its tied output beside it, and ties that too.
            path = path.rpartition(".")[0]
        return f"{path}.{rest}"

    def real(self, features: Tensor) -> Tensor | None:
        return real_positions(features) if self.marks_padding else None


class EmbeddingBlock(_Block):
    """The first block: int64 (batch, sequence) to float (batch, sequence, width)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed the tokens."""
        real = tokens != self.family.config.pad_token_id if self.marks_padding else None
        features = self.family.embed(self.parts, tokens, real)
        return features if real is None else mark(features, real)


class LayerBlock(_Block):
    """A layer: float (batch, sequence, width) to the same shape.

    Args:
        family: As for every block.
        parts: Likewise; here one layer.
        marks_padding: Likewise.
        number: The layer's number, from 0.
    """

    def __init__(
        self, family: Family, parts: Mapping[str, nn.Module], *, marks_padding: bool, number: int
    ) -> None:
        super().__init__(family, parts, marks_padding=marks_padding)
        self._number = number
        (self._name,) = self.parts

    def forward(self, features: Tensor) -> Tensor:
        """Run the layer."""
        real = self.real(features)
        features = self.family.run(self.parts[self._name], self._number, features, real)
        return features if real is None else mark(features, real)


class LanguageBlock(_Block):
    """The last block: float (batch, sequence, width) to (batch, sequence, tokens)."""

    def forward(self, features: Tensor) -> Tensor:
        """Score the tokens."""
        return self.family.language(self.parts, features)


class ClassBlock(_Block):
    """The last block: float (batch, sequence, width) to (batch, classes)."""

    def forward(self, features: Tensor) -> Tensor:
        """Score the classes."""
        return self.family.classify(self.parts, features, self.real(features))


class TransformerBlocks(nn.Sequential):
    """A model of transformers, cut into blocks.

    Args:
        blocks: The blocks by name.
        config: The model's configuration.
        source: The folder that its weights came from; none: they were drawn.
    """

    def __init__(
        self,
        blocks: OrderedDict[str, nn.Module],
        config: Any,  # noqa: ANN401 - a configuration of transformers
        source: Path | None,
    ) -> None:
        super().__init__(blocks)
        self.config = config
        self.source = source

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration, weights and tokenizer for transformers' `from_pretrained`.

        A tied weight is written once, as transformers does.

        Args:
            folder: To be made, or empty.
        """
        write_folder(Path(folder), self.config, self._named(), self.source)

    def _named(self) -> Iterator[dict[str, Tensor]]:
        for block in self.children():
            # The last layer may have a head without weights of its own joined to it.
            for one in block.modules():
                if isinstance(one, _Block):
                    yield {one.full_name(name): each for name, each in one.state_dict().items()}


@register("huggingface")
def huggingface(
    *,
    model: str | None = None,
    config: dict[str, Any] | None = None,
    task: Task = "language_modelling",
    classes: PositiveInt | None = None,
    padding: NonNegativeInt | None = None,
    dtype: Number = "float32",
    revision: str | None = None,
) -> TransformerBlocks:
    """Build a model of transformers: Llama, Qwen 2 and 3, Gemma 1 to 3, OPT, GPT-2 or BERT.

    It takes tokens, int64 (batch, sequence), to float (batch, sequence, tokens), scores of what
    follows each position, for sequences padded on the right; or to float (batch, classes).

    Args:
        model: A folder, or an id of a model hub. Weights are read where they are needed first; all
            other processes read its `config.json` alone.
        config: Changes to its configuration; without a model the whole of it, with `model_type`,
            and the weights are drawn.
        task: `language_modelling` or `sequence_classification`.
        classes: Number of classes, of sequences; none: what the configuration says.
        padding: The token of padding; none: what the configuration says.
        dtype: Of the weights.
        revision: Of a model of a hub.

    Raises:
        ModelError: If transformers is not there, the model can't be found or read, or is of
            another family.
    """
    transformers = _transformers()
    if model is None and not (config and "model_type" in config):
        raise ModelError(
            "model.options.model",
            "is not set, and config names no model_type",
            "name a folder or a model's id, or give a config with its model_type",
        )
    try:
        if model is None:
            found = transformers.AutoConfig.for_model(**(config or {}))
        else:
            found = transformers.AutoConfig.from_pretrained(
                model, revision=revision or "main", **(config or {})
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model.options.{'config' if model is None else 'model'}",
            f"{model or config!r} can't be used ({' '.join(str(error).split())[:200]})",
            "give a folder with a config.json, or the id of a model that this machine can fetch",
        ) from None
    if padding is not None:
        found.pad_token_id = padding
    if classes is not None:
        found.num_labels = classes
    folder = None
    if model is not None and torch.get_default_device().type != "meta":
        folder = Path(model) if Path(model).is_dir() else _fetched(model, revision)
    return cut(found, task=task, dtype=dtype, folder=folder)


def cut(
    config: Any,  # noqa: ANN401 - a configuration of transformers
    *,
    task: Task = "language_modelling",
    dtype: Number = "float32",
    folder: Path | None = None,
) -> TransformerBlocks:
    """Build a model of a configuration, in blocks.

    On the meta device it stays there. Otherwise its weights are filled in block by block: views of
    the folder's files, or drawn from torch's global generator as transformers draws them.

    Args:
        config: The configuration.
        task: As for `huggingface`.
        dtype: Likewise.
        folder: With the weights; none: they are drawn.

    Raises:
        ModelError: If the model is of another family, or the folder lacks weights.
    """
    kind = FAMILIES.get(config.model_type)
    if kind is None:
        raise ModelError(
            "model.options",
            f"models of the kind {config.model_type!r} can't be cut into blocks",
            f"known kinds: {', '.join(sorted(FAMILIES))}",
        )
    classifies = task == "sequence_classification"
    if kind.needs_is_decoder and not classifies and not config.is_decoder:
        raise ModelError(
            "model.options.task",
            f"in this {config.model_type!r} every token sees those that follow it",
            "set config = { is_decoder = true } to train it as a language model",
        )
    skeleton = _skeleton(config, classifies=classifies, dtype=getattr(torch, dtype))
    config = skeleton.config
    config.architectures = [type(skeleton).__name__]
    base = operator.attrgetter(kind.base)(skeleton)
    family = kind(config, base)
    marks = classifies and config.pad_token_id is not None

    def named(names: tuple[str, ...]) -> dict[str, nn.Module]:
        return {
            f"{kind.base}.{name}": getattr(base, name)
            for name in names
            if isinstance(getattr(base, name, None), nn.Module)
        }

    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        embedding=EmbeddingBlock(family, named(kind.embedding), marks_padding=marks)
    )
    for number, layer in enumerate(operator.attrgetter(kind.layers)(base)):
        path = f"{kind.base}.{kind.layers}.{number}"
        blocks[f"layer{number + 1}"] = LayerBlock(
            family, {path: layer}, marks_padding=marks, number=number
        )
    head = named(kind.final)
    for path in kind.class_head if classifies else kind.language_head:
        head[path] = operator.attrgetter(path)(skeleton)
    if not classifies and config.tie_word_embeddings:
        path = kind.language_head[-1]
        bias = getattr(head[path], "bias", None)
        head[path] = TiedLinear(skeleton.get_input_embeddings(), bias)
    last = ClassBlock if classifies else LanguageBlock
    blocks["head"] = last(family, head, marks_padding=marks)
    is_plan = torch.get_default_device().type == "meta"
    checkpoint = None if folder is None or is_plan else Checkpoint(folder)
    for block in blocks.values():
        _keep_constants(block)
        if not is_plan:
            _fill(block, skeleton, checkpoint, dtype=getattr(torch, dtype), may_draw=classifies)
    return TransformerBlocks(blocks, config, folder)


def _transformers() -> Any:  # noqa: ANN401 - a module without types
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            "model.name",
            f"'huggingface' needs transformers ({error})",
            "pip install 'ray-snake[hf]', here and on every machine of the cluster",
        ) from None
    return transformers


def _skeleton(config: Any, *, classifies: bool, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Return transformers' model, all of it on the meta device."""
    from transformers.initialization import no_init_weights

    transformers = _transformers()
    kind = (
        transformers.AutoModelForSequenceClassification
        if classifies
        else transformers.AutoModelForCausalLM
    )
    with torch.device("meta"), no_init_weights():
        return kind.from_config(config, dtype=dtype)


def _fetched(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=["config.json", "model*.safetensors*", *COMPANIONS],
            )
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            "model.options.model",
            f"{model!r} can't be fetched ({' '.join(str(error).split())[:200]})",
            "check the name, or give the folder of a copy",
        ) from None


def _keep_constants(block: nn.Module) -> None:
    """Turn buffers that don't travel into plain attributes, with their values.

    They follow from the configuration: the factor of Gemma's embeddings, and BERT's positions and
    first sentence. As buffers they would have no value on the meta device.

    Raises:
        ModelError: If there is another one, as a later transformers may have.
    """
    for module in block.modules():
        for name in tuple(module._non_persistent_buffers_set):
            shape = module.get_buffer(name).shape
            with torch.device("cpu"):
                if name == "embed_scale":
                    value = torch.tensor(module.scalar_embed_scale)
                elif name == "position_ids":
                    value = torch.arange(shape[-1]).expand(shape)
                elif name == "token_type_ids":
                    value = torch.zeros(shape, dtype=torch.int64)
                else:
                    raise ModelError(
                        "model.options",
                        f"{type(module).__name__} has a buffer {name!r} of unknown value",
                        "install a version of transformers that this one of ray_snake was made for",
                    )
            delattr(module, name)
            setattr(module, name, value)


def _fill(
    block: nn.Module,
    skeleton: Any,  # noqa: ANN401 - a model of transformers
    checkpoint: Checkpoint | None,
    *,
    dtype: torch.dtype,
    may_draw: bool,
) -> None:
    """Give a block its weights: those that are stored, the others drawn."""
    assert isinstance(block, _Block)
    own = block.state_dict()
    stored: dict[str, str] = {}
    if checkpoint is not None:
        prefix = skeleton.base_model_prefix
        for name in own:
            full = block.full_name(name)
            found = checkpoint.find(full, prefix)
            if found is not None:
                stored[name] = found
            elif not may_draw or (full.startswith(f"{prefix}.") and ".pooler." not in full):
                raise ModelError(
                    checkpoint.subject,
                    f"holds no weight {full!r}",
                    "give a folder of the whole model",
                )
    for part_name, part in block.parts.items():
        if any(name.split(".")[1] == part_name and name not in stored for name in own):
            part.to_empty(device="cpu")
            part.apply(skeleton._init_weights)
            if isinstance(part, TiedLinear) and part.bias is not None:
                nn.init.zeros_(part.bias)
    if checkpoint is not None:
        tensors = checkpoint.read(stored.values())
        try:
            block.load_state_dict(
                {name: tensors[full].to(dtype) for name, full in stored.items()},
                strict=False,
                assign=True,
            )
        except RuntimeError as error:
            raise ModelError(
                checkpoint.subject,
                f"its weights don't fit its config.json ({' '.join(str(error).split())[:200]})",
                "copy the folder again",
            ) from None
