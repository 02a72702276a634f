"""Ways to fine-tune a language model, whose memory `memory.py` measures; each is one function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ray_snake.config import LossConfig, TrainingConfig
from ray_snake.engine.device import computing, repeatably
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective, cross_entropy
from ray_snake.engine.optimizer import make_optimizer
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.recompute import run_again
from ray_snake.engine.residency import DTYPES, place
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.layers.tensors import from_array
from ray_snake.models.registry import build_model
from ray_snake.planning.cost import BlockCost, predict_visit
from ray_snake.planning.span import Span, Visit, trained_blocks

LOSS = LossConfig(logit_adjustment=0.0, distillation=0.0)
LEARNING_RATE = 1e-4
ADAPTED = "adapted"
"""Folder of the weights of a network with adapters, within that of those without."""
STEPS = 2
"""The second one has all that the optimizer keeps, and the gradients of a first part."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A language model with random weights, and the rows that it trains on.

    Attributes:
        builder: `huggingface`, which needs transformers; or `decoder`, whose key-value heads are as
            many as its heads.
        family: `llama` or `opt`, with transformers.
        tied: Whether the head is tied to the embedding.
        layers: Number of layers.
        width: Features of a token.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
        hidden: Width of the feed-forward networks.
        vocabulary: Number of tokens.
        sequence: Tokens of a row.
        batch: Rows of a step.
        micro_batch: Rows that go through the network at once, whatever the way.
        frozen_dtype: Of frozen weights, whatever the way.
        precision: Of forward and backward passes: `fp32`, or `bf16` by autocast.
        rank: Of LoRA's adapters.
        device: Where everything computes: `cpu` or `cuda`.
        adapted: Whether all linear layers have adapters, peft's, which train in their place.
    """

    builder: str
    family: str
    tied: bool
    layers: int
    width: int
    heads: int
    key_value_heads: int
    hidden: int
    vocabulary: int
    sequence: int
    batch: int
    micro_batch: int
    frozen_dtype: str
    precision: str
    rank: int
    device: str
    adapted: bool = False

    def build(self) -> nn.Module | list[nn.Module]:
        """Return the network with random weights."""
        if self.builder == "decoder":
            options: dict[str, Any] = {
                "vocabulary": self.vocabulary,
                "width": self.width,
                "layers": self.layers,
                "heads": self.heads,
                "hidden": self.hidden,
                "tied": self.tied,
            }
        else:
            own = {
                "llama": {
                    "num_key_value_heads": self.key_value_heads,
                    "intermediate_size": self.hidden,
                },
                "opt": {
                    "word_embed_proj_dim": self.width,
                    "ffn_dim": self.hidden,
                    "max_position_embeddings": 2048,
                    "dropout": 0.0,
                },
            }
            options = {
                "config": {
                    "model_type": self.family,
                    "vocab_size": self.vocabulary,
                    "hidden_size": self.width,
                    "num_hidden_layers": self.layers,
                    "num_attention_heads": self.heads,
                    "tie_word_embeddings": self.tied,
                    **own[self.family],
                }
            }
            if self.adapted:
                options["lora"] = {"rank": self.rank}
        return build_model(self.builder, options)

    def training(self, **changes: Any) -> TrainingConfig:  # noqa: ANN401 - any setting
        """Return how every way trains."""
        settings = {
            "optimizer": "adamw",
            "batch_size": self.batch,
            "micro_batch": self.micro_batch,
            "steps": STEPS,
            "learning_rate": LEARNING_RATE,
            "precision": self.precision,
            **changes,
        }
        return TrainingConfig(**settings)


class Tokens:
    """A shard of random tokens, as `engine.samples.Samples`."""

    def __init__(self, shape: Shape) -> None:
        rows = np.random.default_rng(0).integers(
            0, shape.vocabulary, (STEPS * shape.batch, shape.sequence + 1)
        )
        self._inputs, self._targets = rows[:, :-1].copy(), rows[:, 1:].copy()

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (tokens, the tokens that follow)."""
        return self._inputs[rows], self._targets[rows]


def write_weights(shape: Shape, folder: Path) -> None:
    """Write what every way that a shape can go starts from into a folder."""
    _write_blocks(shape, folder)
    if not ADAPTERS.keys().isdisjoint(ways_of(shape)):
        (folder / ADAPTED).mkdir()
        _write_blocks(replace(shape, adapted=True), folder / ADAPTED)


def _write_blocks(shape: Shape, folder: Path) -> None:
    """Write the network's blocks as safetensors files, one for all that are alike."""
    skeleton = BlockStack.skeleton(shape.build)
    own = torch.Generator().manual_seed(0)
    for block in set(_files(skeleton)):
        tensors = {
            name: torch.randn(one.shape, generator=own).mul_(0.02)
            for name, one in skeleton.tensors(block).items()
        }
        save_file(tensors, folder / f"{block}.safetensors")


def _files(stack: BlockStack) -> list[int]:
    """Return for each block the first one with the same weights by name and shape."""
    kinds = [
        tuple((name, one.shape) for name, one in stack.tensors(block).items())
        for block in range(len(stack))
    ]
    return [kinds.index(kind) for kind in kinds]


def stored_stack(shape: Shape, folder: Path) -> BlockStack:
    """Return the network on views of memory-mapped files."""
    stack = BlockStack.skeleton(shape.build)
    stack.move_constants(torch.device(shape.device))
    for block, file in enumerate(_files(stack)):
        stack.load(block, mapped(folder / f"{file}.safetensors"), trainable=False)
    return stack


def mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file as read-only views of it; nothing is read yet.

    https://github.com/huggingface/safetensors, "Format": a length, a JSON header, then the bytes.
    """
    content = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (start + one for one in entry["data_offsets"])
        array = content[begin:end].view(np.float32).reshape(entry["shape"])
        found[name] = from_array(array, "float32")
    return found


def visit(
    shape: Shape,
    folder: Path,
    trained: Sequence[int],
    **training: Any,  # noqa: ANN401 - any setting
) -> None:
    """Train some blocks in a visit: all of them is full fine-tuning."""
    stack = stored_stack(shape, folder)
    settings = shape.training(**training)
    device = torch.device(shape.device)
    # What the visit brings in itself waits in the files.
    place(stack, trained, training=settings, device=device)
    train_visit(
        stack,
        Tokens(shape),
        trained=trained,
        learning_rate=LEARNING_RATE,
        seed=0,
        training=settings,
        objective=Objective(LOSS),
        device=device,
    )


class LowRank(nn.Module):
    """A frozen linear layer and its adapter (Hu et al. 2021, arXiv:2106.09685), as in peft.

    Args:
        linear: The layer, in any dtype.
        rank: Of the adapter, which is float32.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        device = linear.weight.device
        down = torch.randn(rank, linear.in_features, device=device)
        self.down = nn.Parameter(down / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Add the adapter's outputs to the layer's."""
        y: Tensor = self.linear(x)
        added = F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)
        return y + added.to(y.dtype)


def low_rank(shape: Shape, folder: Path, *, checkpointed: bool = False) -> None:
    """Train adapters of all linear layers of all layers, the rest frozen.

    Args:
        shape: The network.
        folder: Of its weights.
        checkpointed: Whether each layer runs again in the backward pass.
    """
    stack = stored_stack(shape, folder)
    device = torch.device(shape.device)
    dtype = DTYPES[shape.frozen_dtype]
    for block in range(len(stack)):
        tensors = {name: one.to(device, dtype) for name, one in stack.tensors(block).items()}
        stack.load(block, tensors, trainable=False)
    adapters = []
    for block in stack.blocks[1:-1]:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear) and not isinstance(parent, LowRank):
                    adapter = LowRank(layer, shape.rank)
                    setattr(parent, name, adapter)
                    adapters += [adapter.down, adapter.up]
    training = shape.training()
    optimizer = make_optimizer(adapters, training, LEARNING_RATE)
    samples = Tokens(shape)
    as_trained = partial(computing, shape.precision, device)
    parts = shape.batch // shape.micro_batch
    for step in range(STEPS):
        for part in range(parts):
            start = (step * parts + part) * shape.micro_batch
            inputs, targets = samples.batch(np.arange(start, start + shape.micro_batch))
            with as_trained():
                x = torch.from_numpy(inputs).to(device)
                outputs = _run(stack, x, checkpointed=checkpointed)
                loss = cross_entropy(outputs.float(), torch.from_numpy(targets).to(device)) / parts
            del outputs
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(adapters, 5.0)
        optimizer.step()
        optimizer.zero_grad()


def _run(stack: BlockStack, x: Tensor, *, checkpointed: bool) -> Tensor:
    x = stack(x, 0, 1)
    for block in stack.blocks[1:-1]:
        x = run_again(block, x) if checkpointed and x.requires_grad else block(x)
    outputs: Tensor = stack(x, len(stack) - 1)
    return outputs


def _full(shape: Shape, folder: Path) -> None:
    visit(shape, folder, range(shape.layers + 2))


def _snake(shape: Shape, folder: Path, *, residency: str, place: str) -> None:
    trained = snake_blocks(shape, place)
    visit(shape, folder, trained, **snake_settings(shape, residency))


def _adapters(shape: Shape, folder: Path, *, residency: str) -> None:
    visit(
        replace(shape, adapted=True),
        folder / ADAPTED,
        range(shape.layers),
        **adapters_settings(shape, residency),
    )


def snake_blocks(shape: Shape, place: str) -> tuple[int, ...]:
    """Return what a snake's visit trains: a layer or the embedding, and the last block."""
    block = {"first": 1, "last": shape.layers, "embedding": 0}[place]
    return trained_blocks([block], shape.layers + 2, train_first=False, train_last=True)


# The most is behind the first layer, the longest way before the last; the embedding has more
# weights than several layers.
SNAKES = {
    f"snake_{residency}_{place}": (residency, place)
    for residency in ("resident", "stream")
    for place in ("first", "last", "embedding")
}
ADAPTERS = {f"snake_adapters_{residency}": residency for residency in ("resident", "stream")}
WAYS: Mapping[str, Callable[[Shape, Path], None]] = {
    "full": _full,
    "lora": low_rank,
    "lora_checkpointed": partial(low_rank, checkpointed=True),
    **{
        name: partial(_snake, residency=residency, place=place)
        for name, (residency, place) in SNAKES.items()
    },
    **{name: partial(_adapters, residency=one) for name, one in ADAPTERS.items()},
}
"""What is measured, by name."""


def ways_of(shape: Shape) -> list[str]:
    """Return the names of the ways that a shape can go: adapters in visits are for transformers."""
    return [way for way in WAYS if shape.builder == "huggingface" or way not in ADAPTERS]


def snake_settings(shape: Shape, residency: str) -> dict[str, Any]:
    """Return what a snake's visit has beside what every way has."""
    return {
        "residency": residency,
        "frozen_dtype": shape.frozen_dtype,
        "suffix": "recompute",
    }


def adapters_settings(shape: Shape, residency: str) -> dict[str, Any]:
    """Return what a visit to the adapters of all layers has beside what every way has."""
    return {**snake_settings(shape, residency), "span": "recompute"}


def predictions(shape: Shape, ways: Sequence[str]) -> dict[str, int | None]:
    """Return the bytes that the cost model predicts for ways; none for what isn't a visit."""
    adapted = {way in ADAPTERS for way in ways}
    costs = {one: _block_costs(replace(shape, adapted=one)) for one in adapted}
    return {way: _predicted(shape, costs[way in ADAPTERS], way) for way in ways}


def _block_costs(shape: Shape) -> list[BlockCost]:
    """Return what is measured of each block before a run."""
    skeleton = BlockStack.skeleton(shape.build)
    return profile_blocks(skeleton, (shape.sequence,), integer_inputs=True, batch=1)[0]


def _predicted(shape: Shape, costs: Sequence[BlockCost], way: str) -> int | None:
    if way == "full":
        trained, settings = tuple(range(shape.layers + 2)), {}
    elif way in SNAKES:
        residency, place = SNAKES[way]
        trained = snake_blocks(shape, place)
        settings = snake_settings(shape, residency)
    elif way in ADAPTERS:
        trained = tuple(range(shape.layers))
        settings = adapters_settings(shape, ADAPTERS[way])
    else:
        return None
    cost = predict_visit(
        Visit(number=1, trip=1, node=0, span=Span(trained[0], trained[0] + 1), trained=trained),
        costs,
        rows=STEPS * shape.batch,
        steps=STEPS,
        training=shape.training(**settings),
        loss=LOSS,
    )
    return cost.peak_bytes(on_gpu=shape.device == "cuda")


def measured(shape: Shape, folder: Path, way: str) -> int:
    """Return the peak of what torch allocates in a way, weights of its own included."""
    device = torch.device(shape.device)
    return peak_bytes(partial(repeatably, partial(WAYS[way], shape, folder), device), device)
