"""The blocks that a visit trains: from the weights that arrived to those that are returned."""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping, Sequence

import torch
from torch import Tensor, nn

from ray_snake.config import TrainingConfig
from ray_snake.engine.change import are_finite, update_norm
from ray_snake.engine.optimizer import keeps_finite, make_optimizer
from ray_snake.engine.stack import BlockStack
from ray_snake.errors import ModelError

Carried = MutableMapping[int, dict[str, Tensor]]
"""What optimizers keep of each block, by block; tensors by weight name and position."""
_Borrowed = list[tuple[str, Tensor, int]]
"""Weights that still lie in the memory in which they arrived: name, weight, version counter."""


class TrainedBlocks:
    """Some blocks of a stack during a visit, with their optimizer.

    Args:
        stack: The network; the blocks' tensors may be read-only memory. The blocks get buffers of
            their own at once, and weights of their own in the first step.
        trained: Numbers of the blocks.
        training: Optimizer and clipping.
        learning_rate: Of every step.
        keeps_arrived: Whether the weights that arrived are asked for later.
        carried: What the optimizer goes on with, by block; none: it starts anew.
        device: Where they are.
    """

    def __init__(
        self,
        stack: BlockStack,
        trained: Sequence[int],
        *,
        training: TrainingConfig,
        learning_rate: float,
        keeps_arrived: bool,
        carried: Carried | None = None,
        device: torch.device,
    ) -> None:
        self._stack = stack
        self._trained = trained
        self._training = training
        self._learning_rate = learning_rate
        self._borrowed = _take_private_buffers(stack, trained)
        self._checked = False
        self._weights = [weight for block in trained for weight in stack.trainable(block).values()]
        self._arrived = [weight.detach() for weight in self._weights] if keeps_arrived else []
        self._optimizer = make_optimizer(self._weights, training, learning_rate)
        self._optimizer.zero_grad()
        self._take_up(carried or {})
        self._gradient_norms = torch.zeros((), device=device)

    def carry(self, carried: Carried) -> None:
        """Replace what was carried by what the optimizer keeps now."""
        for block in self._trained:
            carried[block] = {}
        for index, (block, name) in enumerate(self._names()):
            for position, tensor in enumerate(self._optimizer.state(index)):
                carried[block][f"{name}/{position}"] = tensor

    def _take_up(self, carried: Carried) -> None:
        for index, (block, name) in enumerate(self._names()):
            own = carried.get(block, {})
            count = sum(key.rpartition("/")[0] == name for key in own)
            if count:
                self._optimizer.take_up(index, [own[f"{name}/{one}"] for one in range(count)])

    def _names(self) -> list[tuple[int, str]]:
        """Return (block, name) of every weight."""
        return [(block, name) for block in self._trained for name in self._stack.trainable(block)]

    def squared_distance(self) -> Tensor:
        """Return the squared L2 distance from the weights that arrived, a scalar."""
        pairs = zip(self._weights, self._arrived, strict=True)
        return torch.stack([(one - other).square().sum() for one, other in pairs]).sum()

    def step(self, output: Tensor, gradient: Tensor | None = None) -> None:
        """Backpropagate, clip, and take one optimizer step.

        Args:
            output: A loss, or an output with its gradient.
            gradient: The output's gradient, of its shape; none for a loss.

        Raises:
            ModelError: If a block wrote to its weights where it should only read them.
        """
        self.accumulate(output, gradient)
        self.update()

    def accumulate(self, output: Tensor, gradient: Tensor | None = None) -> None:
        """Backpropagate, and add to the gradients of the step to come; see `step`."""
        torch.autograd.backward(output, gradient)
        if not self._checked:
            _check_only_read(self._borrowed)
            self._checked = True

    def update(self, divisor: float = 1.0) -> None:
        """Clip what was accumulated, and take one optimizer step.

        Args:
            divisor: Of the gradients, before they are clipped.
        """
        if divisor != 1:
            for weight in self._weights:
                if weight.grad is not None:
                    weight.grad /= divisor
        if self._training.clip_norm is not None:
            self._gradient_norms += torch.nn.utils.clip_grad_norm_(
                self._weights, self._training.clip_norm
            )
        self._optimizer.step()
        # At once: the next forward pass has better use for the memory.
        self._optimizer.zero_grad()

    def are_finite(self) -> bool:
        """Return whether all weights and buffers are finite numbers."""
        # Between the last step and the next visit, a pass over the weights is made only if it must
        # be.
        proven = keeps_finite(self._weights, self._training, self._learning_rate) and bool(
            self._gradient_norms.isfinite()
        )
        return (proven or are_finite(self._weights)) and are_finite(self._buffers())

    def update_norm(self) -> float:
        """Return the L2 norm of the weights' change."""
        return update_norm(self._weights, self._arrived)

    def result(self, *, measure_update: bool) -> tuple[bool, float | None]:
        """Return whether all is finite, and the norm of the change.

        The norm is none if it was not asked for, inf if not all is finite.
        """
        if not self.are_finite():
            return False, math.inf
        return True, self.update_norm() if measure_update else None

    def _buffers(self) -> Iterator[Tensor]:
        """Yield the blocks' buffers, such as a norm's statistics."""
        return (buffer for block in self._trained for buffer in self._stack.blocks[block].buffers())


def _take_private_buffers(stack: BlockStack, trained: Sequence[int]) -> _Borrowed:
    """Give the trained blocks buffers of their own; their weights get that in the first step."""
    borrowed: _Borrowed = []
    for block in trained:
        module = stack.blocks[block]
        only_read = {name for name, _ in module.named_parameters()} - _written_in_forward(module)
        tensors = {
            name: tensor if name in only_read else tensor.clone()
            for name, tensor in stack.tensors(block).items()
        }
        stack.load(block, tensors, trainable=True)
        borrowed += [
            (f"{stack.names[block]}.{name}", weight, weight._version)
            for name, weight in stack.trainable(block).items()
            if name in only_read
        ]
    return borrowed


def _written_in_forward(module: nn.Module) -> set[str]:
    """Return the names of weights that torch's own layers change while they compute."""
    return {
        f"{name}.weight".lstrip(".")
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None
    }


def _check_only_read(borrowed: _Borrowed) -> None:
    for name, weight, version in borrowed:
        if weight._version != version:
            raise ModelError(
                f"weight {name}",
                "was written to by its own layer's forward pass",
                "keep what a forward pass writes in a buffer, not in a parameter",
            )
