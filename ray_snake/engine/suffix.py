"""How frozen blocks run that gradients pass through: those behind a trained one."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Literal

from ray_snake.engine.lean import lean_run
from ray_snake.engine.recompute import run_again
from ray_snake.engine.stack import BlockRun, BlockStack


def suffix_runs(
    stack: BlockStack, trained: Collection[int], suffix: Literal["eager", "recompute", "lean"]
) -> dict[int, BlockRun]:
    """Return how the frozen blocks of a network run, by number: see `BlockStack.runs`.

    Args:
        stack: The network, in which the others are frozen.
        trained: Numbers of the blocks that train.
        suffix: The setting `training.suffix`.
    """
    frozen = {index: block for index, block in enumerate(stack.blocks) if index not in trained}
    if suffix == "recompute":
        return {index: partial(run_again, block) for index, block in frozen.items()}
    if suffix == "lean":
        return {index: lean_run(block) for index, block in frozen.items()}
    return {}
