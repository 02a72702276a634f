"""Models of `transformers` as block stacks: the embedding, each layer, and norm with head.

Needs the extra `hf`. Nothing of transformers is imported before such a model is built.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_snake.errors import ModelError
from ray_snake.hub import CONFIG, local_folder
from ray_snake.models.decoder import Task
from ray_snake.models.families import FAMILIES
from ray_snake.models.lora import Lora, add_adapters, merged
from ray_snake.models.pretrained import write_folder
from ray_snake.models.registry import register
from ray_snake.models.tied import TiedLinear
from ray_snake.models.transformer_blocks import (
    Block,
    ClassBlock,
    EmbeddingBlock,
    LanguageBlock,
    LayerBlock,
    Weights,
)
from ray_snake.settings_tree import NonNegativeInt, PositiveInt

Number = Literal["float32", "bfloat16", "float16"]


class TransformerBlocks(nn.Sequential):
    """A model of transformers, cut into blocks.

    Args:
        blocks: The blocks by name.
        config: The model's configuration.
        weights: Where its initial weights come from.
    """

    def __init__(
        self,
        blocks: OrderedDict[str, nn.Module],
        config: Any,  # noqa: ANN401 - a configuration of transformers
        weights: Weights,
    ) -> None:
        super().__init__(blocks)
        self.config = config
        self._weights = weights

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration, weights and tokenizer for transformers' `from_pretrained`.

        A tied weight is written once, as transformers does; adapters are merged into what they
        adapt.

        Args:
            folder: To be made, or empty.
        """
        write_folder(Path(folder), self.config, self._named(), self._weights.folder())

    def _named(self) -> Iterator[dict[str, Tensor]]:
        for block in self.children():
            # The last layer may have a head without weights of its own joined to it.
            for one in block.modules():
                if isinstance(one, Block):
                    yield {one.full_name(name): each for name, each in merged(one).items()}


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
    lora: Lora | None = None,
) -> TransformerBlocks:
    """Build a model of transformers: Llama, Qwen 2 and 3, Gemma 1 to 3, OPT, GPT-2 or BERT.

    It takes tokens, int64 (batch, sequence), to float (batch, sequence, tokens), scores of what
    follows each position, for sequences padded on the right; or to float (batch, classes).

    Args:
        model: A folder, or an id of a model hub. Weights are read where they are needed first; all
            other processes read its `config.json`, and with adapters what never trains, where it is
            there.
        config: Changes to its configuration; without a model the whole of it, with `model_type`,
            and the weights are drawn.
        task: `language_modelling` or `sequence_classification`.
        classes: Number of classes, of sequences; none: what the configuration says.
        padding: The token of padding; none: what the configuration says.
        dtype: Of the weights.
        revision: Of a model of a hub.
        lora: Adapters that train in place of the weights; none: the weights train.

    Raises:
        ModelError: If transformers is not there, the model can't be found or read, or is of
            another family; or peft is not there, or a target for adapters is not.
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
            folder = local_folder(model, [CONFIG], revision=revision)
            found = transformers.AutoConfig.from_pretrained(folder, **(config or {}))
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
    return cut(found, task=task, dtype=dtype, model=model, revision=revision, lora=lora)


def cut(
    config: Any,  # noqa: ANN401 - a configuration of transformers
    *,
    task: Task = "language_modelling",
    dtype: Number = "float32",
    model: str | None = None,
    revision: str | None = None,
    lora: Lora | None = None,
) -> TransformerBlocks:
    """Build a model of a configuration, in blocks.

    On the meta device it stays there. Otherwise its weights are filled in block by block: views of
    the stored files, or drawn from torch's global generator as transformers draws them.

    Args:
        config: The configuration.
        task: As for `huggingface`.
        dtype: Likewise.
        model: A folder or an id, for the weights; none: they are drawn.
        revision: Likewise.
        lora: Likewise.

    Raises:
        ModelError: If the model is of another family, its files lack weights, or it can't have such
            adapters.
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
    weights = Weights(
        skeleton,
        model=model,
        revision=revision,
        dtype=getattr(torch, dtype),
        may_draw=classifies,
    )

    def named(names: tuple[str, ...]) -> dict[str, nn.Module]:
        return {
            f"{kind.base}.{name}": getattr(base, name)
            for name in names
            if isinstance(getattr(base, name, None), nn.Module)
        }

    blocks: OrderedDict[str, Block] = OrderedDict(
        embedding=EmbeddingBlock(family, named(kind.embedding), weights, marks_padding=marks)
    )
    for number, layer in enumerate(operator.attrgetter(kind.layers)(base)):
        path = f"{kind.base}.{kind.layers}.{number}"
        blocks[f"layer{number + 1}"] = LayerBlock(
            family, {path: layer}, weights, marks_padding=marks, number=number
        )
    head = named(kind.final)
    scores = kind.class_head if classifies else kind.language_head
    for path in scores:
        head[path] = operator.attrgetter(path)(skeleton)
    if not classifies and config.tie_word_embeddings:
        path = kind.language_head[-1]
        bias = getattr(head[path], "bias", None)
        head[path] = TiedLinear(skeleton.get_input_embeddings(), bias)
    last = ClassBlock if classifies else LanguageBlock
    blocks["head"] = last(family, head, weights, marks_padding=marks)
    if lora is not None:
        add_adapters(
            blocks.values(),
            lora,
            last=scores if classifies else scores[-1:],
            trains_last=classifies,
        )
    for block in blocks.values():
        _keep_constants(block)
        if torch.get_default_device().type != "meta":
            weights.fill(block)
    return TransformerBlocks(OrderedDict(blocks), config, weights)


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


def _skeleton(config: Any, *, classifies: bool, dtype: torch.dtype) -> Any:  # noqa: ANN401 - classes of each family
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
