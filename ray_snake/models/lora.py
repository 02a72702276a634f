"""LoRA (Hu et al. 2021, arXiv:2106.09685): adapters of linear layers train, and little else.

The layers are peft's own, and so is how they start: the first adapters change no output. What is
neither an adapter nor a classifier's new head is its block's base, which no visit changes: see
`engine.stack`. Nothing of peft is imported before a model with adapters is built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ray_snake.errors import ModelError, did_you_mean
from ray_snake.seeds import derive_seed
from ray_snake.settings_tree import PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from ray_snake.models.transformer_blocks import Block

NAME = "default"
"""What peft calls a model's first adapters."""
KEY = "model.options.lora"

# The registry takes options strictly, and neither TOML nor JSON has tuples.
Targets = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    Field(min_length=1),
]


class Lora(Section):
    """How large adapters are, and which layers have one.

    Attributes:
        rank: Of an adapter's two matrices, (rank, inputs) and (outputs, rank).
        alpha: Their product is added times alpha / rank.
        dropout: Of an adapter's inputs, while it trains.
        targets: Names of linear layers, such as `q_proj` or `mlp.fc1`: the ends of their paths;
            none: all but the head's last.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Targets | None = None


def add_adapters(
    blocks: Collection[Block], lora: Lora, *, last: Collection[str], trains_last: bool
) -> None:
    """Give linear layers adapters without values; of all else, say that it never trains.

    Args:
        blocks: All blocks of a model of transformers.
        lora: What adapters it gets.
        last: Paths in the model of what makes scores: it gets none.
        trains_last: Whether that trains whole, as a new classifier does.

    Raises:
        ModelError: If peft is not there, or a target is no linear layer of the model.
    """
    peft = _peft()
    from transformers.initialization import no_init_weights
    from transformers.pytorch_utils import Conv1D

    linear = {
        path: (block, name)
        for block in blocks
        for name, layer in block.parts.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and (path := _path(block, name)) not in last
    }
    for path in _targets(lora, linear):
        block, name = linear[path]
        layer = block.parts.get_submodule(name)
        is_conv = isinstance(layer, Conv1D)
        config = peft.LoraConfig(
            lora_dropout=lora.dropout, fan_in_fan_out=is_conv, init_lora_weights=False
        )
        with torch.device("meta"), no_init_weights():
            adapted = peft.tuners.lora.Linear(
                layer,
                NAME,
                config,
                r=lora.rank,
                lora_alpha=lora.alpha,
                is_target_conv_1d_layer=is_conv,
            )
        parent, _, leaf = name.rpartition(".")
        setattr(block.parts.get_submodule(parent), leaf, adapted)
    for block in blocks:
        block.adapters = frozenset(
            f"parts.{name}.{matrix}.{NAME}.weight"
            for name in _adapted(block)
            for matrix in ("lora_A", "lora_B")
        )
        trained = set(block.adapters)
        for name, part in block.parts.items():
            if trains_last and block.paths[name] in last:
                trained |= {f"parts.{name}.{one}" for one, _ in part.named_parameters()}
                part.register_forward_pre_hook(_in_dtype_of_weights)
        block.never_trains = frozenset(block.state_dict()) - trained


def draw_adapters(block: Block) -> None:
    """Give a block's adapters their initial weights, by torch's seed; nothing else is drawn by it.

    So all other weights are drawn as without adapters.
    """
    with torch.random.fork_rng(devices=[]):
        for name, layer in _adapted(block).items():
            torch.manual_seed(derive_seed(torch.initial_seed(), "adapter", _path(block, name)))
            for matrices in (layer.lora_A, layer.lora_B):
                matrices[NAME].to_empty(device="cpu")
            layer.reset_lora_parameters(NAME, init_lora_weights=True)


@torch.no_grad()
def merged(block: Block) -> dict[str, Tensor]:
    """Return a block's weights by name, adapters merged into those of their layers."""
    found = {name: one for name, one in block.state_dict().items() if name not in block.adapters}
    for name, layer in _adapted(block).items():
        weight = found[f"parts.{name}.base_layer.weight"]
        whole = weight.float() + layer.get_delta_weight(NAME).float()
        found[f"parts.{name}.base_layer.weight"] = whole.to(weight.dtype)
    return found


def _adapted(block: Block) -> dict[str, Any]:
    """Return a block's layers with adapters, by their names within its parts."""
    ends = ".base_layer"
    names = [name for name, _ in block.parts.named_modules() if name.endswith(ends)]
    return {
        name.removesuffix(ends): block.parts.get_submodule(name.removesuffix(ends))
        for name in names
    }


def _path(block: Block, name: str) -> str:
    """Return the path in the whole model of a layer, of its name within a block's parts."""
    part, dot, rest = name.partition(".")
    return f"{block.paths[part]}{dot}{rest}"


def _targets(lora: Lora, linear: Iterable[str]) -> Iterator[str]:
    """Yield the paths of the layers that get adapters.

    Raises:
        ModelError: If there are none, or a target is none of them.
    """
    names = sorted({path.rpartition(".")[2] for path in linear})
    if not names:
        raise ModelError(KEY, "is set, and the model has no linear layers", "leave it out")
    for target in lora.targets or ():
        if not any(_is_named(path, target) for path in linear):
            raise ModelError(
                f"{KEY}.targets",
                f"{target!r} is no linear layer of this model that can have an adapter",
                f"{did_you_mean(target, names)}linear layers: {', '.join(names)}",
            )
    for path in linear:
        if lora.targets is None or any(_is_named(path, one) for one in lora.targets):
            yield path


def _is_named(path: str, target: str) -> bool:
    return f".{path}".endswith(f".{target}")


def _in_dtype_of_weights(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Cast what reaches a new head: what comes before it may compute in another dtype."""
    weight = next(layer.parameters(), None)
    return inputs if weight is None else tuple(one.to(weight.dtype) for one in inputs)


def _peft() -> Any:  # noqa: ANN401 - a module without types
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            KEY,
            f"needs peft ({error})",
            "pip install 'ray-snake[hf]', here and on every machine of the cluster",
        ) from None
    return peft
