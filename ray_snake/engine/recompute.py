"""Work that is done again in the backward pass, so that it need keep no more than its input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ray_snake.engine.stack import BlockRun

Present = AbstractContextManager[object]
"""A context in which a block's weights are in memory."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROW_NORMS = (nn.GroupNorm, nn.LayerNorm)
MAKE_NEW = (*CONVOLUTIONS, *BATCH_NORMS, *ROW_NORMS, nn.Linear)
"""Layers whose output is never their input's memory."""


def run_again(work: Callable[[Tensor], Tensor], x: Tensor, *, draws: bool = False) -> Tensor:
    """Do some work now, and in the backward pass once more, to the same bits.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.

    Args:
        work: What to do. It does not write to its input.
        x: Its input, which is all that is kept.
        draws: Whether it may draw random numbers: it draws the same ones again.
    """
    y: Tensor = checkpoint(work, x, use_reentrant=False, preserve_rng_state=draws)
    return y


def trained_again(block: nn.Module, present: Callable[[], Present]) -> BlockRun:
    """Return what runs a block that trains so that it keeps its input alone.

    When it runs again, dropout draws the same, and what a layer counts in its buffers, as a norm
    its statistics, it does not count twice.

    Args:
        block: The block.
        present: Makes the context in which what it computes with is in memory.
    """

    def once(x: Tensor) -> Tensor:
        with present():
            y: Tensor = block(x)
            return y

    def run(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return once(x)
        return run_again(keeping_input(block, _Twice(block, present)), x, draws=True)

    return run


def keeping_input(block: nn.Module, run: BlockRun) -> BlockRun:
    """Return what runs a block and leaves its input as it is, though layers work in place.

    Args:
        block: The block.
        run: Runs it.
    """
    layers = leaves(block)
    in_a_row = all(isinstance(one, nn.Sequential) for one in block.modules() if one not in layers)
    makes_new = in_a_row and type(layers[0]) in MAKE_NEW
    if makes_new or not any(getattr(layer, "inplace", False) for layer in layers):
        return run
    return lambda x: run(x.clone())


def leaves(block: nn.Module) -> list[nn.Module]:
    """Return the layers of a block: its modules that have no others in them."""
    return [one for one in block.modules() if next(one.children(), None) is None]


def flows_to(x: Tensor) -> bool:
    """Return whether a backward pass will ask for the gradient of `x`."""
    return torch.is_grad_enabled() and x.requires_grad


class _Twice:
    """A run of a block, and the same once more: its buffers are then what they were before.

    Args:
        block: The block.
        present: Makes the context in which what it computes with is in memory.
    """

    def __init__(self, block: nn.Module, present: Callable[[], Present]) -> None:
        self._block = block
        self._present = present
        self._before: dict[str, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Run the block."""
        with self._present():
            if self._before is None:
                # All of them: torch's batch norms change theirs without counting it as a change.
                self._before = {name: one.clone() for name, one in self._block.named_buffers()}
                y: Tensor = self._block(x)
                return y
            # What it writes to them goes nowhere.
            again: Tensor = functional_call(self._block, self._before, (x,))
            return again
