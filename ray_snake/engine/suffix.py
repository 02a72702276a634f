"""How blocks run that gradients pass through: trained ones, and frozen ones behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import Literal

from torch import Tensor

from ray_snake.engine.lean import lean_run
from ray_snake.engine.recompute import (
    Present,
    flows_to,
    keeping_input,
    run_again,
    trained_again,
)
from ray_snake.engine.stack import BlockRun, BlockStack
from ray_snake.planning.memory import can_run_again


def suffix_runs(
    stack: BlockStack, trained: Collection[int], suffix: Literal["eager", "recompute", "lean"]
) -> dict[int, BlockRun]:
    """Return how the stages of a network's frozen blocks run, by number: see `BlockStack.runs`.

    Args:
        stack: The network, in which the others are frozen.
        trained: Numbers of the blocks that train.
        suffix: What `training.suffix` comes to.
    """
    frozen = {
        index: stage
        for index, stage in enumerate(stack.stages)
        if stack.block_of(index) not in trained
    }
    if suffix == "recompute":
        return {
            index: where_gradients_flow(
                partial(run_again, keeping_input(block, block)), otherwise=block
            )
            for index, block in frozen.items()
        }
    if suffix == "lean":
        return {
            index: where_gradients_flow(lean_run(block), otherwise=block)
            for index, block in frozen.items()
        }
    return {}


def where_gradients_flow(run: BlockRun, *, otherwise: BlockRun) -> BlockRun:
    """Return what runs a block one way where gradients flow to its input, and else another."""

    def choose(x: Tensor) -> Tensor:
        return run(x) if flows_to(x) else otherwise(x)

    return choose


def span_runs(
    stack: BlockStack,
    trained: Collection[int],
    span: Literal["eager", "recompute"],
    present: Callable[[int], Present] = nullcontext,
) -> dict[int, BlockRun]:
    """Return how the trained blocks of a network run, by number: see `BlockStack.runs`.

    Args:
        stack: The network, in which these blocks are in training mode.
        trained: Numbers of the blocks that train.
        span: What `training.span` comes to.
        present: Makes the context in which a block is in memory; by default it always is.
    """
    if span == "eager":
        return {}
    return {
        index: trained_again(stack.blocks[index], partial(present, index))
        for index in trained
        if can_run_again(index, blocks=len(stack), reads=stack.reads[index])
    }
