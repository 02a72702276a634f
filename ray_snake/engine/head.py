"""The last stage of a language model together with the loss, some positions at a time.

Of a wide vocabulary the scores, their log-probabilities and gradients would be the largest tensors
of a visit. Each position's are its own, so that they are made for some positions at a time, and
their gradients right away: nothing outlives its piece but the gradient of the block's input. The
idea is that of Hsu et al., "Liger Kernel", arXiv 2410.10989, section 3.2; Wijmans et al., "Cut Your
Losses in Large-Vocabulary Language Models", arXiv 2411.09009, take it further on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import TorchFunctionMode

from ray_snake.engine.batch_result import BatchResult, joined, judge_batch
from ray_snake.engine.objective import Objective, counted, cross_entropy, is_language_modelling
from ray_snake.engine.residency import FrozenBlocks
from ray_snake.engine.stack import BlockRun, BlockStack
from ray_snake.engine.teacher import Kept
from ray_snake.planning.memory import GRADIENT_ROWS, positions_at_once


class Head:
    """The last stage of a visit's network, and what is made of its outputs.

    Args:
        stack: The network.
        frozen: Has the block, or what it reads, in memory.
        objective: The loss.
        computing: Makes the context of a forward pass.
    """

    def __init__(
        self,
        stack: BlockStack,
        frozen: FrozenBlocks,
        objective: Objective,
        *,
        computing: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._stack = stack
        self._frozen = frozen
        self._objective = objective
        self._computing = computing

    def splits(self, hidden: Tensor, targets: Tensor) -> bool:
        """Return whether `backward` takes these: wide scores, with a loss that is a mean over them.

        Args:
            hidden: The last stage's input, (batch, sequence, width) of a language model.
            targets: The rows' targets.
        """
        is_mean = self._objective.task is cross_entropy and is_language_modelling(targets)
        return is_mean and is_wide(self._stack, hidden)

    def backward(
        self, hidden: Tensor, targets: Tensor, kept: Kept | None, *, summed: bool
    ) -> tuple[Tensor, BatchResult]:
        """Add to the gradients of the weights that the last stage computes with.

        Args:
            hidden: The last stage's input, (batch, sequence, width).
            targets: (batch, sequence).
            kept: What the teacher kept of these rows; none: nothing is distilled.
            summed: Whether gradients are of the sum over all targets that count, not of the mean.

        Returns:
            The gradient of `hidden` - of no value where none is asked for - and the scalars.
        """
        divisor = 1 if summed else max(counted(targets), 1)
        # In order, whatever the strides of `hidden`: pieces of it are written to.
        gradient = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
        results = []
        into = pieces(self._stack, gradient)
        tensors = (hidden.detach(), targets, *(kept or ()))
        with self._frozen.head() as run:
            scores = Scores(run)
            for (part, labels, *own), out in zip(pieces(self._stack, *tensors), into, strict=True):
                part.requires_grad_(hidden.requires_grad)
                arrived = None if kept is None else tuple(own)
                loss, result = self._loss(scores, part, labels, arrived)
                results.append(result)
                if result.counted:
                    torch.autograd.backward(loss * (result.counted / divisor))
                if part.grad is not None:
                    out[0].copy_(part.grad)
                del loss, part
        return gradient, replace(joined(results), samples=len(targets))

    def _loss(
        self, run: BlockRun, part: Tensor, labels: Tensor, kept: Kept | None
    ) -> tuple[Tensor, BatchResult]:
        with self._computing():
            outputs = run(part)
            loss = self._objective(outputs, labels, kept, part)
        # Outputs end here.
        return loss, judge_batch(loss.detach(), outputs.detach(), labels)

    @torch.no_grad()
    def keep(self, hidden: Tensor) -> Kept:
        """Return what the teacher keeps of rows.

        Args:
            hidden: The last stage's input, (n, ...).
        """
        last = self._stack.scoring
        teacher = self._objective.teacher
        if not is_wide(self._stack, hidden):
            return teacher.keep(hidden, self._stack(hidden, last))
        scores = Scores(lambda x: self._stack(x, last))
        parts = [teacher.keep(part, scores(part)) for (part,) in pieces(self._stack, hidden)]
        return tuple(
            torch.cat(one, dim=1).reshape(*hidden.shape[:2], *one[0].shape[2:])
            for one in zip(*parts, strict=True)
        )


def is_wide(stack: BlockStack, hidden: Tensor) -> bool:
    """Return whether the scores of all positions are more than what is made at once.

    Args:
        stack: The network.
        hidden: Its last stage's input, (batch, sequence, width) of a language model.
    """
    if not stack.position_scores or hidden.ndim != 3:
        return False
    at_once = positions_at_once(width=hidden.shape[-1], scores=stack.position_scores)
    return hidden.shape[0] * hidden.shape[1] > at_once


def pieces(stack: BlockStack, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors (batch, sequence, ...) as views of some positions each, (1, n, ...).

    Args:
        stack: The network, whose last block scores positions.
        tensors: The first is the block's input, or of its shape.
    """
    size = positions_at_once(width=tensors[0].shape[-1], scores=stack.position_scores)
    flat = [one.flatten(0, 1) for one in tensors]
    for start in range(0, len(flat[0]), size):
        yield tuple(one[None, start : start + size] for one in flat)


class Scores(TorchFunctionMode):
    """Runs a block again and again: its linear layers add to their weight's gradient in place.

    Under autocast they cast a weight once, of which torch makes a cast for each run.

    Args:
        run: What runs the block.
    """

    def __init__(self, run: BlockRun) -> None:
        super().__init__()
        self._run = run
        # With the weights, so that nothing else gets their numbers.
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Run the block."""
        with self:
            return self._run(x)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - as the base class has it
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the torch function returns
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        dtype = weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        if id(weight) not in self._casts:
            self._casts[id(weight)] = (weight, weight.detach().to(dtype))
        _, cast = self._casts[id(weight)]
        if not (weight.requires_grad and weight.is_leaf):
            return F.linear(x, weight if weight.requires_grad else cast, bias)
        # torch has no types for it.
        y: Tensor = _SummedLinear.apply(x, weight, cast)  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias.to(dtype)


class _Context(FunctionCtx):
    """What the function keeps between its forward and its backward pass."""

    saved_tensors: tuple[Tensor, ...]
    weight: Tensor
    dtype: torch.dtype


class _SummedLinear(Function):
    """A linear layer whose backward pass adds to `weight.grad` itself, some rows at a time.

    Otherwise there were one more of it for each piece.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, cast: Tensor) -> Tensor:
        """Return (..., outputs) of (..., inputs), in the dtype of `cast`."""
        ctx.dtype, ctx.weight = x.dtype, weight
        x = x.to(cast.dtype)
        ctx.save_for_backward(x, cast)
        return F.linear(x, cast)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the input."""
        x, cast = ctx.saved_tensors
        weight = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        for start in range(0, len(weight), GRADIENT_ROWS):
            some = slice(start, start + GRADIENT_ROWS)
            weight.grad[some] += rows[:, some].T @ inputs
        return (gradient @ cast).to(ctx.dtype), None, None
