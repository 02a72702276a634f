"""Ways to fine-tune a language model, whose memory `memory.py` measures; each is one function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from ray_snake.engine.memory import peak_bytes
from ray_snake.engine.objective import Objective, cross_entropy
from ray_snake.engine.optimizer import make_optimizer
from ray_snake.engine.profile import profile_blocks
from ray_snake.engine.recompute import run_again
from ray_snake.engine.residency import DTYPES
from ray_snake.engine.stack import BlockStack
from ray_snake.engine.visit import train_visit
from ray_snake.layers.tensors import from_array
from ray_snake.models.registry import build_model
from ray_snake.planning.cost import BlockCost, predict_visit
from ray_snake.planning.span import Span, Visit, trained_blocks

LOSS = LossConfig(logit_adjustment=0.0, distillation=0.0)
LEARNING_RATE = 1e-4
STEPS = 2
"""The second one has all that the optimizer keeps, and the gradients of a first part."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A language model of Llama's kind with random weights, and the rows that it trains on.

    Attributes:
        builder: `huggingface`, which needs transformers; or `decoder`, whose key-value heads are as
            many as its heads.
        layers: Number of layers.
        width: Features of a token.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
        hidden: Width of the feed-forward networks.
        vocabulary: Number of tokens; the head is tied to their embedding.
        sequence: Tokens of a row.
        batch: Rows of a step.
        micro_batch: Rows that go through the network at once, whatever the way.
        frozen_dtype: Of frozen weights, whatever the way.
        rank: Of LoRA's adapters.
    """

    builder: str
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
    rank: int

    def build(self) -> nn.Module | list[nn.Module]:
        """Return the network with random weights."""
        if self.builder == "decoder":
            options: dict[str, Any] = {
                "vocabulary": self.vocabulary,
                "width": self.width,
                "layers": self.layers,
                "heads": self.heads,
                "hidden": self.hidden,
                "tied": True,
            }
        else:
            options = {
                "config": {
                    "model_type": "llama",
                    "vocab_size": self.vocabulary,
                    "hidden_size": self.width,
                    "num_hidden_layers": self.layers,
                    "num_attention_heads": self.heads,
                    "num_key_value_heads": self.key_value_heads,
                    "intermediate_size": self.hidden,
                    "tie_word_embeddings": True,
                }
            }
        return build_model(self.builder, options)

    def training(self, **changes: Any) -> TrainingConfig:  # noqa: ANN401 - any setting
        """Return how every way trains."""
        settings = {
            "optimizer": "adamw",
            "batch_size": self.batch,
            "micro_batch": self.micro_batch,
            "steps": STEPS,
            "learning_rate": LEARNING_RATE,
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
    """Write the network's blocks as safetensors files."""
    torch.manual_seed(0)
    stack = BlockStack.build(shape.build)
    for block in range(len(stack)):
        tensors = {name: one.contiguous() for name, one in stack.tensors(block).items()}
        save_file(tensors, folder / f"{block}.safetensors")


def stored_stack(shape: Shape, folder: Path) -> BlockStack:
    """Return the network on views of memory-mapped files."""
    stack = BlockStack.skeleton(shape.build)
    for block in range(len(stack)):
        stack.load(block, mapped(folder / f"{block}.safetensors"), trainable=False)
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
    train_visit(
        stored_stack(shape, folder),
        Tokens(shape),
        trained=trained,
        learning_rate=LEARNING_RATE,
        seed=0,
        training=shape.training(**training),
        objective=Objective(LOSS),
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
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

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
    dtype = DTYPES[shape.frozen_dtype]
    for block in range(len(stack)):
        tensors = {
            name: one if dtype is None else one.to(dtype)
            for name, one in stack.tensors(block).items()
        }
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
    parts = shape.batch // shape.micro_batch
    for step in range(STEPS):
        for part in range(parts):
            start = (step * parts + part) * shape.micro_batch
            inputs, targets = samples.batch(np.arange(start, start + shape.micro_batch))
            outputs = _run(stack, torch.from_numpy(inputs), checkpointed=checkpointed)
            loss = cross_entropy(outputs.float(), torch.from_numpy(targets)) / parts
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


def ways(shape: Shape, folder: Path) -> Mapping[str, Callable[[], None]]:
    """Return what to measure, by name."""
    count = shape.layers + 2
    found: dict[str, Callable[[], None]] = {
        "full": lambda: visit(shape, folder, range(count)),
        "lora": lambda: low_rank(shape, folder),
        "lora_checkpointed": lambda: low_rank(shape, folder, checkpointed=True),
    }
    for name, (block, residency) in dict(_snake_visits(shape)).items():
        trained = trained_blocks([block], count, train_first=False, train_last=True)
        found[name] = partial(visit, shape, folder, trained, **snake_settings(shape, residency))
    return found


def _snake_visits(shape: Shape) -> Iterator[tuple[str, tuple[int, str]]]:
    """Yield names of the snake's visits, with block and residency.

    The most is behind the first layer, the longest way before the last; the embedding has more
    weights than several layers.
    """
    for residency in ("resident", "stream"):
        for place, block in (("first", 1), ("last", shape.layers), ("embedding", 0)):
            yield f"snake_{residency}_{place}", (block, residency)


def snake_settings(shape: Shape, residency: str) -> dict[str, Any]:
    """Return what a snake's visit has beside what every way has."""
    return {
        "residency": residency,
        "frozen_dtype": shape.frozen_dtype,
        "suffix": "recompute",
    }


def block_costs(shape: Shape) -> list[BlockCost]:
    """Return what is measured of each block before a run."""
    skeleton = BlockStack.skeleton(shape.build)
    return profile_blocks(skeleton, (shape.sequence,), integer_inputs=True, batch=1)[0]


def predicted(shape: Shape, costs: Sequence[BlockCost], way: str) -> int | None:
    """Return the bytes that the cost model predicts for a way; none for what isn't a visit."""
    count = shape.layers + 2
    if way == "full":
        trained, settings = tuple(range(count)), {}
    elif way.startswith("snake"):
        block, residency = dict(_snake_visits(shape))[way]
        trained = trained_blocks([block], count, train_first=False, train_last=True)
        settings = snake_settings(shape, residency)
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
    return cost.private_bytes


def measured(shape: Shape, folder: Path, way: str) -> int:
    """Return the peak of what torch allocates in a way, weights of its own included."""
    return peak_bytes(ways(shape, folder)[way])
